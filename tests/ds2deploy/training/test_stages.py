"""A training in stages, by one command that may be killed at any point."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.config import Recipe
from ds2deploy.data.batches import Batch
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.errors import ConfigError, MissingFileError
from ds2deploy.training import stages as module
from ds2deploy.training.loop import TrainingLoop
from ds2deploy.training.report import write_report
from ds2deploy.training.run_folder import RunFolder, Stage
from ds2deploy.training.stages import place_stages, train_stages
from ds2deploy.training.train import train

LEARN = TrainingLoop.learn


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def stages(tone_recipe: Recipe) -> tuple[Recipe, Recipe]:
    """Two stages with a checkpoint after every step, the second with other data and rates."""
    first = tone_recipe.changed("training", max_steps=3, checkpoint_minutes=1e-9)
    second = first.changed("training", max_steps=4, learning_rate=2e-3, cell_penalty=0.1)
    return first, second.changed("data", join=(1, 2), batch_size=4)


def into(run: Path, stages: tuple[Recipe, ...], **changes: object) -> tuple[Recipe, ...]:
    return tuple(stage.changed("training", run=str(run), **changes) for stage in stages)


def lines(run: Path) -> list[dict[str, Any]]:
    """List what both folders of a run of two stages record, without the time."""
    found = [*RunFolder(run / "stage-1").metrics(), *RunFolder(run).metrics()]
    return [{name: line[name] for name in line if name != "elapsed_s"} for line in found]


def assert_same_weights(left: Path, right: Path) -> None:
    weights = [load_checkpoint(path).network.state_dict() for path in (left, right)]
    for name, tensor in weights[0].items():
        assert tensor.equal(weights[1][name]), name


def test_one_command_equals_one_for_each_stage(stages: tuple[Recipe, Recipe], tmp_path: Path):
    """To the bit; the best checkpoint is that of the last stage."""
    metrics = train_stages(into(tmp_path / "run", stages))
    (first,) = into(tmp_path / "a", stages[:1])
    (second,) = into(tmp_path / "b", stages[1:], start=str(tmp_path / "a" / "best.ckpt"))
    train(first)
    assert train(second) == metrics
    assert_same_weights(tmp_path / "a" / "best.ckpt", tmp_path / "run" / "stage-1" / "best.ckpt")
    assert_same_weights(tmp_path / "b" / "best.ckpt", tmp_path / "run" / "best.ckpt")

    assert load_checkpoint(tmp_path / "run" / "best.ckpt").recipe.training.cell_penalty == 0.1
    for name, number in (("run/stage-1", 1), ("run", 2)):
        assert {line["stage"] for line in RunFolder(tmp_path / name).metrics()} == {number}


def test_killed_between_the_stages_and_inside_both(
    stages: tuple[Recipe, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It dies before and after steps of both stages, and before the second has a folder."""
    whole, parted = into(tmp_path / "whole", stages), into(tmp_path / "parted", stages)
    train_stages(whole)
    places = [(1, 2), (2, -1), (2, 0), (2, 3)]
    trained: list[int] = []

    def begin(recipe: Recipe, resume: bool, stage: Any) -> dict[str, float]:
        trained.append(stage.number)
        if places and places[0] == (stage.number, -1):
            places.pop(0)
            raise KilledError
        return train(recipe, resume, stage)

    def learn(self: TrainingLoop, batch: Batch) -> None:
        number = 2 if self.recipe.training.start else 1
        if places and places[0] == (number, self.point.step):
            places.pop(0)
            raise KilledError
        LEARN(self, batch)

    monkeypatch.setattr(module, "train", begin)
    monkeypatch.setattr(TrainingLoop, "learn", learn)
    for life in range(5):
        try:
            train_stages(parted, resume=life > 0)
            break
        except KilledError:
            pass
    assert not places
    assert trained == [1, 1, 2, 2, 2, 2]  # a finished stage is not repeated
    assert lines(tmp_path / "whole") == lines(tmp_path / "parted") != []
    for name in ("best.ckpt", "stage-1/best.ckpt"):
        assert_same_weights(tmp_path / "whole" / name, tmp_path / "parted" / name)
    states = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
        for name in ("whole", "parted")
    ]
    for number, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][number][name]), (number, name)


def test_resuming_needs_the_option_and_something_to_resume(
    stages: tuple[Recipe, Recipe], tmp_path: Path
):
    with pytest.raises(MissingFileError, match=r"stage-1/last\.ckpt: .*omit --resume"):
        train_stages(stages, resume=True)
    short = into(tmp_path / "run", stages, max_steps=1)
    train_stages(short)
    with pytest.raises(ConfigError, match=r"run/stage-1: contains a training; .*--resume"):
        train_stages(short)
    finished = r"run/last\.ckpt: .*--set stages\.2\.training\.max_steps=2"
    with pytest.raises(ConfigError, match=finished):
        train_stages(short, resume=True)
    longer = short[1].changed("training", max_steps=2)
    train_stages((short[0], longer), resume=True)
    assert RunFolder(tmp_path / "run").metrics()[-1]["step"] == 2


