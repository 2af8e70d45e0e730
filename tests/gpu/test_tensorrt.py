"""Engines on a real GPU: built, verified, run; the stand-in's claims on the real thing.

Run by `make test-gpu`, where TensorRT or TensorRT-RTX and cuda-bindings are installed.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import ds2deploy
from ds2deploy.cli.app import app
from ds2deploy.export.parity.speech import speech_features, speech_waveforms
from ds2deploy.runtimes.engine_description import Flavor
from ds2deploy.runtimes.errors import FeaturesError, RuntimeUnavailableError
from ds2deploy.runtimes.features import FeatureConfig, pad_features
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.runtimes.tensorrt.cuda import NoDeviceError, open_device
from ds2deploy.runtimes.tensorrt.library import import_tensorrt
from ds2deploy.runtimes.tensorrt.rtx_devices import RTX_CAPABILITIES
from ds2deploy.runtimes.tensorrt.session import TensorRtSession

PROFILE = ["--batch", "1,2,4", "--seconds", "0.5,3,10"]


def usable(flavor: Flavor) -> None:
    """Skips with the reason where the GPU or the library is not there."""
    try:
        device = open_device()
        import_tensorrt(flavor)
    except (NoDeviceError, RuntimeUnavailableError) as error:
        pytest.skip(str(error))
    if flavor == "rtx" and device.compute_capability not in RTX_CAPABILITIES:
        pytest.skip(f"TensorRT-RTX knows no GPU of {device.compute_capability}")


def export(checkpoint: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    arguments = ["export", str(checkpoint), "--out", str(out), "--json", *PROFILE, *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    return [item for item in json.loads(result.stdout)["artifacts"] if item["kind"] == "engine"]


@pytest.fixture(scope="module", params=["tensorrt", "rtx"])
def engine(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    digits_checkpoint: Path,
) -> Path:
    """The trained model in fp32, verified on the GPU by the export itself."""
    usable(request.param)
    flag = "--trt" if request.param == "tensorrt" else "--rtx"
    (item,) = export(digits_checkpoint, tmp_path_factory.mktemp(request.param), flag)
    assert item["report"]["passed"]
    assert item["verification"].startswith("engine verified on ")
    return Path(item["path"])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("flavor", ["tensorrt", "rtx"])
def test_reduced_precisions_are_verified_on_the_gpu(
    flavor: Flavor, precision: str, digits_checkpoint: Path, tmp_path: Path
):
    usable(flavor)
    flag = "--trt" if flavor == "tensorrt" else "--rtx"
    (item,) = export(digits_checkpoint, tmp_path, flag, "--precision", precision)
    assert item["report"]["passed"], item


def batch(*frames: int) -> tuple[np.ndarray, np.ndarray]:
    speech = speech_features(FeatureConfig(), len(frames), max(frames))
    return pad_features([s[:, :n] for s, n in zip(speech, frames, strict=True)])


def assert_same(left: Any, right: Any) -> None:
    np.testing.assert_array_equal(left[1], right[1])
    for ours, theirs, length in zip(left[0], right[0], left[1], strict=True):
        np.testing.assert_allclose(ours[:length], theirs[:length], atol=1e-3)


def test_shapes_graphs_and_padding(engine: Path, digits_onnx: Path):
    """Below the profile, in it, again (captured), and again (replayed)."""
    trusted = OnnxSession(digits_onnx)
    with TensorRtSession(engine) as session:
        for frames in ((3,), (20, 1), (400,), (400,), (400,), (900, 30, 400, 1), (400,), (1001,)):
            features, lengths = batch(*frames)
            assert_same(session.run(features, lengths), trusted.run(features, lengths))
        # Whether a network with loops of dynamic length can be captured is the library's to say.
        assert session.cuda_graphs == "on" or session.cuda_graphs.startswith("off: capture failed")
        print(f"{session.runtime}: CUDA graphs {session.cuda_graphs}")


def test_threads(engine: Path, digits_onnx: Path):
    trusted = OnnxSession(digits_onnx)
    batches = [batch(*frames) for frames in ((100,), (300, 40), (77,), (640, 2, 9))]
    expected = [trusted.run(*item) for item in batches]
    with TensorRtSession(engine, contexts=3) as session, ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda i: session.run(*batches[i % 4]), range(64)))
    for i, result in enumerate(results):
        assert_same(result, expected[i % 4])


def test_memory_comes_back(engine: Path):
    runtime = open_device().runtime
    features, lengths = batch(1001, 500, 20, 1)

    def cycle() -> int:
        with TensorRtSession(engine) as session:
            session.run(features, lengths)
        _, free, _ = runtime.cudaMemGetInfo()
        return int(free)

    first = cycle()  # the context of CUDA itself stays
    for _ in range(5):
        last = cycle()
    assert last >= first - (8 << 20)


def test_limits_and_the_interface(engine: Path):
    recognizer = ds2deploy.load(engine)
    with pytest.raises(FeaturesError, match="rebuild the engine with --batch 1,2,5"):
        recognizer.log_probs(*batch(60, 60, 60, 60, 60))
    with pytest.raises(FeaturesError, match=r"this engine accepts 0\.5 to 10 s: split"):
        recognizer.log_probs(*batch(1101))
    sound = np.zeros(25 * 16_000, np.float32)
    assert recognizer.transcribe(sound, 16_000).duration == 25  # in windows
    assert recognizer.transcribe(sound[:1600], 16_000).text == ""


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("flavor", ["tensorrt", "rtx"])
def test_streams(
    flavor: Flavor, precision: str, streaming_checkpoint: Path, streaming_onnx: Path, tmp_path: Path
):
    """Verified by the export; and a pool whose streams come and go says what each says alone."""
    usable(flavor)
    result = CliRunner().invoke(app, [
        "export", str(streaming_checkpoint), "--out", str(tmp_path), "--json", "--streaming",
        "--waveform", "--trt" if flavor == "tensorrt" else "--rtx", "--precision", precision,
        "--batch", "1,4,16",
    ])  # fmt: skip
    assert result.exit_code == 0, result.stderr
    (item,) = [i for i in json.loads(result.stdout)["artifacts"] if i["kind"] == "engine"]
    assert item["report"]["passed"]
    audio = speech_waveforms(FeatureConfig(), 20, 300)
    expected = ds2deploy.load(streaming_onnx).transcribe(audio, 16_000)
    with ds2deploy.load(item["path"]) as recognizer, recognizer.pool() as pool:
        streams = [pool.open() for _ in audio]
        sent = 0
        while any(stream.transcript is None for stream in streams):
            for i, stream in enumerate(streams):
                start = sent - 2000 * i  # each begins later than the one before
                if 0 <= start < len(audio[i]):
                    stream.accept(audio[i][start : start + 4000])
                elif start >= len(audio[i]) and not stream.ended:
                    stream.finish()
            sent += 4000
            pool.tick()
        if precision == "fp32":
            assert [s.transcript.text for s in streams] == [t.text for t in expected]
        print(f"{recognizer.session.runtime}: CUDA graphs {recognizer.session.cuda_graphs}")


@pytest.mark.parametrize("runtime", ["cuda", "tensorrt", "rtx"])
def test_onnxruntimes_providers(runtime: Any, digits_onnx: Path):
    features, lengths = batch(400, 100)
    try:
        recognizer = ds2deploy.load(digits_onnx, runtime=runtime)
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    left, right = (
        recognizer.log_probs(features, lengths),
        OnnxSession(digits_onnx).run(features, lengths),
    )
    np.testing.assert_array_equal(left[1], right[1])
    # TensorRT's providers have no switch for TF32.
    tolerance = 2e-4 if runtime == "cuda" else 5e-2
    np.testing.assert_allclose(left[0][0], right[0][0], atol=tolerance)
