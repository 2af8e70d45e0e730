"""Recipes on a machine with fewer cores than they ask for."""

from __future__ import annotations

from pathlib import Path

from ds2deploy.config import Recipe, within_cores
from tests.ds2deploy.data.recordings import run


def test_threads_and_workers_of_a_recipe_are_bounded():
    recipe = Recipe().changed("training", threads=1000).changed("data", workers=999)
    bounded, changes = within_cores(recipe, 4)
    assert (bounded.training.threads, bounded.data.workers) == (4, 4)
    assert len(changes) == 2
    assert all("4 cores" in line for line in changes)
    assert within_cores(Recipe(), 1) == (Recipe(), [])


def test_train_says_that_it_takes_fewer_threads(tone_toml: Path):
    call = ["train", tone_toml, "--set", "training.threads=100000", "--set", "data.train=no.jsonl"]
    lines = run(*call, code=2).stderr.splitlines()
    assert lines[0].startswith("ds2deploy: training.threads = 100000: ")
