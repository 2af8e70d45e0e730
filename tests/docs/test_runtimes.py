"""Every runtime stands on the pages that a reader chooses one by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ds2deploy.bench.plan import NAMES, option_name
from ds2deploy.cli.bench import RUNTIME_HELP
from ds2deploy.cli.options import RUNTIME_NAMES
from ds2deploy.loading import BACKENDS, runtime_names
from tests.docs.pages import ROOT

CHOICE, USAGE, LAYERS = "docs/choosing-a-runtime.md", "docs/usage.md", "docs/architecture.md"


def rows(text: str) -> dict[str, list[str]]:
    """Rows of a table that begin with a name in backticks: their cells, by that name."""
    found = re.findall(r"^\| `(\w[\w-]*)`([^|]*)\|(.*)\|$", text, re.MULTILINE)
    return {name: [first, *cells.split("|")] for name, first, cells in found}


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    text = (ROOT / CHOICE).read_text(encoding="utf-8")
    return rows(text.partition("## Files and devices of each runtime")[2].partition("\n## ")[0])


def test_every_runtime_has_a_row_and_no_row_is_of_another(table: dict[str, list[str]]) -> None:
    assert set(table) == set(runtime_names()), f"{CHOICE}: mend the table of what each takes"


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_a_row_names_the_devices(table: dict[str, list[str]], backend) -> None:
    devices = table[backend.name][3]
    assert ("CPU" in devices) == ("cpu" in backend.devices), f"{CHOICE}: {backend.name}: {devices}"
    if "cuda" in backend.devices:
        assert re.search("GPU|Jetson", devices), f"{CHOICE}: {backend.name}: {devices}"


@pytest.mark.parametrize("name", runtime_names())
def test_the_page_on_use_names_every_runtime(name: str) -> None:
    text = (ROOT / USAGE).read_text(encoding="utf-8")
    assert f"`{name}`" in text, f"{USAGE}: add `{name}` to the paragraph on runtimes"


def test_help_texts_name_every_runtime() -> None:
    assert set(re.findall(r"[\w-]+", RUNTIME_NAMES)) - {"or"} == set(runtime_names())
    asked = RUNTIME_HELP.partition("Repeat")[0]
    assert {option_name(name) for name in NAMES} <= set(re.findall(r"[\w-]+", asked))


def test_the_table_of_layers_names_every_file_of_a_session() -> None:
    text = (ROOT / LAYERS).read_text(encoding="utf-8")
    [row] = [line for line in text.splitlines() if line.startswith("| runtimes | ")]
    files = {path.name for path in Path(ROOT / "runtimes").glob("*.py") if _is_session(path)}
    assert "openvino.py" in files
    for name in files:
        assert f"`{name}`" in row, f"{LAYERS}: add `{name}` to the row of the runtimes"


def _is_session(path: Path) -> bool:
    return (
        re.search(r"^class \w+Session\b(?!\(Protocol)", path.read_text(), re.MULTILINE) is not None
    )
