"""examples/triton_client.py against a server that stands in for Triton."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ds2deploy.export.parity.speech import synthesize
from ds2deploy.export.triton.repository import TritonOptions, write_model
from ds2deploy.runtimes.files import WholeFiles
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.runtimes.recognizer import Recognizer

pytest.importorskip("tritonclient", reason="the extra triton is not installed")

ROOT = Path(__file__).resolve().parents[3]
MODELS = {"offline": "whole", "streaming": "blocks", "streaming waveform": "sound"}


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def client() -> Any:
    return load(ROOT / "examples" / "triton_client.py")


@pytest.fixture(scope="module")
def server(
    make_served: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    repository = tmp_path_factory.mktemp("repository")
    options = TritonOptions(repository=str(repository))
    with WholeFiles() as files:
        for kind, name in MODELS.items():
            served = make_served(kind)
            described = served.description
            write_model(served.path, f"{name}.onnx", served.path, described, options, files)
    with load(Path(__file__).with_name("triton_standin.py")).serving(repository) as found:
        yield found


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of several lengths, one at another rate."""
    folder = tmp_path_factory.mktemp("recordings")
    paths = []
    for i, (rate, seconds) in enumerate(
        [(16_000, 0.7), (8_000, 1.1), (16_000, 2.3), (16_000, 1.9)]
    ):
        paths.append(folder / f"{i}.wav")
        soundfile.write(paths[-1], synthesize(rate, int(rate * seconds), seed=i), rate)
    return paths


@pytest.mark.parametrize("kind", [*MODELS])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_text_is_that_of_the_artifact(
    client: Any,
    server: Any,
    recordings: list[Path],
    make_served: Callable[[str], Any],
    kind: str,
    protocol: str,
    capsys: pytest.CaptureFixture[str],
):
    url = server[0] if protocol == "http" else server[1]
    options = ["--url", url, *(["--grpc"] if protocol == "grpc" else []), "--threads", "4"]
    code = client.main([MODELS[kind], *map(str, recordings), *options])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    direct = Recognizer(OnnxSession(make_served(kind).path))
    expected = [f"{path}: {direct.transcribe(path).text}" for path in recordings]
    assert captured.out.splitlines() == expected
    assert any(line.split(": ")[1] for line in expected)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_stream_begins_and_ends_once(
    client: Any, server: Any, recordings: list[Path], protocol: str,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    http, grpc, models = server
    models["sound"].parts.clear()
    address = ["--url", http] if protocol == "http" else ["--url", grpc, "--grpc"]
    assert client.main(["sound", str(recordings[2]), "--live", *address]) == 0
    parts = models["sound"].parts
    assert len({part.id for part in parts}) == 1
    assert [part.start for part in parts] == [True, *[False] * (len(parts) - 1)]
    assert [part.end for part in parts] == [*[False] * (len(parts) - 1), True]
    captured = capsys.readouterr()
    assert captured.err  # text while it grows
    assert captured.out


def test_errors_of_the_server_are_one_line(
    client: Any, server: Any, recordings: list[Path], capsys: pytest.CaptureFixture[str]
):
    for address in (["--url", server[0]], ["--url", server[1], "--grpc"]):
        assert client.main(["nothing", str(recordings[0]), *address]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "nothing" in line


@pytest.mark.parametrize("model", ["whole", "sound"])
def test_a_missing_recording_is_named(
    client: Any, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
):
    assert client.main([model, str(tmp_path / "none.wav"), "--url", server[0]]) == 2
    assert "none.wav" in capsys.readouterr().err


def test_a_request_of_another_shape_is_refused_by_the_server(client: Any, server: Any):
    session = client.connect("whole", server[0])
    with pytest.raises(client.InferenceServerException, match="features"):
        session._infer({"features": np.zeros((1, 1, 7, 5), np.float32),
                        "lengths": np.ones((1, 1), np.int64)}, ("log_probs",), None)  # fmt: skip
