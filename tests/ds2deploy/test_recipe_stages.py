"""Stages of recipes: what they change, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds2deploy.config import Recipe
from ds2deploy.recipes import load_recipe, load_stages, recipe_names
from ds2deploy.runtimes.errors import ConfigError
from tests.ds2deploy.data.recordings import run

TWO = """
data.join = [1, 2]
[training]
epochs = 3
learning_rate = 2e-3
[[stages]]
training.epochs = 5
data.join = [2, 24]
model.norm_eps = 1e-4
[[stages]]
[stages.training]
epochs = 7
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(TWO)
    return path


def epochs(stages: tuple[Recipe, ...]) -> list[int]:
    return [stage.training.epochs for stage in stages]


def test_every_stage_is_the_recipe_with_keys_changed(toml: Path):
    first, second, third = load_stages(str(toml))
    assert first == load_recipe(str(toml))
    assert epochs((first, second, third)) == [3, 5, 7]
    assert first == second.changed("training", epochs=3).changed("data", join=(1, 2)).changed(
        "model", norm_eps=1e-5
    )
    assert third == first.changed("training", epochs=7)  # nothing of the second stage


def test_set_changes_all_stages_or_the_one_that_it_names(toml: Path):
    def changed(*overrides: str) -> list[int]:
        return epochs(load_stages(str(toml), overrides))

    assert changed("training.epochs=1") == [1, 1, 1]
    assert changed("stages.1.training.epochs=1") == [1, 5, 7]
    assert changed("stages.2.training.epochs=1") == [3, 1, 7]
    assert changed("training.epochs=1", "stages.3.training.epochs=2") == [1, 1, 2]
    assert changed("stages.3.training.epochs=2", "training.epochs=1") == [1, 1, 1]
    stages = load_stages(str(toml), ["model.hidden=8", "training.run=a"])
    assert {(stage.model.hidden, stage.training.run) for stage in stages} == {(8, "a")}


@pytest.mark.parametrize(("table", "message"), [
    ("", "changes nothing"),
    ("training = {}", "changes nothing"),
    ("training.epoch = 1", "training: unknown key `epoch`; known keys are run, epochs,"),
    ("name = 'a'", "unknown key `name`"),
    ("training.epochs = 'a'", r"training\.epochs: "),
    ("training.epochs = 0", r"training\.epochs = 0"),
    ("training = 3", "training: "),
    ("training.start = 'a.ckpt'", r"training\.start: .*remove"),
    ("training.run = 'a'", r"training\.run: .*whole recipe"),
    ("training.export = ['fp32']", r"training\.export: .*whole recipe"),
    ("model.hidden = 8", r"model\.hidden: .*one network"),
    ("features.scale = 2.0", r"features\.scale: .*one network"),
    ("labels = '_AB'", "labels: .*one network"),
    ("[[stages.stages]]\ntraining.epochs = 1", "stages: .*remove"),
])  # fmt: skip
def test_contradictions_in_a_stage_are_refused(toml: Path, table: str, message: str):
    toml.write_text(f"[[stages]]\ntraining.epochs = 5\n[[stages]]\n{table}\n")
    with pytest.raises(ConfigError, match=rf"own\.toml: stage 3:? {message}"):
        load_stages(str(toml))


@pytest.mark.parametrize("text", ["stages = 3", "stages = [1]", "[stages]\ntraining.epochs = 1"])
def test_stages_that_are_no_tables_are_refused(toml: Path, text: str):
    toml.write_text(text)
    with pytest.raises(ConfigError, match=r"own\.toml: stages: .*\[\[stages\]\]"):
        load_stages(str(toml))


def test_a_misspelt_table_of_stages_is_refused(toml: Path):
    toml.write_text("[[stage]]\ntraining.epochs = 1\n")
    with pytest.raises(ConfigError, match=r"own\.toml: unknown key `stage`; .*training, stages"):
        load_stages(str(toml))


@pytest.mark.parametrize(("override", "message"), [
    ("stages=1", "the stages of this recipe are 1 to 3"),
    ("stages.2=1", "the stages of this recipe are 1 to 3"),
    ("stages.4.training.epochs=1", "the stages of this recipe are 1 to 3"),
    ("stages.0.training.epochs=1", "the stages of this recipe are 1 to 3"),
    ("stages.two.training.epochs=1", "the stages of this recipe are 1 to 3"),
    ("stages.2.training.epochs", r"section\.key=value"),
    ("stages.2.training.epoch=1", "unknown key `epoch`"),
    ("stages.2.training.epochs=x", "expected a whole number, got text"),
    ("stages.2.training.start=a.ckpt", r"training\.start: .*remove"),
    ("stages.1.training.run=a", r"training\.run: .*whole recipe"),
    ("stages.3.model.hidden=8", r"model\.hidden: .*one network"),
])  # fmt: skip
def test_contradictions_in_set_are_refused(toml: Path, override: str, message: str):
    with pytest.raises(ConfigError, match=rf"--set {override.partition('=')[0]}.*{message}"):
        load_stages(str(toml), [override])


def test_a_stage_of_a_recipe_without_stages(toml: Path):
    assert epochs(load_stages("digits", ["stages.1.training.epochs=2"])) == [2]
    with pytest.raises(ConfigError, match=r"the stages of this recipe are 1$"):
        load_stages("digits", ["stages.2.training.epochs=2"])


def test_the_command_refuses_a_stage_in_one_line(toml: Path):
    result = run("train", toml, "--set", "stages.9.training.epochs=1", code=2)
    (line,) = result.stderr.splitlines()
    assert "--set stages.9.training.epochs: " in line


def test_stages_of_the_built_in_recipes():
    """Stages of the streaming model equal the settings of its model card."""
    found = {name: load_stages(name) for name in recipe_names()}
    assert {name: len(stages) for name, stages in found.items() if len(stages) > 1} == {
        "an4-streaming": 4
    }
    stages = found["an4-streaming"]
    assert epochs(stages) == [25, 16, 9, 12]
    assert [stage.training.cell_penalty for stage in stages] == [0, 0, 0, 0.1]
    assert [stage.data.join for stage in stages] == [(1, 3), (1, 3), (2, 24), (1, 32)]
