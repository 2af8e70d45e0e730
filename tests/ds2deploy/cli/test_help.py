"""The help of the program and of its commands, and completion in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ds2deploy.cli.app import app

COMMANDS = [
    "prepare",
    "train",
    "evaluate",
    "compress",
    "export",
    "verify",
    "lm",
    "tune",
    "transcribe",
    "bulk",
    "serve",
    "bench",
    "inspect",
    "doctor",
    "demo",
]


def help_of(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    return result.output


def sections_of(command: str) -> dict[str, set[str]]:
    """The options in each section of a command's help."""
    found = {}
    for section in re.split(r"\n\n(?=\w)", help_of(command))[1:]:
        title, _, rows = section.partition(":\n")
        found[title] = set(re.findall(r"^  (--[a-z-]+)", rows, re.M))
    return found


def test_commands_are_listed_in_order_and_uncut_at_80_columns():
    lines = help_of().split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in lines] == COMMANDS
    assert all(line.endswith(".") and not line.endswith("...") for line in lines), lines
    assert max(map(len, lines)) <= 80


def test_long_commands_group_their_options():
    export = sections_of("export")
    assert list(export) == ["Arguments", "Options", "Streaming", "Engines", "Triton"]
    assert {"--out", "--precision", "--help"} <= export["Options"]
    assert {"--trt", "--targets"} <= export["Engines"]
    assert export["Streaming"] == {"--streaming", "--block-ms", "--statistics-from"}
    assert list(sections_of("prepare"))[2:] == ["Screening", "Sets", "Recipe"]
    assert sections_of("evaluate")["Runtime"] == {"--device", "--runtime", "--threads"}


def test_a_short_command_has_no_empty_section():
    assert list(sections_of("doctor")) == ["Options"]


HEAVY = {"numpy", "torch", "onnxruntime", "lhotse", "lightning", "onnx"}

PROGRAM = f"""
import atexit, sys
from ds2deploy.cli.app import main
atexit.register(lambda: print(*({HEAVY} & sys.modules.keys()), end="", file=sys.stderr))
main()
"""


def test_help_of_commands_loads_neither_numpy_nor_what_checks_types():
    code = PROGRAM.replace("main()\n", "sys.argv = ['ds2deploy', 'transcribe', '--help']; main()\n")
    code = code.replace("'numpy'", "'pydantic', 'rich', 'numpy'")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert "--window SECONDS" in done.stdout
    assert done.stderr == ""


def complete(words: str) -> list[str]:
    """The proposals for the last of some words, as bash asks for them; nothing heavy is loaded."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "_DS2DEPLOY_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ds2deploy ", COMMANDS),
        ("ds2deploy e", ["evaluate", "export"]),
        ("ds2deploy export --st", ["--streaming", "--statistics-from"]),
        ("ds2deploy transcribe --format s", ["srt"]),
    ],
)
def test_completion_proposes_commands_and_options(words: str, expected: list[str]):
    assert complete(words) == expected


def test_completion_can_be_installed(tmp_path: Path):
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
    assert "--install-completion" in help_of()
