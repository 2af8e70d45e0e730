"""What needs an NVIDIA GPU: the same numbers there. Run by `make test-gpu`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import ds2deploy
from ds2deploy.cli.app import app
from ds2deploy.data.batches import Batch
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.parity.check import check_parity
from ds2deploy.export.parity.reference import Reference
from ds2deploy.export.parity.speech import speech_features, speech_waveforms
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.precision import FLOAT32
from ds2deploy.model.session import TorchSession
from ds2deploy.runtimes.artifact import Precision
from ds2deploy.runtimes.features import FeatureConfig, pad_features
from ds2deploy.runtimes.onnx.library import import_onnxruntime
from ds2deploy.runtimes.onnx.obstacles import obstacle
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.training.optimization import ctc_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


def batch(lengths: tuple[int, ...]) -> Batch:
    speech = speech_features(FeatureConfig(), len(lengths), max(lengths))
    features, counts = pad_features([s[:, :n] for s, n in zip(speech, lengths, strict=True)])
    targets = torch.randint(1, 29, (5 * len(lengths),))
    return Batch(
        torch.from_numpy(features),
        torch.from_numpy(counts),
        targets,
        torch.full((len(lengths),), 5),
        [""] * len(lengths),
    )


def test_log_probs_and_loss_equal_the_cpus(digits_checkpoint: Path):
    """Packed sequences through cuDNN against the unpacked layers of the CPU; CTC on both."""
    network = load_checkpoint(digits_checkpoint).network
    data = batch((300, 120, 41, 1))
    results = []
    for device in ("cpu", "cuda"):
        network.to(device)
        moved = Batch(*(x.to(device) if isinstance(x, torch.Tensor) else x for x in data))
        with FLOAT32.on():
            log_probs, lengths = network(moved.features, moved.lengths)
        results.append((log_probs.cpu().detach(), float(ctc_loss(log_probs, lengths, moved))))
    valid = (torch.arange(150) < ((data.lengths + 1) // 2)[:, None])[:, :, None]
    torch.testing.assert_close(results[1][0] * valid, results[0][0] * valid, atol=2e-3, rtol=2e-3)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_training_steps_lower_the_loss(digits_checkpoint: Path, precision: str):
    """16-mixed skips the first steps: the loss is scaled by 65536, then by less."""
    import lightning

    checkpoint = load_checkpoint(digits_checkpoint)
    fabric = lightning.Fabric(accelerator="gpu", devices=1, precision=precision)
    network = checkpoint.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4)
    network, optimizer = fabric.setup(network, optimizer)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    moved = Batch(*(x.cuda() if isinstance(x, torch.Tensor) else x for x in batch((300, 120))))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = ctc_loss(*network(moved.features, moved.lengths), moved)
        fabric.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    after = list(network.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert not all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.fixture(scope="module")
def cuda_provider() -> None:
    """ONNX Runtime on CUDA, or the reason why not."""
    try:
        hindrance = obstacle(import_onnxruntime(), "cuda")
    except ImportError as error:
        pytest.skip(str(error))
    if hindrance is not None:
        pytest.skip(f"{hindrance.reason}: {hindrance.remedy}")


@pytest.mark.usefixtures("cuda_provider")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_cuda_passes_the_parity_check(
    digits_checkpoint: Path, tmp_path: Path, precision: Precision
):
    """Without TF32, which is the provider's default: fp32 was 1.07e-2 off with it."""
    path = export_onnx(digits_checkpoint, tmp_path, (precision,))[0].path
    checkpoint = load_checkpoint(digits_checkpoint)
    reference = TorchSession(checkpoint.network, checkpoint.description())
    report = check_parity(OnnxSession(path, device="cuda"), Reference(reference))
    assert report.passed, report.failure()
    if precision == "fp32":
        assert report.max_difference < 2e-4
        assert all(case.argmax_share > 0.999 for case in report.cases)


@pytest.mark.usefixtures("cuda_provider")
def test_a_streaming_artifact_equals_the_cpus_block_by_block(streaming_onnx: Path):
    audio = speech_waveforms(FeatureConfig(), 3, 300)
    lengths = np.array([len(sound) for sound in audio], np.int64)
    sound = np.zeros((len(audio), lengths.max()), np.float32)
    for row, samples in zip(sound, audio, strict=True):
        row[: len(samples)] = samples
    there, here = (
        OnnxSession(streaming_onnx, device=device).run(sound, lengths) for device in ("cuda", "cpu")
    )
    np.testing.assert_array_equal(there[1], here[1])
    for ours, theirs, length in zip(there[0], here[0], here[1], strict=True):
        np.testing.assert_allclose(ours[:length], theirs[:length], atol=2e-4)


@pytest.mark.usefixtures("cuda_provider")
def test_streams_say_the_same_after_every_block(streaming_onnx: Path):
    (audio,) = speech_waveforms(FeatureConfig(), 1, 500)
    heard = []
    for runtime in ("onnxruntime", "cuda"):
        with ds2deploy.load(streaming_onnx, runtime=runtime) as recognizer:
            stream = recognizer.stream()
            updates = [stream.accept(audio[i : i + 5120]) for i in range(0, len(audio), 5120)]
            heard.append(([update.stable for update in updates], stream.finish().text))
    assert heard[0] == heard[1]


@pytest.mark.usefixtures("cuda_provider")
@pytest.mark.parametrize("runtime", ["cuda", "torch"])
def test_the_command_line_prints_the_cpus_texts(
    runtime: str, digits_checkpoint: Path, digits_onnx: Path, tmp_path: Path
):
    paths = [tmp_path / f"{i}.wav" for i in range(4)]
    for path, sound in zip(paths, speech_waveforms(FeatureConfig(), 4, 300), strict=True):
        soundfile.write(path, sound, 16_000)
    model, device = (digits_onnx, "cuda") if runtime == "cuda" else (digits_checkpoint, "cuda")
    texts = []
    for options in ([], ["--runtime", runtime, "--device", device]):
        words = ["transcribe", str(model), *map(str, paths), "--json", *options]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.stderr
        transcripts = json.loads(result.stdout)["transcripts"]
        texts.append([transcript["text"] for transcript in transcripts])
    assert texts[0] == texts[1]


@pytest.mark.usefixtures("cuda_provider")
def test_a_session_on_cuda_says_nothing_on_stderr(
    digits_onnx: Path, capfd: pytest.CaptureFixture[str]
):
    """ONNX Runtime 1.31 warned of a plugin's device that nobody had asked for."""
    OnnxSession(digits_onnx, device="cuda")
    assert capfd.readouterr() == ("", "")


def test_load_on_cuda(digits_checkpoint: Path):
    sound = speech_features(FeatureConfig(), 1, 200)[0]
    results = [
        ds2deploy.load(digits_checkpoint, device=device).log_probs(*pad_features([sound]))[0]
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(results[1], results[0], atol=1e-3)


def test_a_session_leaves_torchs_switches_as_they_were(digits_checkpoint: Path):
    before = torch.backends.cudnn.allow_tf32
    sound = speech_features(FeatureConfig(), 1, 200)[0]
    ds2deploy.load(digits_checkpoint, device="cuda").log_probs(*pad_features([sound]))
    assert torch.backends.cudnn.allow_tf32 == before
