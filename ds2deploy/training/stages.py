"""Training in stages, each of which starts from the best checkpoint of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ds2deploy.config import Recipe
from ds2deploy.output import print_error
from ds2deploy.runtimes.errors import ConfigError, MissingFileError
from ds2deploy.training.hardware import is_main_process
from ds2deploy.training.resuming import check_empty, is_finished, position
from ds2deploy.training.run_folder import BEST, LAST, OWN_RECIPE, RunFolder, Stage
from ds2deploy.training.train import check_machine, train


class StagedTraining(NamedTuple):
    """Stage with its place in the run.

    Attributes:
        recipe: recipe with the stage's folder and start checkpoint.
        stage: number of the stage, and of all stages.
    """

    recipe: Recipe
    stage: Stage

    @property
    def folder(self) -> RunFolder:
        """Folder of the stage."""
        return RunFolder(Path(self.recipe.training.run), self.stage)


def train_stages(stages: Sequence[Recipe], resume: bool = False) -> dict[str, float]:
    """Train the stages of a recipe one after another.

    The last stage is trained in the folder of the run, so that `best.ckpt` there is that of the
    whole run; those before it in `stage-1`, `stage-2` and so on inside.

    Args:
        stages: recipes of the stages, all with the folder of the whole run.
        resume: skip finished stages, and resume the first that is not from its `last.ckpt`.

    Returns:
        The metrics of the best checkpoint of the last stage, as `train` returns them.

    Raises:
        ConfigError: a folder contains a training already, or one that these stages do not make.
        Ds2Error, OSError: see `train`.
    """
    if len(stages) == 1:
        return train(stages[0], resume)
    placed = place_stages(stages)
    for item in placed:
        _check(item)
        if not resume:
            check_empty(item.folder)
    begun = [item.folder.holds_training() for item in placed]
    finished = _finished(placed, begun)
    metrics: dict[str, float] = {}
    for index, (recipe, stage) in enumerate(placed):
        if finished[index] and index < len(placed) - 1:
            continue
        if is_main_process():
            start = f", from {recipe.training.start}" if recipe.training.start else ""
            print_error(f"{stage}: {recipe.training.run}{start}")
        nothing_to_resume = resume and not any(begun)  # an error, which `train` raises
        metrics = train(recipe, begun[index] or nothing_to_resume, stage)
    return metrics


def place_stages(stages: Sequence[Recipe]) -> list[StagedTraining]:
    """Give every stage its folder in the run, and the best checkpoint of the one before as start.

    Args:
        stages: recipes of the stages, all with the folder of the whole run.
    """
    run = stages[-1].training.run
    placed: list[StagedTraining] = []
    for number, recipe in enumerate(stages, start=1):
        is_last = number == len(stages)
        changes: dict[str, object] = {"run": run if is_last else str(Path(run) / f"stage-{number}")}
        if placed:
            changes["start"] = str(placed[-1].folder.path / BEST)
        if not is_last:
            changes["export"] = ()  # only the network of the last stage is exported
        recipe = recipe.changed("training", **changes)
        placed.append(StagedTraining(recipe, Stage(number, len(stages))))
    return placed


def _check(item: StagedTraining) -> None:
    """Refuse a stage that would fail when its turn comes, perhaps after days."""
    check_machine(item.recipe)
    data, training = item.recipe.data, item.recipe.training
    for key, path in (
        ("data.train", data.train),
        ("data.valid", data.valid),
        ("training.teacher", training.teacher),
    ):
        if path and not Path(path).exists():
            raise MissingFileError(
                f"{path}: no such file; {item.stage} needs it as {key}: prepare it, or change the "
                "key"
            )


def _finished(placed: Sequence[StagedTraining], begun: Sequence[bool]) -> list[bool]:
    """Find the stages of which nothing is left.

    Raises:
        ConfigError: a stage has begun, but one before it is not trained as far as its recipe asks.
    """
    finished = []
    for index, item in enumerate(placed):
        point = position(item.folder)
        trained = point is not None and point.finishes(item.recipe)
        if not trained and any(begun[index + 1 :]):
            raise ConfigError(
                f"{item.folder.path / LAST}: {item.stage} is unfinished according to the recipe, "
                f"but a later stage has begun; {OWN_RECIPE}"
            )
        finished.append(point is not None and is_finished(item.folder, item.recipe, point))
    return finished
