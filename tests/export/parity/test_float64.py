"""Parity against the network in float64, and PyTorch's own rounding beside it.

A fixed tolerance refuses an artifact that is as good as PyTorch; one that grows with PyTorch's own
rounding must still notice everything that is wrong.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.config import Recipe
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.format import ExportFormat
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import DeployModel, lower
from ds2deploy.export.parity.check import check_parity
from ds2deploy.export.parity.reference import FRAMES, Reference
from ds2deploy.export.parity.report import (
    MOST,
    PYTORCH_TIMES,
    TOLERANCES,
    ParityReport,
    tolerance_for,
)
from ds2deploy.export.parity.speech import speech_features
from ds2deploy.export.tensorrt.engines import _pytorch_difference
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.model.checkpoint import Checkpoint, save_checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.network import DeepSpeech2
from ds2deploy.model.streaming import exact_session, torch_session
from ds2deploy.runtimes.artifact import ArtifactDescription, ModelShape, WeightsSource
from ds2deploy.runtimes.features import FeatureConfig, pad_features
from ds2deploy.runtimes.onnx.metadata import read_onnx_description
from ds2deploy.runtimes.onnx.session import OnnxSession

FEATURES = FeatureConfig(sample_rate=8000)
SHAPES = [(1, 40), (3, 200)]


def settled_network(shape: ModelShape, gain: float = 1.0) -> DeepSpeech2:
    """Random weights that answer speech with many labels: batch norms know its statistics.

    Args:
        shape: shape of the network.
        gain: factor of the recurrent weights; above 2 a tanh RNN amplifies its rounding.
    """
    torch.manual_seed(0)
    network = DeepSpeech2(shape, FEATURES.bins).train()
    with torch.no_grad():
        network.output.weight.mul_(6)
        for name, parameter in network.rnns.named_parameters():
            if "weight_hh" in name:
                parameter.mul_(gain)
            if ".rnn.bias" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                module.momentum = 1.0
        network(*map(torch.from_numpy, pad_features(speech_features(FEATURES, 3, 300))))
    return network.eval()


def checkpoint_of(network: DeepSpeech2) -> Checkpoint:
    return Checkpoint(
        network=network,
        recipe=Recipe(model=network.shape, features=FEATURES),
        source=WeightsSource(name="settled.ckpt", sha256="0" * 64, kind="ds2deploy"),
    )


def reference_of(checkpoint: Checkpoint) -> Reference:
    return Reference(torch_session(checkpoint), exact=exact_session(checkpoint))


def compare(
    checkpoint: Checkpoint, reference: Reference, folder: Path, damage: Any = lambda model: model
) -> ParityReport:
    """Check the parity of an artifact that is damaged before it is written."""
    path = folder / "model.onnx"
    description = checkpoint.description()
    onnx.save(build_graph(damage(lower(checkpoint.network)), description), path)
    return check_parity(OnnxSession(path, description=description), reference, shapes=SHAPES)


def amplifying_network(layers: int, rounding: float) -> DeepSpeech2:
    """A tanh RNN whose weights are scaled until PyTorch is far enough from float64.

    Twice as far, because other batches round otherwise, as other processors do.
    """
    gain = 1.5
    while True:
        network = settled_network(ModelShape(rnn="rnn", hidden=96, layers=layers), gain)
        checkpoint = checkpoint_of(network)
        sessions = torch_session(checkpoint), exact_session(checkpoint)
        for speech in grid_speech():
            rounded, exact = (s.run(*pad_features([speech[:, :200]]))[0] for s in sessions)
            if np.abs(rounded - exact).max() > 2 * rounding:
                return network
        gain *= 1.05


@functools.cache
def grid_speech() -> list[np.ndarray]:
    """The utterances of batches of three, as an export makes them."""
    return speech_features(FEATURES, 3, max(FRAMES))


@pytest.mark.parametrize(
    ("layers", "rounding"),
    [
        (2, 5e-5),
        pytest.param(3, 5e-5, marks=pytest.mark.slow),
        pytest.param(3, 1e-4, marks=pytest.mark.slow),
        pytest.param(5, 5e-5, marks=pytest.mark.slow),
    ],
)
def test_an_rnn_that_amplifies_rounding_is_exported(
    layers: int, rounding: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 200))
    monkeypatch.setattr("ds2deploy.export.parity.check.BATCHES", (1, 3))
    network = amplifying_network(layers, rounding)
    path = tmp_path / "rnn.ckpt"
    save_checkpoint(path, network, checkpoint_of(network).recipe, {})
    [exported] = export_onnx(path, tmp_path / "out")
    [waveform] = export_onnx(path, tmp_path / "out", export_format=ExportFormat(waveform=True))
    assert waveform.report.passed
    report = exported.report
    assert report.passed
    assert report.pytorch_difference is not None
    assert report.pytorch_difference > rounding
    assert report.tolerance.log_probs == PYTORCH_TIMES * report.pytorch_difference
    assert report.tolerance.log_probs < MOST
    stored = read_onnx_description(Path(exported.path)).parity
    assert stored is not None
    assert stored["pytorch_difference"] == report.pytorch_difference
    assert stored["reference"] == "torch cpu float64"
    # A check that allows more still notices everything.
    checkpoint = load_checkpoint(path)
    reference = reference_of(checkpoint)
    for damage in (swap_directions, forget_a_bias, *scale_matrices(layers)):
        assert not compare(checkpoint, reference, tmp_path, damage).passed, damage


def replaced(model: DeployModel, layer: int, **arrays: Any) -> DeployModel:
    changed = list(model.recurrences)
    changed[layer] = changed[layer]._replace(**arrays)
    return model._replace(recurrences=tuple(changed))


def swap_gates(model: DeployModel) -> DeployModel:
    """PyTorch's order where ONNX has its own."""
    W = model.recurrences[-1].W
    parts = np.split(W, 4 if model.shape.rnn == "lstm" else 3, axis=1)
    swapped = [parts[0], parts[2], parts[1], *parts[3:]]
    return replaced(model, -1, W=np.concatenate(swapped, axis=1))


