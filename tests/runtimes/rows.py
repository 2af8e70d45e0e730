"""Rows of the table of runtimes that a CPU can run, for the tests of what every session owes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ds2deploy.export.parity.speech import speech_features
from ds2deploy.loading import BACKENDS
from ds2deploy.runtimes.backends import Backend, FileKind
from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.runtimes.features import FeatureConfig, FloatArray, IntArray, pad_features
from ds2deploy.runtimes.session import Session

SUFFIXES: dict[FileKind, str] = {"onnx": ".onnx", "checkpoint": ".ckpt"}


class Row(NamedTuple):
    """A runtime, and a kind of file that it opens."""

    backend: Backend
    kind: FileKind

    def open(self, path: Path, threads: int = 1) -> Session:
        return self.backend.open(path, self.kind, "cpu", threads)

    def refused(self, path: Path, error: type[Ds2Error]) -> str:
        """Open a file that must be refused, in one line that begins with its path."""
        with pytest.raises(error) as raised:
            self.open(path)
        message = str(raised.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        return message


ROWS = [Row(item, kind) for item in BACKENDS if not item.needs_gpu for kind in item.files]
"""Every runtime with every kind of file that it opens."""


def speech(config: FeatureConfig, batch: int, frames: int) -> tuple[FloatArray, IntArray]:
    """Features of utterances, each shorter than the one before."""
    lengths = np.linspace(frames, max(1, frames // 3), batch).astype(int)
    sounds = speech_features(config, batch, frames)
    return pad_features([row[:, :n] for row, n in zip(sounds, lengths, strict=True)])
