"""The plan of an epoch: every utterance once, the same batches for any number of processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut

from ds2deploy.config import Recipe
from ds2deploy.data.batches import Batches, SpeechDataset, training_batches
from ds2deploy.data.cuts import transcript
from ds2deploy.data.epoch_plan import large_enough, plan_evaluation, plan_training, process_batches
from ds2deploy.data.manifest import read_manifest
from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.weights import build_network
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.training.run_folder import RunFolder
from ds2deploy.training.train import train

DURATIONS = st.lists(st.floats(0.1, 20), min_size=8, max_size=80)


def cuts_of(durations: list[float]) -> CutSet:
    return CutSet.from_cuts(
        MonoCut(id=f"u{i}", start=0, duration=duration, channel=0)
        for i, duration in enumerate(durations)
    )


def recipe_with(data: dict[str, Any]) -> Recipe:
    return msgspec.convert({"data": data}, Recipe)


@given(DURATIONS, st.integers(1, 4), st.integers(1, 9), st.sampled_from([None, 5.0, 60.0]))
def test_every_utterance_once_whatever_the_processes(durations, processes, batch_size, seconds):
    recipe = recipe_with({"batch_size": batch_size, "batch_duration_s": seconds})
    plan = plan_training(cuts_of(durations), recipe, 3, processes)
    parts = [process_batches(plan, rank, processes) for rank in range(processes)]
    assert {len(part) for part in parts} == {len(plan)}
    for batch, *of_ranks in zip(plan, *parts, strict=True):
        ids = [cut.id for share in of_ranks for cut in share.cuts]
        assert sorted(ids) == sorted(cut.id for cut in batch)
        # A mean over the processes of sums so scaled is the mean over the batch.
        assert all(share.scale == processes / len(batch) for share in of_ranks)
    everything = [cut.id for batch in plan for cut in batch]
    assert sorted(everything) == sorted(f"u{i}" for i in range(len(durations)))


@given(DURATIONS, st.integers(1, 6))
def test_two_processes_have_the_batches_of_one_with_twice_the_size(durations, batch_size):
    cuts = cuts_of(durations)
    twice = plan_training(cuts, recipe_with({"batch_size": 2 * batch_size}), 1)
    both = plan_training(cuts, recipe_with({"batch_size": batch_size}), 1, processes=2)
    ids = [[cut.id for cut in batch] for batch in both]
    assert ids == [[cut.id for cut in batch] for batch in large_enough(twice, 2)]


@given(DURATIONS, st.integers(1, 5))
def test_an_evaluation_has_every_utterance_once(durations, processes):
    plan = plan_evaluation(cuts_of(durations), recipe_with({"batch_size": 3}), processes)
    parts = [process_batches(plan, rank, processes) for rank in range(processes)]
    ids = [cut.id for part in parts for share in part for cut in share.cuts]
    assert sorted(ids) == sorted(f"u{i}" for i in range(len(durations)))


@given(DURATIONS, st.integers(1, 3))
def test_an_evaluation_keeps_to_the_seconds_of_a_batch(durations, processes):
    recipe = recipe_with({"batch_size": 50, "batch_duration_s": 30.0})
    plan = plan_evaluation(cuts_of(durations), recipe, processes)
    ids = [cut.id for batch in plan for cut in batch]
    assert sorted(ids) == sorted(f"u{i}" for i in range(len(durations)))
    for batch in plan:
        # More only where it could not be shared otherwise, or for the last few.
        enough = sum(cut.duration for cut in batch[:-processes]) <= 30.0 * processes
        assert enough or len(batch) <= 2 * processes


def test_more_processes_than_utterances_to_validate_with():
    with pytest.raises(ConfigError, match=r"data\.valid = : 2 utterances for 3 processes"):
        plan_evaluation(cuts_of([1.0, 2.0]), Recipe(), 3)


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=5), min_size=3), st.integers(1, 3))
def test_small_batches_go_into_others(batches: Any, least: int):
    found = large_enough(batches, least)
    assert [item for batch in found for item in batch] == [i for batch in batches for i in batch]
    assert min(map(len, found)) >= least


def test_the_first_epoch_may_go_by_length():
    """SortaGrad; the second is shuffled."""
    cuts = cuts_of([float(1 + (7 * i) % 40) for i in range(40)])
    recipe = recipe_with({"batch_size": 4, "sortagrad": True})
    orders = []
    for epoch in (0, 1):
        plan = plan_training(cuts, recipe, epoch)
        orders.append([cut.duration for batch in plan for cut in batch])
    assert orders[0] == sorted(orders[0])
    assert orders[1] != sorted(orders[1])


def test_more_processes_than_utterances_is_refused():
    with pytest.raises(ConfigError, match="3 utterances for 4 processes"):
        plan_training(cuts_of([1.0, 2.0, 3.0]), Recipe(), 0, processes=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_go_on_where_they_were_left(tone_recipe: Recipe, workers: int):
    recipe = tone_recipe.changed("data", workers=workers)
    cuts = read_manifest(recipe.data.train)
    whole = [batch.texts for batch in training_batches(cuts, recipe, 2)]
    resumed = training_batches(cuts, recipe, 2)
    resumed.skip(2, training_batches(cuts, recipe, 2).fingerprint)
    assert len(resumed) == len(whole)
    assert [batch.texts for batch in resumed] == whole[2:]


@pytest.mark.parametrize("change", [{"batch_size": 3}, {"join": (1, 2)}])
def test_resuming_with_other_batches_is_refused(tone_recipe: Recipe, change: dict[str, Any]):
    cuts = read_manifest(tone_recipe.data.train)
    begun = training_batches(cuts, tone_recipe, 2)
    other = training_batches(cuts, tone_recipe.changed("data", **change), 2)
    with pytest.raises(ConfigError, match="epoch 3 of a training with other batches"):
        other.skip(1, begun.fingerprint)
    training_batches(cuts, tone_recipe, 2, processes=1).skip(1, begun.fingerprint)
    with pytest.raises(ConfigError, match="number of processes"):
        training_batches(cuts, tone_recipe, 2, processes=2).skip(1, begun.fingerprint)


def test_augmentation_does_not_depend_on_the_process(tone_recipe: Recipe):
    recipe = tone_recipe.changed("augment", speed=(0.9, 1.1), noise_snr_db=(5.0, 20.0))
    cuts = read_manifest(recipe.data.train)
    found: list[dict[str, torch.Tensor]] = []
    for processes in (1, 2):
        sounds = {}
        for rank in range(processes):
            plan = process_batches(plan_training(cuts, recipe, 1, processes), rank, processes)
            batches = Batches(SpeechDataset(recipe, augment=True, epoch=1), plan, 0)
            for share, batch in zip(plan, batches, strict=True):
                for i, cut in enumerate(share.cuts):
                    sounds[cut.id] = batch.features[i, 0, :, : batch.lengths[i]]
                    assert batch.texts[i] == transcript(cut)
        found.append(sounds)
    assert found[0].keys() == found[1].keys()
    assert all(found[0][name].equal(found[1][name]) for name in found[0])


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(
    tone_recipe: Recipe, recipe_file: Callable[[Recipe, Path], Path], tmp_path: Path
):
    """Fifty steps; batch norm frozen, since torch synchronises it on GPUs only.

    By SGD: Adam divides by the gradient, and makes a step of the rounding where there is none.
    """
    torch.manual_seed(0)
    start = tmp_path / "start.ckpt"
    save_checkpoint(start, build_network(tone_recipe), tone_recipe, {})
    training = {"epochs": 30, "max_steps": 50, "batch_norm": "frozen", "start": str(start)}
    training |= {"optimizer": "sgd", "learning_rate": 1e-3}
    one = tone_recipe.changed("training", **training, run=str(tmp_path / "one"))
    train(one.changed("data", batch_size=8))

    two = tone_recipe.changed("training", **training, run=str(tmp_path / "two"), devices=2)
    two = two.changed("data", batch_size=4)
    recipe = recipe_file(two, tmp_path / "two.toml")
    command = [sys.executable, "-m", "ds2deploy", "train", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr

    curves = [
        {
            line["step"]: line["loss"]
            for line in RunFolder(tmp_path / name).metrics()
            if line["kind"] == "train"
        }
        for name in ("one", "two")
    ]
    assert list(curves[0]) == list(range(1, 51))
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)  # of both processes, not of the first
    weights = [
        load_checkpoint(tmp_path / name / "last.ckpt").network.state_dict()
        for name in ("one", "two")
    ]
    before = load_checkpoint(start).network.state_dict()
    assert max((weights[0][name] - before[name]).abs().max() for name in before) > 0.05
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-5, msg=name)
