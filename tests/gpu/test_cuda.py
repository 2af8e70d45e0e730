"""What needs an NVIDIA GPU: the same numbers there. Run by `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ds2deploy
from ds2deploy.checkpoint import load_checkpoint
from ds2deploy.data import Batch
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.parity import check_parity
from ds2deploy.export.reference import Reference
from ds2deploy.export.speech import speech_features
from ds2deploy.lightning_module import ctc_loss
from ds2deploy.runtimes.features import FeatureConfig, pad_features
from ds2deploy.runtimes.onnx_session import OnnxSession
from ds2deploy.runtimes.torch_session import TorchSession

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
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    network = load_checkpoint(digits_checkpoint).network
    data = batch((300, 120, 41, 1))
    results = []
    for device in ("cpu", "cuda"):
        network.to(device)
        moved = Batch(*(x.to(device) if isinstance(x, torch.Tensor) else x for x in data))
        log_probs, lengths = network(moved.features, moved.lengths)
        results.append((log_probs.cpu().detach(), float(ctc_loss(log_probs, lengths, moved))))
    valid = (torch.arange(150) < ((data.lengths + 1) // 2)[:, None])[:, :, None]
    torch.testing.assert_close(results[1][0] * valid, results[0][0] * valid, atol=2e-3, rtol=2e-3)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_a_training_step(digits_checkpoint: Path, precision: str):
    import lightning

    checkpoint = load_checkpoint(digits_checkpoint)
    fabric = lightning.Fabric(accelerator="gpu", devices=1, precision=precision)
    network = checkpoint.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    network, optimizer = fabric.setup(network, optimizer)
    moved = Batch(*(x.cuda() if isinstance(x, torch.Tensor) else x for x in batch((300, 120))))
    loss = ctc_loss(*network(moved.features, moved.lengths), moved)
    fabric.backward(loss)
    assert np.isfinite(loss.item())
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_onnxruntime_cuda(digits_checkpoint: Path, tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider: pip install 'ds2deploy[gpu]'")
    path = export_onnx(digits_checkpoint, tmp_path)[0].path
    checkpoint = load_checkpoint(digits_checkpoint)
    reference = TorchSession(checkpoint.network, checkpoint.description())
    report = check_parity(OnnxSession(path, device="cuda"), Reference(reference))
    assert report.max_difference < 1e-2  # cuDNN's convolutions may use TF32
    assert all(case.argmax_share > 0.999 for case in report.cases)


def test_load_on_cuda(digits_checkpoint: Path):
    sound = speech_features(FeatureConfig(), 1, 200)[0]
    results = [
        ds2deploy.load(digits_checkpoint, device=device).log_probs(*pad_features([sound]))[0]
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(results[1], results[0], atol=5e-2)
