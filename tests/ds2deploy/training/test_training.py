"""Training: it learns, it repeats itself, it resumes, and what it writes can be read."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from rich.console import Console

from ds2deploy.config import Recipe
from ds2deploy.data.epoch_plan import plan_training
from ds2deploy.data.manifest import read_manifest
from ds2deploy.heartbeat import Heartbeat
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.errors import ConfigError, TrainingError
from ds2deploy.training.optimization import learning_rate_factor
from ds2deploy.training.progress import TrainingProgress
from ds2deploy.training.run_folder import RunFolder
from ds2deploy.training.train import train


def losses(run: str | Path) -> list[tuple[int, float]]:
    lines = RunFolder(Path(run)).metrics()
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]


@pytest.mark.thorough
def test_it_learns_a_language_of_tones(tone_recipe: Recipe, tmp_path: Path):
    recipe = tone_recipe.changed("training", epochs=60, learning_rate=1e-2)
    metrics = train(recipe)
    assert metrics["wer"] <= 0.1, metrics
    first, last = losses(tmp_path / "run")[0][1], losses(tmp_path / "run")[-1][1]
    assert last < 0.1 * first

    checkpoint = load_checkpoint(tmp_path / "run" / "best.ckpt")
    assert checkpoint.metrics["wer"] == pytest.approx(metrics["wer"])
    assert checkpoint.recipe == recipe


def test_the_same_seed_gives_the_same_loss_curve(tone_recipe: Recipe, tmp_path: Path):
    recipe = tone_recipe.changed("data", batch_size=4)
    curves = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train(recipe.changed("training", epochs=1, seed=seed, run=str(tmp_path / name)))
        curves.append(losses(tmp_path / name))
    assert len(curves[0]) >= 6
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def test_files_that_a_run_writes(tone_recipe: Recipe, tmp_path: Path):
    metrics = train(tone_recipe.changed("training", epochs=1))
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        "best.ckpt",
        "best.jsonl",
        "last.ckpt",
        "metrics.jsonl",
    ]
    valid = [line for line in RunFolder(run).metrics() if line["kind"] == "valid"]
    assert [line["epoch"] for line in valid] == [1]
    assert {"wer", "cer", "valid_loss", "step", "elapsed_s"} <= valid[0].keys()
    assert metrics["wer"] == valid[0]["wer"]
    for name in ("best.ckpt", "last.ckpt"):
        plain = torch.load(run / name, weights_only=True)
        assert plain["ds2deploy"]["recipe"]["model"]["hidden"] == 16
        load_checkpoint(run / name)
    assert (run / "best.ckpt").stat().st_size < 0.5 * (run / "last.ckpt").stat().st_size


def test_a_training_is_never_overwritten(tone_recipe: Recipe, tmp_path: Path):
    recipe = tone_recipe.changed("training", max_steps=1)
    train(recipe)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"run: .*--resume"):
        train(recipe)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_stopping_within_an_epoch_still_validates(tone_recipe: Recipe, tmp_path: Path):
    metrics = train(tone_recipe.changed("training", max_steps=2))
    assert "wer" in metrics
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2]
    assert (tmp_path / "run" / "last.ckpt").exists()


def test_global_normalisation_gathers_its_statistics(tone_recipe: Recipe, tmp_path: Path):
    features = msgspec.structs.replace(tone_recipe.features, normalize="global")
    train(msgspec.structs.replace(tone_recipe, features=features).changed("training", max_steps=1))
    kept = load_checkpoint(tmp_path / "run" / "best.ckpt").recipe.features
    assert kept.mean is not None
    assert kept.deviation is not None
    assert len(kept.mean) == len(kept.deviation) == 41
    assert min(kept.deviation) > 0


@pytest.mark.parametrize("change", [{"optimizer": "sgd"}, {"precision": "bf16-mixed"}])
def test_optimisers_and_precisions_train(tone_recipe: Recipe, change: dict[str, str]):
    assert train(tone_recipe.changed("training", max_steps=2, **change))["valid_loss"] > 0


@pytest.mark.slow
def test_two_processes(tone_recipe: Recipe, tone_toml: Path, tmp_path: Path):
    """Lightning starts the second by the same command; only the first reports."""
    data = tone_recipe.data
    settings = [
        f"data.train={data.train}", f"data.valid={data.valid}", "training.devices=2",
        "training.epochs=2", f"training.run={tmp_path / 'two'}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "ds2deploy", "train", str(tone_toml), "--json"]
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout)
    lines = RunFolder(tmp_path / "two").metrics()
    valid = [line for line in lines if line["kind"] == "valid"]
    assert [line["epoch"] for line in valid] == [1, 2]
    assert reported["wer"] == min(line["wer"] for line in valid)
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    load_checkpoint(tmp_path / "two" / "last.ckpt")


def test_the_bar_on_a_terminal(tone_recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(
        "ds2deploy.training.train.TrainingProgress",
        lambda epochs, lines, stage: TrainingProgress(epochs, lines, console, stage),
    )
    train(tone_recipe.changed("training", epochs=1))
    assert "training" in screen.getvalue()
    assert "steps  loss" in screen.getvalue()
    assert "WER" in screen.getvalue()


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("join", [(1, 1), pytest.param((1, 3), marks=pytest.mark.slow)])
def test_epochs_of_other_lengths_end_the_schedule_and_the_count_together(
    tone_recipe: Recipe,
    join: tuple[int, int],
    accumulate: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The sorted epoch has fewer batches; joined anew, each has as many as it has."""
    told: list[str] = []
    monkeypatch.setattr(Heartbeat, "tell", lambda _, text: told.append(text))
    epochs = 2 if join == (1, 1) else 4
    recipe = tone_recipe.changed("data", sortagrad=True, batch_size=3, join=join)
    recipe = recipe.changed(
        "training", epochs=epochs, accumulate=accumulate, schedule="one-cycle", log_every=1
    )
    cuts = read_manifest(recipe.data.train)
    batches = [len(plan_training(cuts, recipe, epoch)) for epoch in range(epochs)]
    assert len(set(batches)) > 1, batches
    total = sum(-(-count // accumulate) for count in batches)
    train(recipe)

    lines = [line for line in RunFolder(tmp_path / "run").metrics() if line["kind"] == "train"]
    assert lines[-1]["step"] == total
    rates = [line["learning_rate"] / recipe.training.learning_rate for line in lines]
    assert rates[-1] == pytest.approx(1e-4)
    assert min(rates[:-1]) > 1e-4
    found = re.findall(r"step (\d+) of (\d+)", "\n".join(told))
    shown = [(int(step), int(planned)) for step, planned in found]
    assert all(step <= planned for step, planned in shown)
    assert shown[-1] == (total, total)
    if join == (1, 1):
        assert {planned for _, planned in shown} == {total}


def test_resuming_another_model_is_refused(tone_recipe: Recipe):
    train(tone_recipe.changed("training", epochs=1))
    other = msgspec.structs.replace(
        tone_recipe, features=msgspec.structs.replace(tone_recipe.features, window="hann")
    )
    with pytest.raises(ConfigError, match=r"last\.ckpt: .*hamming.*hann.*--set training\.run="):
        train(other.changed("training", epochs=2), resume=True)


def test_resuming_a_finished_training_is_refused(tone_recipe: Recipe, tmp_path: Path):
    recipe = tone_recipe.changed("training", epochs=2)
    train(recipe)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for epochs in (1, 2):
        with pytest.raises(ConfigError, match=r"last\.ckpt: .*--set training\.epochs=4"):
            train(tone_recipe.changed("training", epochs=epochs), resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert train(tone_recipe.changed("training", epochs=3), resume=True)["epoch"] <= 3


def test_a_training_that_diverges_says_so(tone_recipe: Recipe):
    with pytest.raises(TrainingError, match=r"run: .*training\.learning_rate"):
        train(tone_recipe.changed("training", epochs=1, learning_rate=1e30, schedule="constant"))


def test_one_cycle(tone_recipe: Recipe):
    recipe = tone_recipe.changed("training", schedule="one-cycle", epochs=10, warm_up=0.2)
    factors = [learning_rate_factor(recipe, step, step / 10) for step in range(101)]
    assert factors[0] == pytest.approx(0.04)
    assert max(factors) == pytest.approx(1.0)
    assert factors.index(max(factors)) == 20
    assert factors[100] == pytest.approx(1e-4)
    assert learning_rate_factor(recipe, 500, 50) == pytest.approx(1e-4)


def test_annealing(tone_recipe: Recipe):
    recipe = tone_recipe.changed("training", schedule="anneal", anneal=1.1)
    assert learning_rate_factor(recipe, 9, 0.9) == 1.0
    assert learning_rate_factor(recipe, 20, 2) == pytest.approx(1.1**-2)
