"""What a training begins with: nothing, or the last checkpoint of one that was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ds2deploy.config import Recipe
from ds2deploy.model.checkpoint import read_document, read_recipe
from ds2deploy.model.weights import load_network
from ds2deploy.runtimes.errors import ConfigError, MissingFileError
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.training.report import REPORT
from ds2deploy.training.run_folder import LAST, START, ResumePoint, RunFolder


class InitialState(NamedTuple):
    """What a training begins with.

    Attributes:
        checkpoint: to go on from; None for a fresh start.
        place: where that was written.
        unvalidated: whether it was written before a validation that is still to be made.
        finished: whether no step is left to make.
    """

    checkpoint: Path | None = None
    place: ResumePoint = START
    unvalidated: bool = False
    finished: bool = False


def begin(folder: RunFolder, recipe: Recipe, resume: bool) -> InitialState:
    """Decide between a fresh start and going on; never overwrite a training.

    Args:
        folder: of the run.
        recipe: of the training.
        resume: whether one is to be gone on with.

    Raises:
        ConfigError: the folder holds a training; or one of another recipe, or a finished one.
        MissingFileError: there is nothing to resume.
    """
    last = folder.path / LAST
    if not resume:
        if folder.holds_training():
            raise ConfigError(_held(folder.path, last))
        folder.path.mkdir(parents=True, exist_ok=True)
        return InitialState()
    if not last.is_file():
        if not folder.holds_training():
            raise MissingFileError(
                f"{last}: no such file; nothing to resume, start without --resume"
            )
        folder.rewind(0)  # it died before its first checkpoint
        return InitialState()
    document = read_document(last)
    if document is None or not {"loops", "epoch", "global_step"} <= document.keys():
        raise ConfigError(f"{last}: not the last checkpoint of a training; nothing to resume")
    _check_same(recipe, document, last)
    found = _found(folder, recipe, document, last)
    if found.finished and not (found.unvalidated or _something_is_missing(folder, recipe)):
        raise ConfigError(_no_step_left(recipe, found.place, last))
    folder.rewind(found.place.step)
    return found


def begun_features(folder: RunFolder) -> FeatureConfig | None:
    """What the training that is resumed began with; what is wrong with it is told by `begin`."""
    last = folder.path / LAST
    document = read_document(last) if last.is_file() else None
    return None if document is None else read_recipe(document, last).features


def _found(folder: RunFolder, recipe: Recipe, document: dict[str, Any], last: Path) -> InitialState:
    step = int(document["global_step"])
    try:
        loops = document["loops"]["fit_loop"]
        epochs = loops["epoch_progress"]["current"]
        ended = bool(loops["epoch_loop.batch_progress"]["is_last_batch"])
        done = int(epochs["processed"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{last}: does not say where its training was ({type(error).__name__}: {error}); start "
            "again with --set training.start, or restore the original"
        ) from None
    training = recipe.training
    enough = training.max_steps is not None and step >= training.max_steps
    finished = done >= training.epochs or enough
    due = finished or (ended and done % training.validate_every == 0)
    validated = any(line["kind"] == "valid" and line["step"] == step for line in folder.metrics())
    place = ResumePoint(step, done if ended else done + 1)
    return InitialState(last, place, unvalidated=due and not validated, finished=finished)


def _something_is_missing(folder: RunFolder, recipe: Recipe) -> bool:
    """What comes after the last validation: it may have died there."""
    training = recipe.training
    exported = len(list(folder.path.glob("model*.onnx")))
    reported = (folder.path / REPORT).is_file()
    return exported < len(training.export) or (training.report and not reported)


def _held(path: Path, last: Path) -> str:
    way = "go on with --resume" if last.is_file() else "begin it again with --resume"
    return (
        f"{path}: holds a training; {way}, or choose another folder with --set training.run=FOLDER"
    )


def _no_step_left(recipe: Recipe, place: ResumePoint, last: Path) -> str:
    training = recipe.training
    if training.max_steps is not None and place.step >= training.max_steps:
        return (
            f"{last}: trained for {place.step} steps, as many as the recipe asks for; "
            f"go on with --set training.max_steps={2 * place.step}"
        )
    return (
        f"{last}: trained for {place.epoch} epochs, as many as the recipe asks for; "
        f"go on with --set training.epochs={2 * place.epoch}"
    )


def _check_same(recipe: Recipe, document: dict[str, Any], last: Path) -> None:
    """A training is resumed with the model and the features that it began with."""
    begun = read_recipe(document, last)
    for name in ("labels", "model", "features"):
        differing = _differences(getattr(begun, name), getattr(recipe, name))
        if differing:
            raise ConfigError(
                f"{last}: its training began with other {name}: {differing}; resume it with its "
                "own recipe, or choose another folder with --set training.run=FOLDER"
            )
    load_network(recipe, document.get("state_dict"), last)


def _differences(begun: object, wanted: object) -> str:
    """In words: `hidden 512, the recipe has 1024`."""
    if not isinstance(begun, msgspec.Struct):
        return "" if begun == wanted else f"{begun!r}, the recipe has {wanted!r}"
    pairs = {
        name: (getattr(begun, name), getattr(wanted, name)) for name in begun.__struct_fields__
    }
    return ", ".join(
        f"{name} {_short(left)}, the recipe has {_short(right)}"
        for name, (left, right) in pairs.items()
        if left != right
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:50]}..."
