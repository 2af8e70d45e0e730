"""Recordings and text files that tests of data write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from typer.testing import CliRunner, Result

from ds2deploy.cli.app import app
from ds2deploy.data.cuts import audio_path
from ds2deploy.data.preparation import PrepareOptions, Report, prepare
from ds2deploy.runtimes.alphabet import Alphabet

RATE = 16_000
TEXT = "CHAPTER ONE"
NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, 8000).astype(np.float32)
LATIN_1 = os.fsdecode(b"caf\xe9")


def speech(seconds: float = 1.5, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(int(RATE * seconds))).astype(np.float32)


def record(path: Path, seconds: float = 1.5, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech(seconds, seed), RATE, **options)
    return path


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_utterance(
    path: Path, kind: str = "WAV", subtype: str | None = None, text: str | None = "ONE"
) -> Path:
    """Write a second of noise at 8 kHz, and a transcript beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # soundfile encodes names strictly
        soundfile.write(file, NOISE, 8000, format=kind, subtype=subtype)
    if text is not None:
        path.with_suffix(".txt").write_text(text)
    return path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def prepared(source: Path, **options: object) -> tuple[set[str], Report]:
    """Names of the recordings that are used, and the report."""
    out = source.parent / "out"
    sets, report = prepare(source, out, Alphabet(), PrepareOptions(leave_out=True, **options))
    return {Path(audio_path(cut)).name for cuts in sets.values() for cut in cuts}, report