def test_another_recipe_is_refused(stages: tuple[Recipe, Recipe], tmp_path: Path):
    short = into(tmp_path / "run", stages, max_steps=1)
    train_stages(short)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")}
    longer = short[0].changed("training", max_steps=2)
    with pytest.raises(ConfigError, match=r"stage-1/last\.ckpt: stage 1 of 2 .*training\.run="):
        train_stages((longer, short[1]), resume=True)
    for others in ((short[1],), (*short, short[1])):
        with pytest.raises(ConfigError, match=r"last\.ckpt: .*stage \d of 2.*training\.run="):
            train_stages(others, resume=True)
    wider = tuple(stage.changed("model", hidden=20) for stage in short)
    with pytest.raises(ConfigError, match=r"run/last\.ckpt: .*model\.hidden = 16, the recipe has"):
        train_stages(wider, resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")} == before


def test_missing_data_of_a_later_stage_are_found_before_the_first(
    stages: tuple[Recipe, Recipe], tmp_path: Path
):
    later = stages[1].changed("data", valid=str(tmp_path / "none.jsonl"))
    with pytest.raises(MissingFileError, match=r"none\.jsonl: .*stage 2 of 2 .*data\.valid"):
        train_stages((stages[0], later))
    assert not (tmp_path / "run").exists()


def test_only_the_last_stage_is_exported(stages: tuple[Recipe, Recipe], tmp_path: Path):
    placed = place_stages([stage.changed("training", export=("fp32",)) for stage in stages])
    assert [item.recipe.training.export for item in placed] == [(), ("fp32",)]
    assert [item.folder.path for item in placed] == [tmp_path / "run" / "stage-1", tmp_path / "run"]
    assert [item.recipe.training.start for item in placed] == [
        "", str(tmp_path / "run" / "stage-1" / "best.ckpt")
    ]  # fmt: skip


@pytest.fixture
def command(tone_recipe: Recipe, tone_toml: Path, tmp_path: Path) -> list[str]:
    """The command for a recipe of two stages, the second with one step."""
    tone_toml.write_text(f"{tone_toml.read_text()}\n[[stages]]\ntraining.max_steps = 1\n")
    data = tone_recipe.data
    settings = [
        f"data.train={data.train}", f"data.valid={data.valid}",
        f"training.run={tmp_path / 'run'}", "stages.1.training.max_steps=2",
    ]  # fmt: skip
    options = [part for setting in settings for part in ("--set", setting)]
    return ["train", str(tone_toml), "--json", *options]


def test_the_command_shows_the_stage(command: list[str], tmp_path: Path):
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["checkpoint"] == str(tmp_path / "run" / "best.ckpt")
    shown = done.stderr.splitlines()
    begun = [line for line in shown if str(tmp_path) in line]
    assert [line.removeprefix("ds2deploy: ") for line in begun] == [
        f"stage 1 of 2: {tmp_path}/run/stage-1",
        f"stage 2 of 2: {tmp_path}/run, from {tmp_path}/run/stage-1/best.ckpt",
    ]
    validated = [line.split(",") for line in shown if "WER" in line and line.endswith(" s")]
    assert [place[0] for place in validated] == ["stage 1 of 2", "stage 2 of 2"]
    trained = [line for line in lines(tmp_path / "run") if line["kind"] == "train"]
    assert [(line["stage"], line["step"]) for line in trained] == [(1, 1), (1, 2), (2, 1)]


def test_the_report_names_the_stage(stages: tuple[Recipe, Recipe], tmp_path: Path):
    page = write_report(RunFolder(tmp_path, Stage(2, 4)), stages[1]).read_text()
    assert "Stage 2 of 4: 0 steps" in page
    assert "Stage" not in write_report(RunFolder(tmp_path), stages[1]).read_text()


@pytest.mark.slow
def test_two_processes(command: list[str], tmp_path: Path):
    """The second process is started in the first stage, and takes part in both."""
    call = [sys.executable, "-m", "ds2deploy", *command, "--set", "training.devices=2"]
    for options in ((), ("--resume", "--set", "stages.2.training.max_steps=2")):
        done = subprocess.run(
            [*call, *options], capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(tmp_path / "run") if line["kind"] == "train"] == [
        1, 2, 1, 2
    ]  # fmt: skip
