"""Shell completion: names of commands, options and values, without loading what they need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ds2deploy.cli.app import app

HEAVY = "numpy", "torch", "onnxruntime", "lhotse", "lightning", "onnx"


def complete(words: str) -> tuple[list[str], set[str]]:
    """Proposals of bash's protocol for the last of the words, and the heavy packages loaded."""
    code = (
        "import atexit, sys; from ds2deploy.cli.app import main\n"
        f"show = lambda: print('LOADED', *({HEAVY!r} & sys.modules.keys()), file=sys.stderr)\n"
        "atexit.register(show); main()"
    ).replace(repr(HEAVY), repr(set(HEAVY)))
    environment = {
        **os.environ,
        "_DS2DEPLOY_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment, capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    return done.stdout.split(), set(done.stderr.split()[1:])


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        ("ds2deploy tr", ["train", "transcribe"]),
        ("ds2deploy export --hard", ["--hardware-compatibility"]),
        ("ds2deploy transcribe --format s", ["srt"]),
    ],
)
def test_bash_completes_words(words: str, proposed: list[str]):
    assert complete(words) == (proposed, set())


def test_completion_is_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = subprocess.run(
        [sys.executable, "-m", "ds2deploy", "--show-completion", "bash"],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "_DS2DEPLOY_COMPLETE=complete_bash" in done.stdout


def test_completion_is_installed(tmp_path: Path):
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    subprocess.run(
        [sys.executable, "-m", "ds2deploy", "--install-completion", "bash"],
        env=environment, capture_output=True, check=True, timeout=600,
    )  # fmt: skip
    script = tmp_path / ".bash_completions" / "ds2deploy.sh"
    assert "_DS2DEPLOY_COMPLETE=complete_bash" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_help_names_the_options_of_completion():
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).stdout
