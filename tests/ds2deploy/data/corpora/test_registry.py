"""The registry of layouts: everything that names them reads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.data.corpora.registry import LAYOUTS, find_layout, layout_help, read_layout
from ds2deploy.data.preparation import PrepareOptions, prepare
from ds2deploy.runtimes.errors import ConfigError, MissingFileError


def test_the_help_text_names_every_layout():
    for name, layout in LAYOUTS.items():
        assert f"{name}: {layout.content}" in layout_help()
    shown = CliRunner().invoke(app, ["prepare", "--help"]).stdout
    assert all(f"{name}: " in " ".join(shown.split()) for name in LAYOUTS)


def test_the_documentation_names_every_layout():
    page = Path(__file__).parents[4] / "docs" / "training.md"
    table = page.read_text().partition("\n### Corpora\n")[2].partition("\n#")[0]
    missing = [name for name in LAYOUTS if f"\n| `{name}` |" not in table]
    assert not missing, f"--layout {', '.join(missing)}: needs a row under Corpora in {page}"


def test_an_unknown_layout_lists_the_known_ones():
    with pytest.raises(ConfigError) as raised:
        find_layout("nothing")
    assert all(name in str(raised.value) for name in (*LAYOUTS, "lhotse:NAME"))


@pytest.mark.parametrize("layout", ["librispeech", "folder", "lhotse:ljspeech"])
def test_a_missing_source_is_named_with_its_origin(layout: str, tmp_path: Path):
    with pytest.raises(MissingFileError) as raised:
        prepare(tmp_path / "gone", tmp_path / "out", None, PrepareOptions(layout=layout))
    assert str(raised.value).startswith(f"{tmp_path / 'gone'}: ")
    assert find_layout(layout).content in str(raised.value)
    assert find_layout(layout).origin in str(raised.value)


def test_the_registry_imports_nothing_heavy():
    """The help text of the command line reads it."""
    heavy = {"torch", "lhotse", "numpy", "soundfile", "csv"}
    script = f"import sys, ds2deploy.data.corpora.registry; print({heavy} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert found.stdout.strip() == b"set()"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_a_reader(layout: str, tmp_path: Path):
    assert list(read_layout(layout, tmp_path)) == []
