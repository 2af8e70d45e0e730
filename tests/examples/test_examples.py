"""Each example runs as it stands, and prints what the library recognises."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import ds2deploy
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.runtimes.decoding.config import DecoderConfig

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RATE = 16_000
SECONDS = (1.3, 2.0, 0.7)

Run = Callable[..., str]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    paths = []
    for seed, seconds in enumerate(SECONDS):
        samples = synthesize(RATE, int(seconds * RATE), seed=seed)
        paths.append(folder / f"{seed}.wav")
        soundfile.write(paths[-1], np.round(samples * 32767).astype("<i2"), RATE)
    return paths


@pytest.fixture(scope="module")
def texts(streaming_onnx: Path, recordings: list[Path]) -> list[str]:
    """Texts of the library."""
    recognizer = ds2deploy.load(streaming_onnx, threads=1)
    found = [recognizer.transcribe(path).text for path in recordings]
    assert len(set(found)) == len(found)
    assert all(found)
    return found


@pytest.fixture
def run() -> Run:
    """Runs an example; its output."""

    def call(name: str, *arguments: object, code: int = 0) -> str:
        command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == code, done.stderr
        return done.stdout if not code else done.stderr

    return call


def test_transcribe_file(
    run: Run, streaming_onnx: Path, recordings: list[Path], texts: list[str]
) -> None:
    lines = run("transcribe_file.py", streaming_onnx, *recordings).splitlines()
    found = [line for line in lines if not line.startswith(" ")]
    assert found == [f"{path}: {text}" for path, text in zip(recordings, texts, strict=True)]
    words = [line.split()[-1] for line in lines if line.startswith(" ")]
    assert words == " ".join(texts).split()


def test_transcribe_file_names_a_missing_recording(run: Run, streaming_onnx: Path) -> None:
    error = run("transcribe_file.py", streaming_onnx, "none.wav", code=1)
    assert "none.wav" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "name", ["hot_words.py", "many_streams.py", "transcribe_file.py", "onnx_alone.py"]
)
def test_an_example_without_arguments_prints_its_call(run: Run, name: str) -> None:
    error = run(name, code=1)
    assert f"python examples/{name} model" in error
    assert "Traceback" not in error


def test_stream_client_names_a_missing_recording_and_a_missing_server(
    run: Run, recordings: list[Path]
) -> None:
    url = "ws://127.0.0.1:9/stream"  # the port of discard, where nothing listens
    for path, words in (("none.wav", "none.wav: "), (recordings[0], "ds2deploy serve MODEL")):
        error = run("stream_client.py", url, path, code=1)
        assert words in error
        assert "Traceback" not in error


def test_stream_microphone_with_a_file(
    run: Run, streaming_onnx: Path, recordings: list[Path], texts: list[str]
) -> None:
    found = run("stream_microphone.py", streaming_onnx, recordings[0], "--speed", 1000)
    assert found.strip() == texts[0]


SOUNDDEVICE = """
import contextlib
import soundfile

class CtrlC:
    def __getitem__(self, _):
        return self
    def copy(self):
        return self
    def __getattr__(self, _):
        raise KeyboardInterrupt

@contextlib.contextmanager
def InputStream(rate, size, channels, callback):
    samples, found = soundfile.read({path!r}, dtype="float32", always_2d=True)
    assert (rate, channels) == (found, 1)
    for start in range(0, len(samples), size):
        callback(samples[start : start + size], size, None, None)
    callback(CtrlC(), size, None, None)
    yield
"""
"""A module in place of sounddevice: its microphone plays a recording, then Ctrl-C is pressed."""


def test_stream_microphone_until_interrupted(
    run: Run,
    streaming_onnx: Path,
    recordings: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples, _ = soundfile.read(recordings[0], dtype="float32")
    (tmp_path / "sounddevice.py").write_text(SOUNDDEVICE.format(path=str(recordings[0])))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = run("stream_microphone.py", streaming_onnx, "--microphone")
    with ds2deploy.load(streaming_onnx, threads=1).stream(RATE) as stream:
        stream.accept(samples)
        assert found.strip() == stream.finish().text


def test_stream_microphone_without_its_package_names_the_remedy(
    run: Run, streaming_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sounddevice.py").write_text("raise ImportError('No module named sounddevice')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    error = run("stream_microphone.py", streaming_onnx, "--microphone", code=1)
    assert "pip install sounddevice" in error
    assert "Traceback" not in error


def test_many_streams(
    run: Run, streaming_onnx: Path, recordings: list[Path], texts: list[str]
) -> None:
    found = run("many_streams.py", streaming_onnx, *recordings).splitlines()
    assert sorted(found) == sorted(
        f"{path}: {text}" for path, text in zip(recordings, texts, strict=True)
    )


def test_hot_words(run: Run, streaming_onnx: Path, recordings: list[Path]) -> None:
    first, second, *others = run(
        "hot_words.py", streaming_onnx, recordings[1], "NINE:3, EIGHT"
    ).splitlines()
    recognizer = ds2deploy.load(streaming_onnx, threads=1, decoder=DecoderConfig(beam=64, nbest=3))
    with_hot_words = recognizer.transcribe(recordings[1], hot_words={"NINE": 3.0, "EIGHT": 0.8})
    assert first.split(maxsplit=1)[1] == recognizer.transcribe(recordings[1]).text
    assert second.split("   (")[0].split(maxsplit=1)[1] == with_hot_words.text
    assert len(others) == len(with_hot_words.alternatives)


def test_onnx_alone(
    run: Run, streaming_onnx: Path, recordings: list[Path], texts: list[str]
) -> None:
    assert [run("onnx_alone.py", streaming_onnx, path).strip() for path in recordings] == texts


def test_onnx_alone_imports_nothing_of_the_project() -> None:
    imports = [
        line.split()[1]
        for line in (EXAMPLES / "onnx_alone.py").read_text().splitlines()
        if line.startswith(("import ", "from "))
    ]
    assert set(imports) == {"json", "sys", "wave", "numpy", "onnxruntime"}


def test_the_list_of_examples_is_whole() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    missing = [path.name for path in EXAMPLES.iterdir() if path.name not in listed]
    assert [name for name in missing if name not in ("README.md", "__pycache__")] == []
