"""Plain values of options are converted as typer converts them, without pydantic."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer

from ds2deploy.cli.commands import COMMANDS, build_command
from ds2deploy.cli.values import NOT_PLAIN, plain_value

VALUES = (
    None, True, False, 0, 3, 0.5, 1e300, "", "3", "03", "-3", "+3", "0.25", "1.", ".5", "1e3",
    "nan", "1_000", " 3", "٣", "9" * 20, "text", "TEXT", "json", "a/b.wav", "-", "~/a", "ü",
    "\udcff", "true",
)  # fmt: skip


def parameters_of(name: str) -> list[Any]:
    """Parameters of a command whose values typer converts with pydantic."""
    command = build_command(name)
    context = typer.Context(command)
    return [found for found in command.get_params(context) if hasattr(found, "type_descriptor")]


def by_typer(parameter: Any, context: Any, value: Any) -> Any:
    """The value as typer itself converts it; the mark of values that are not plain for an error."""
    callback, parameter.callback = parameter.callback, None
    try:
        return type(parameter).process_value(parameter, context, value)
    except typer.BadParameter:
        return NOT_PLAIN
    finally:
        parameter.callback = callback


@pytest.mark.parametrize("name", COMMANDS)
def test_plain_values_are_those_of_typer(name: str):
    plain, context = 0, typer.Context(build_command(name))
    for parameter in parameters_of(name):
        several = parameter.multiple or parameter.nargs == -1
        for value in VALUES:
            given = [value, "b"] if several and value is not None else value
            found = plain_value(parameter, given)
            if found is NOT_PLAIN or (parameter.required and value is None):
                continue
            plain += 1
            expected = by_typer(parameter, context, given)
            assert found == expected, (parameter.name, given)
            assert type(found) is type(expected), (parameter.name, given)
    assert plain > 0


PROGRAM = """
import sys
from ds2deploy.cli.app import main
try:
    main()
finally:
    print(*sys.modules, sep="\\n", file=sys.stderr)
"""

UNUSED = {
    "pydantic", "rich", "torch", "onnx", "lightning", "lhotse", "scipy", "soxr", "psutil",
    "hashlib", "concurrent.futures", "importlib.metadata", "asyncio",
    "ds2deploy.runtimes.decoding.beam", "ds2deploy.runtimes.decoding.language_model_file",
    "ds2deploy.cli.export", "ds2deploy.cli.train", "ds2deploy.training", "ds2deploy.export",
}  # fmt: skip
"""Modules that are not needed to decode a recording at the model's rate greedily."""


def modules_of(*arguments: str | Path) -> tuple[str, set[str]]:
    """The output of a command, and the modules that its process has imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    return done.stdout, set(done.stderr.split("\n"))


@pytest.fixture
def one_second(tmp_path: Path, digits_onnx: Path) -> Path:
    """A second of noise, at the rate of the model of digits."""
    from ds2deploy.runtimes.onnx.session import describe_artifact

    rate = describe_artifact(digits_onnx).features.sample_rate
    path = tmp_path / "noise.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, rate), rate)
    return path


def test_transcribe_imports_only_what_it_needs(digits_onnx: Path, one_second: Path):
    text, modules = modules_of("transcribe", digits_onnx, one_second, "--threads", "1")
    assert text.endswith("\n")
    assert {"onnxruntime", "soundfile", "ds2deploy.runtimes.decoding.greedy"} <= modules
    assert modules & UNUSED == set()


def test_transcribe_with_a_beam_imports_the_search(digits_onnx: Path, one_second: Path):
    # Otherwise the names above may be those of modules that are no more.
    _, modules = modules_of("transcribe", digits_onnx, one_second, "--beam", "4")
    assert "ds2deploy.runtimes.decoding.beam" in modules
    assert "pydantic" not in modules
