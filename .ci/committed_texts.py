"""Transcribes with the committed models, and compares with their texts where they were exported."""

from __future__ import annotations

import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import msgspec

import ds2deploy
from ds2deploy.runtimes.audio.loading import load_audio

BLOCK = 1600
"""Samples that a stream is given at a time."""


def main(folder: Path) -> int:
    """Print a table of the models: recordings, seconds, and how many texts are the same.

    Args:
        folder: what `.ci/committed_models.py` wrote.

    Returns:
        0 if all texts are those of `expected.json`; 1 if not, after printing both.
    """
    expected = msgspec.json.decode((folder / "expected.json").read_bytes())
    packages = ("ds2deploy", "onnxruntime", "numpy", "soundfile", "soxr", "msgspec")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"Python {platform.python_version()}, {platform.machine()}, {versions}", flush=True)
    failed = 0
    for model, texts in expected["texts"].items():
        with ds2deploy.load(folder / "models" / model, threads=1) as recognizer:
            started = time.monotonic()
            paths = [folder / "audio" / "test" / name for name in texts]
            found = {path.name: recognizer.transcribe(path).text for path in paths}
            took_s, here_s = time.monotonic() - started, expected["took_s"][model]
            if "streaming" in model:
                found |= {f"{one.name} in blocks": stream(recognizer, one) for one in paths}
                texts |= {f"{name} in blocks": text for name, text in texts.items()}
        same = sum(found[name] == text for name, text in texts.items())
        failed += len(texts) - same
        ratio = f"{took_s:.2f} s, {took_s / here_s:.3g} times the time of the exporting machine"
        print(f"{model}: {same} of {len(texts)} texts are equal, {ratio}", flush=True)
        for name, text in texts.items():
            if found[name] != text:
                print(f"  {name}: {found[name]!r} here, {text!r} expected")
    print(f"{sum(map(len, expected['texts'].values())) - failed} passed, {failed} failed")
    return int(failed > 0)


def stream(recognizer: ds2deploy.Recognizer, path: Path) -> str:
    """Recognise a recording in blocks, as a microphone gives it."""
    rate = recognizer.description.features.sample_rate
    samples = load_audio(path, rate)
    with recognizer.stream(sample_rate=rate) as opened:
        for start in range(0, len(samples), BLOCK):
            opened.accept(samples[start : start + BLOCK])
        return opened.finish().text


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