def swap_directions(model: DeployModel) -> DeployModel:
    return replaced(model, 0, **{k: v[::-1] for k, v in model.recurrences[0]._asdict().items()})


def forget_a_bias(model: DeployModel) -> DeployModel:
    """Zero the last layer's: a column of an LSTM or a tanh RNN, in a GRU beside its weights."""
    weights = model.recurrences[-1]
    W = weights.W.copy()
    if model.shape.rnn != "gru":
        W[:, :, -8] = 0
    return replaced(model, -1, W=W, B=np.zeros_like(weights.B))


def scale_matrices(layers: int) -> list[Callable[[DeployModel], DeployModel]]:
    """Each matrix of the first and of the last layer by a thousandth too large."""

    def scaled(layer: int, name: str) -> Callable[[DeployModel], DeployModel]:
        def damage(model: DeployModel) -> DeployModel:
            matrix = getattr(model.recurrences[layer], name) * np.float32(1.001)
            return replaced(model, layer, **{name: matrix})

        return damage

    return [scaled(layer, name) for layer in (0, layers - 1) for name in ("W", "R")]


@pytest.mark.parametrize("layers", [1, 2, pytest.param(3, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("rnn", ["lstm", "gru", "rnn"])
def test_every_damage_is_noticed_and_one_at_every_size(rnn: Any, layers: int, tmp_path: Path):
    checkpoint = checkpoint_of(settled_network(ModelShape(rnn=rnn, hidden=48, layers=layers)))
    reference = reference_of(checkpoint)
    assert compare(checkpoint, reference, tmp_path).passed
    damages = [forget_a_bias if rnn == "rnn" else swap_gates]
    if layers == 2:
        damages = [swap_directions, forget_a_bias, *scale_matrices(layers), *damages]
    for damage in damages:
        report = compare(checkpoint, reference, tmp_path, damage)
        assert not report.passed, (damage, report)


def test_a_network_that_answers_by_chance_is_not_verified(tmp_path: Path):
    """Rounding grows without bound in it, and four times that would pass anything."""
    shape = ModelShape(rnn="rnn", hidden=96, layers=3)
    checkpoint = checkpoint_of(settled_network(shape, gain=4.0))
    report = compare(checkpoint, reference_of(checkpoint), tmp_path)
    assert report.pytorch_difference is not None
    assert report.pytorch_difference > 1
    assert report.tolerance.log_probs == MOST
    assert not report.passed
    assert "PyTorch's float32" in report.failure()


@pytest.mark.parametrize(
    ("own", "log_probs", "tie"),
    [
        (None, 1e-4, 1e-5),
        (0.0, 1e-4, 1e-5),
        (1e-5, 1e-4, 4e-5),
        (1e-4, 4e-4, 4e-4),
        (9, MOST, MOST),
    ],
)
def test_the_tolerance_of_fp32(own: float | None, log_probs: float, tie: float):
    tolerance = tolerance_for("fp32", own)
    assert tolerance.log_probs == pytest.approx(log_probs)
    assert tolerance.tie == pytest.approx(tie)
    assert tolerance_for("fp16", own) == TOLERANCES["fp16"]


def test_the_reference_is_in_float64(digits_checkpoint: Path):
    """The same network in double, unpacked and alone; PyTorch's float32 is close, and not it."""
    checkpoint = load_checkpoint(digits_checkpoint)
    reference = reference_of(checkpoint)
    exact = reference.log_probs(0, 120)
    assert exact.dtype == np.float64
    features, lengths = pad_features([reference.utterance(0, 120)])
    double = load_checkpoint(digits_checkpoint).network.double()
    with torch.inference_mode():
        expected = double(torch.from_numpy(features).double(), torch.from_numpy(lengths))[0][0]
    np.testing.assert_allclose(exact, expected.numpy(), rtol=0, atol=1e-12)
    own = reference.pytorch_difference(0, 120)
    assert own is not None
    assert 0 < own < 1e-4
    # The checkpoint's own network stays as it was.
    assert next(checkpoint.network.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("parity", "expected"),
    [
        (None, None),
        ({"passed": True}, None),
        ({"passed": True, "pytorch_difference": None}, None),
        ({"passed": True, "pytorch_difference": "x"}, None),
        ({"passed": True, "pytorch_difference": float("nan")}, None),
        ({"passed": True, "pytorch_difference": -1.0}, None),
        ({"passed": True, "pytorch_difference": 6e-5}, 6e-5),
    ],
)
def test_an_engine_of_an_onnx_file_has_that_files_tolerance(
    parity: Any, expected: float | None, small_checkpoint: Path
):
    description = load_checkpoint(small_checkpoint).description()
    described = msgspec.structs.replace(description, parity=parity)
    assert _pytorch_difference(described) == expected


def test_verify_and_inspect_report_both_distances(
    digits_onnx: Path, digits_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))
    run = CliRunner().invoke
    verified = run(app, ["verify", str(digits_onnx), str(digits_checkpoint), "--json"])
    assert verified.exit_code == 0, verified.stderr
    report = json.loads(verified.stdout)
    assert 0 < report["pytorch_difference"] < 1e-4
    cases = report["cases"]
    assert max(case["pytorch_difference"] for case in cases) == report["pytorch_difference"]
    assert report["reference"] == "torch cpu float64"
    inspected = run(app, ["inspect", str(digits_onnx)])
    assert "float64" in inspected.stdout


def test_an_artifact_of_an_older_release_still_loads(
    small_onnx: Path, tmp_path: Path, digits_onnx: Path
):
    """The report of an older release lacks PyTorch's own distance."""
    description = read_onnx_description(digits_onnx)
    assert description.parity is not None
    parity = {k: v for k, v in description.parity.items() if k not in NEW}
    parity["cases"] = [{k: v for k, v in case.items() if k not in NEW} for case in parity["cases"]]
    old = tmp_path / "old.onnx"
    old.write_bytes(small_onnx.read_bytes())
    append_description(old, _with_parity(read_onnx_description(small_onnx), parity))
    result = CliRunner().invoke(app, ["inspect", str(old)])
    assert result.exit_code == 0, result.stderr
    assert "log-probabilities within" in result.stdout
    assert "float64" not in result.stdout


NEW = ("pytorch_difference", "reference")


def _with_parity(description: ArtifactDescription, parity: dict[str, Any]) -> ArtifactDescription:
    return msgspec.structs.replace(description, parity=parity)
