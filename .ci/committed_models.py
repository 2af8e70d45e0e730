"""Exports the committed models, speaks digits, and writes what the models make of them here."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Literal

import msgspec
import onnx
import onnxruntime

import ds2deploy
from ds2deploy.demo.run import Split, speak
from ds2deploy.demo.synthesis import TEST_VOICES
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.streaming import streaming_description

MODELS = Path(__file__).parents[1] / "tests" / "models"

RECORDINGS = 12
"""Recordings that are transcribed, of 2 to 6 digits each."""


def write(checkpoint: Path, precision: Literal["fp32", "fp16", "int8"], out: Path) -> None:
    """Write an ONNX file without its parity check, which is a test of its own."""
    loaded = load_checkpoint(checkpoint)
    described = loaded.description()
    if "streaming" in checkpoint.name:
        described = streaming_description(described, "waveform")
    described = msgspec.structs.replace(described, precision=precision)
    lowered = lower(loaded.network, columns=precision != "int8")
    path = out / f"{checkpoint.stem}.{precision}.onnx"
    onnx.save(build_graph(lowered, described), path)
    append_description(path, described)


def main(out: Path) -> None:
    """Write `models/`, `audio/` and `expected.json`: model to recording to text.

    Args:
        out: folder, new or empty.
    """
    models = out / "models"
    models.mkdir(parents=True)
    speak(Split("test", RECORDINGS, TEST_VOICES, (2, 6)), out, seed=7)
    for name in ("digits.ckpt", "digits-streaming.ckpt"):
        for precision in ("fp32", "fp16", "int8"):
            write(MODELS / name, precision, models)
    recordings = sorted((out / "audio" / "test").glob("*.wav"))
    texts, took_s = {}, {}
    for path in sorted(models.glob("*.onnx")):
        with ds2deploy.load(path, threads=1) as recognizer:
            started = time.monotonic()
            texts[path.name] = {one.name: recognizer.transcribe(one).text for one in recordings}
            took_s[path.name] = time.monotonic() - started
    document = {"texts": texts, "took_s": took_s, "onnxruntime": onnxruntime.__version__}
    (out / "expected.json").write_bytes(msgspec.json.format(msgspec.json.encode(document)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
