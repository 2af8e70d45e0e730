"""A check that cannot fail is none: each way to break an artifact must be noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ds2deploy.export import verified_onnx
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import DeployModel, lower
from ds2deploy.export.parity.check import check_parity
from ds2deploy.export.parity.reference import BATCHES, FRAMES, Reference, decode_all
from ds2deploy.export.parity.speech import speech_features, synthesize
from ds2deploy.export.verification import verify_artifact
from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.session import TorchSession
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.errors import ParityError
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.geometry import output_length

GRID = {(batch, frames) for batch in (1, 3, 8) for frames in (40, 457, 2000)}


@pytest.mark.slow
def test_the_report_covers_the_grid(digits_onnx: Path, digits_checkpoint: Path):
    """I3 on the trained model: fp32 in ONNX Runtime against PyTorch."""
    report = verify_artifact(digits_onnx, digits_checkpoint)
    assert {(case.batch, case.frames) for case in report.cases} == GRID
    assert all(min(case.lengths) == 1 for case in report.cases if case.batch > 1)
    for case in report.cases:
        assert case.max_difference <= 1e-4, case
        assert case.argmax_share == 1.0, case
        assert case.same_text, case


def test_the_speech_makes_the_network_talk(digits_checkpoint: Path):
    """All blank would agree with anything."""
    checkpoint = load_checkpoint(digits_checkpoint)
    session = TorchSession(checkpoint.network, checkpoint.description())
    speech = speech_features(checkpoint.recipe.features, max(BATCHES), max(FRAMES))
    texts = decode_all(session, speech)
    assert all(len(text) > 20 for text in texts), texts
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
def test_synthetic_speech_is_sound(rate: int):
    sound = synthesize(rate, 2 * rate, seed=3)
    assert sound.shape == (2 * rate,)
    assert sound.dtype == np.float32
    assert 0.05 < np.abs(sound).max() <= 1
    np.testing.assert_array_equal(sound, synthesize(rate, 2 * rate, seed=3))
    features = speech_features(FeatureConfig(sample_rate=rate), 2, 50)
    assert [f.shape[1] for f in features] == [50, 50]


def swap_directions(model: DeployModel) -> DeployModel:
    first, *others = model.recurrences
    swapped = type(first)(*(array[::-1] for array in first))
    return model._replace(recurrences=(swapped, *others))


def forget_the_gate(model: DeployModel) -> DeployModel:
    """The bias back where it usually is: a backward pass then runs through the padding."""
    changed = []
    for weights in model.recurrences:
        W, B = weights.W.copy(), weights.B.copy()
        B[:, : W.shape[1]] += W[:, :, -8]
        W[:, :, -8] = 0
        changed.append(weights._replace(W=W, B=B))
    return model._replace(recurrences=tuple(changed))


def swap_gates(model: DeployModel) -> DeployModel:
    weights = model.recurrences[-1]
    parts = np.split(weights.W, 4, axis=1)
    W = np.concatenate([parts[0], parts[2], parts[1], parts[3]], axis=1)
    return model._replace(recurrences=(*model.recurrences[:-1], weights._replace(W=W)))


def skip_a_batch_norm(model: DeployModel) -> DeployModel:
    return model._replace(output_bias=np.zeros_like(model.output_bias))


def nudge_a_weight(model: DeployModel) -> DeployModel:
    conv = model.convolutions[1]
    return model._replace(
        convolutions=(model.convolutions[0], conv._replace(weight=conv.weight * 1.0005))
    )


@pytest.mark.parametrize(
    "damage", [swap_directions, forget_the_gate, swap_gates, skip_a_batch_norm, nudge_a_weight]
)
def test_damage_is_noticed_and_nothing_is_written(
    damage: Callable[[DeployModel], DeployModel],
    digits_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(
        verified_onnx, "lower", lambda network, columns: damage(lower(network, columns))
    )
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))
    with pytest.raises(ParityError, match=r"digits\.ckpt: .* fp32 artifact differ"):
        export_onnx(digits_checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("units", [0, 3])
def test_units_that_hardly_move_are_counted_where_an_export_fails(
    units: int, digits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoint = load_checkpoint(digits_checkpoint)
    norm = checkpoint.network.get_submodule("rnns.1.batch_norm")
    norm.running_var[:units] = 1e-7
    save_checkpoint(tmp_path / "still.ckpt", checkpoint.network, checkpoint.recipe, {})
    monkeypatch.setattr(
        verified_onnx, "lower", lambda network, columns: nudge_a_weight(lower(network, columns))
    )
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))
    with pytest.raises(ParityError, match=r"still\.ckpt: .* fp32 artifact differ") as caught:
        export_onnx(tmp_path / "still.ckpt", tmp_path / "out")
    assert ("in 3 units" in str(caught.value)) == bool(units)
    assert ("model.norm_eps=0.001" in str(caught.value)) == bool(units)


def test_one_bad_precision_spoils_the_whole_export(
    digits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def build(model: DeployModel, description: ArtifactDescription) -> onnx.ModelProto:
        fp16 = description.precision == "fp16"
        return build_graph(skip_a_batch_norm(model) if fp16 else model, description)

    monkeypatch.setattr(verified_onnx, "build_graph", build)
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))
    with pytest.raises(ParityError, match="the fp16 artifact"):
        export_onnx(digits_checkpoint, tmp_path, ["fp32", "fp16"])
    assert list(tmp_path.iterdir()) == []


class Fixed:
    """Says the same of every frame: two labels, the second less likely by `gap`."""

    runtime = "fixed"
    profile = None
    at_once = None

    def __init__(self, description: ArtifactDescription, first: int, gap: float) -> None:
        self.description = description
        self._frame = np.full(len(description.labels), -20.0, np.float32)
        self._frame[[first, 3 - first]] = [-0.5, -0.5 - gap]

    def run(self, features, lengths):
        time = output_length(features.shape[3])
        log_probs = np.broadcast_to(self._frame, (len(features), time, len(self._frame)))
        return log_probs, (lengths + 1) // 2


@pytest.mark.parametrize(("gap", "passed"), [(4e-6, True), (4e-5, False)])
def test_another_best_label_counts_even_within_the_difference(
    digits_checkpoint: Path, gap: float, passed: bool
):
    """Both are within 1e-4; only what no runtime could order may change places."""
    description = load_checkpoint(digits_checkpoint).description()
    report = check_parity(Fixed(description, 2, gap), Reference(Fixed(description, 1, gap)))
    assert {(case.batch, case.frames) for case in report.cases} == GRID
    assert all(case.argmax_share == 0 for case in report.cases)
    assert report.max_difference < 1e-4
    assert report.passed is passed


def test_nan_is_noticed(digits_checkpoint: Path):
    checkpoint = load_checkpoint(digits_checkpoint)
    reference = TorchSession(checkpoint.network, checkpoint.description())

    class Broken(TorchSession):
        def run(self, features, lengths):
            log_probs, output_lengths = super().run(features, lengths)
            log_probs[-1, 0, 0] = np.nan
            return log_probs, output_lengths

    broken = Broken(checkpoint.network, checkpoint.description())
    report = check_parity(broken, Reference(reference), shapes=[(1, 40), (3, 40)])
    assert [case.passed for case in report.cases] == [False, False]
    assert not report.passed


@pytest.mark.slow
def test_verify_reads_the_file_that_it_is_given(
    digits_onnx: Path, digits_checkpoint: Path, tmp_path: Path
):
    """An artifact that was changed after its export no longer passes."""
    changed = tmp_path / "changed.onnx"
    shutil.copy(digits_onnx, changed)
    model = onnx.load(changed)
    bias = next(t for t in model.graph.initializer if t.name == "output/bias")
    bias.CopyFrom(
        numpy_helper.from_array(
            numpy_helper.to_array(bias) + np.eye(1, 29)[0].astype("f"), bias.name
        )
    )
    onnx.save(model, changed)
    report = verify_artifact(changed, digits_checkpoint)
    assert not report.passed
    assert "shapes exceed the tolerance" in report.failure()
