"""A teacher, a compressed start and the trace norm: what they change, and what they refuse."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ds2deploy.compression.compress import compress
from ds2deploy.compression.low_rank import factor_inputs
from ds2deploy.config import Recipe
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.network import DeepSpeech2
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.training.run_folder import RunFolder
from ds2deploy.training.teacher import distillation_loss, trace_norm
from ds2deploy.training.train import train


def losses(run: Path) -> list[tuple[int, float]]:
    lines = RunFolder(run).metrics()
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]


@pytest.fixture
def taught(tone_recipe: Recipe, made_once: Callable[..., Path], tmp_path: Path) -> Recipe:
    """Recipe that starts from a compressed network, with the whole one as the teacher."""

    def write(folder: Path) -> None:
        train(tone_recipe.changed("training", epochs=1, run=str(folder / "teacher")))
        compress(folder / "teacher" / "best.ckpt", folder / "small.ckpt", speed=1.5)

    shutil.copytree(made_once("teacher", write), tmp_path, dirs_exist_ok=True)
    teacher, small = tmp_path / "teacher", tmp_path / "small.ckpt"
    return tone_recipe.changed(
        "training", start=str(small), teacher=str(teacher / "best.ckpt"), epochs=2
    )


def test_compressed_start_is_trained_in_its_sizes(taught: Recipe, tmp_path: Path, capsys):
    train(taught.changed("training", max_steps=2))
    shape = load_checkpoint(tmp_path / "small.ckpt").recipe.model
    assert load_checkpoint(tmp_path / "run" / "best.ckpt").recipe.model == shape
    assert shape != taught.model
    assert "model.maps" in capsys.readouterr().err


def test_resuming_with_a_teacher_changes_nothing(taught: Recipe, tmp_path: Path):
    taught = taught.changed("training", trace_norm=1e-3, schedule="constant")
    whole = taught.changed("training", run=str(tmp_path / "whole"))
    train(whole)
    train(taught.changed("training", max_steps=2))
    train(taught.changed("training", max_steps=None), resume=True)
    curve = losses(tmp_path / "whole")
    assert len(curve) > 4
    assert losses(tmp_path / "run")[:2] == curve[:2]


def test_teacher_and_trace_norm_reach_the_loss(taught: Recipe, tmp_path: Path):
    curves = []
    for name, values in (
        ("both", {"trace_norm": 1e-2}),
        ("lighter", {"teacher_weight": 0.5}),
        ("alone", {"teacher": ""}),
    ):
        run = tmp_path / name
        train(taught.changed("training", max_steps=1, run=str(run), **values))
        curves.append(losses(run)[0][1])
    assert curves[0] > curves[1] > curves[2]


def test_another_teacher_is_refused_on_resuming(taught: Recipe, tmp_path: Path):
    train(taught.changed("training", max_steps=1))
    for teacher in (str(tmp_path / "small.ckpt"), ""):
        with pytest.raises(ConfigError, match=r"training\.teacher.*--set training\.run="):
            train(taught.changed("training", teacher=teacher), resume=True)


def test_teacher_of_other_features_or_labels_is_refused(taught: Recipe):
    with pytest.raises(ConfigError, match=r"training\.teacher = .*window"):
        train(taught.changed("features", window="hann"))
    import msgspec

    with pytest.raises(ConfigError, match=r"labels"):
        train(msgspec.structs.replace(taught.changed("training", start=""), labels="_ABCDE "))


def test_divergence_counts_valid_frames_alone():
    torch.manual_seed(0)
    ours, theirs = (torch.randn(2, 5, 4).log_softmax(2) for _ in range(2))
    lengths = torch.tensor([5, 3])
    rows = [
        (theirs[i, t].exp() * (theirs[i, t] - ours[i, t])).sum()
        for i, length in enumerate(lengths)
        for t in range(length)
    ]
    assert distillation_loss(ours, theirs, lengths) == pytest.approx(float(sum(rows)), rel=1e-5)
    assert distillation_loss(theirs, theirs, lengths) == pytest.approx(0, abs=1e-5)


def test_trace_norm_of_balanced_factors_is_that_of_the_whole():
    torch.manual_seed(0)
    network = DeepSpeech2(ModelShape(hidden=12, layers=1, bidirectional=True)).eval()
    with torch.no_grad():  # every input varies as much, so that the factors are not weighed
        network.conv.layers[4].weight.fill_(1)
    factored = factor_inputs(network, [96])
    scale = factored.rnns[0].projection
    expected = float(trace_norm(network))
    outer, inner = factored.rnns[0].rnn, scale
    q, _ = torch.linalg.qr(torch.randn(96, 96))
    before = float(trace_norm(factored))
    with torch.no_grad():
        # An orthogonal change of basis between the factors leaves the norm as it is.
        inner.weight.copy_(q.T @ inner.weight)
        for end in ("", "_reverse"):
            weight = getattr(outer, "weight_ih_l0" + end)
            weight.copy_(weight @ q)
    assert float(trace_norm(factored)) == pytest.approx(before, rel=1e-4)
    assert before >= expected * (1 - 1e-4)
