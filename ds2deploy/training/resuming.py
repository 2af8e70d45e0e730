"""Initial state of a training: a fresh start, or the last checkpoint of an interrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ds2deploy.config import Recipe
from ds2deploy.model.checkpoint import read_document, read_recipe
from ds2deploy.model.network import DeepSpeech2
from ds2deploy.model.weights import load_network
from ds2deploy.runtimes.errors import DECODING_ERRORS, ConfigError, MissingFileError
from ds2deploy.training.report import REPORT
from ds2deploy.training.run_folder import LAST, OWN_RECIPE, STAGE, ResumePoint, RunFolder


class InitialState(NamedTuple):
    """State that a training begins with.

    Attributes:
        point: position in the training.
        unvalidated: True if the validation at that position has not been done yet.
        document: content of `last.ckpt`; None for a fresh start.
        network: network with the weights of `last.ckpt`; None for a fresh start.
    """

    point: ResumePoint = ResumePoint()
    unvalidated: bool = False
    document: dict[str, Any] | None = None
    network: DeepSpeech2 | None = None


def begin(folder: RunFolder, recipe: Recipe, resume: bool) -> InitialState:
    """Choose between a fresh start and resuming; never overwrite a training.

    Args:
        folder: folder of the run.
        recipe: recipe of the training.
        resume: resume the training in the folder.

    Raises:
        ConfigError: the folder contains a training that cannot be resumed, or `resume` is not
            set.
        MissingFileError: there is nothing to resume.
    """
    last = folder.path / LAST
    if not resume:
        check_empty(folder)
        folder.path.mkdir(parents=True, exist_ok=True)
        return InitialState()
    if not last.is_file():
        if not folder.holds_training():
            raise MissingFileError(f"{last}: no such file, nothing to resume; omit --resume")
        folder.rewind(0)  # the training ended before its first checkpoint
        return InitialState()
    document, point = _read_last(folder)
    network = _matching_network(recipe, document, last)
    if is_finished(folder, recipe, point):
        raise ConfigError(_no_step_left(folder, recipe, point))
    unvalidated = _is_unvalidated(folder, recipe, point)
    folder.rewind(point.step)
    return InitialState(point, unvalidated, document, network)


def check_empty(folder: RunFolder) -> None:
    """Refuse a folder that contains a training.

    Raises:
        ConfigError: it contains one.
    """
    if folder.holds_training():
        there = (folder.path / LAST).is_file()
        way = "resume it with --resume" if there else "start it again with --resume"
        raise ConfigError(
            f"{folder.path}: contains a training; {way}, or choose another folder with "
            "--set training.run=FOLDER"
        )


def position(folder: RunFolder) -> ResumePoint | None:
    """Read the position of `last.ckpt`; None if there is no such file.

    Raises:
        ConfigError: the file cannot be resumed, or is of another stage than the folder's.
    """
    return _read_last(folder)[1] if (folder.path / LAST).is_file() else None


def is_finished(folder: RunFolder, recipe: Recipe, point: ResumePoint) -> bool:
    """Return True if nothing of a training is left, neither a step, a validation nor a report.

    Args:
        folder: folder of the run.
        recipe: recipe of the training.
        point: position of `last.ckpt`.
    """
    validated = not _is_unvalidated(folder, recipe, point)
    return point.finishes(recipe) and validated and _is_complete(folder, recipe)


def begun_recipe(folder: RunFolder) -> Recipe | None:
    """Read the recipe of the training that is resumed; `begin` checks the rest of the file."""
    last = folder.path / LAST
    document = read_document(last) if last.is_file() else None
    return None if document is None else read_recipe(document, last)


def _read_last(folder: RunFolder) -> tuple[dict[str, Any], ResumePoint]:
    """Read `last.ckpt` and its position, and check that it is of the folder's stage."""
    last = folder.path / LAST
    document = read_document(last)
    needed = {"position", "optimizer_states", "lr_schedulers", "precision"}
    if document is None or needed - document.keys():
        raise ConfigError(
            f"{last}: cannot be resumed: not the last checkpoint of a training, or written by "
            "another version of ds2deploy; start a new training from its weights: --set "
            f"training.start={last} --set training.run=FOLDER"
        )
    theirs, ours = document.get(STAGE), None if folder.stage is None else str(folder.stage)
    if theirs != ours:
        raise ConfigError(
            f"{last}: belongs to {theirs or 'a training of one stage'}, but the recipe has "
            f"{ours or 'one stage'}; {OWN_RECIPE}"
        )
    return document, _point(document, last)


def _point(document: dict[str, Any], last: Path) -> ResumePoint:
    try:
        return msgspec.convert(document["position"], ResumePoint)
    except DECODING_ERRORS as error:
        raise ConfigError(
            f"{last}: damaged position of the training ({error}); restore the original, or start "
            f"a new training from its weights: --set training.start={last}"
        ) from None


def _is_unvalidated(folder: RunFolder, recipe: Recipe, point: ResumePoint) -> bool:
    due = not point.batches and point.epochs % recipe.training.validate_every == 0
    validated = {line["step"] for line in folder.metrics() if line["kind"] == "valid"}
    return (due or point.finishes(recipe)) and point.step not in validated


def _is_complete(folder: RunFolder, recipe: Recipe) -> bool:
    """Return True if the exports and the report, which follow the last validation, exist."""
    training = recipe.training
    exported = len(list(folder.path.glob("model*.onnx")))
    reported = (folder.path / REPORT).is_file() or not training.report
    return exported >= len(training.export) and reported


def _no_step_left(folder: RunFolder, recipe: Recipe, point: ResumePoint) -> str:
    most = recipe.training.max_steps
    enough = most is not None and point.step >= most
    name, done = ("max_steps", point.step) if enough else ("epochs", point.epoch)
    key = f"training.{name}" if folder.stage is None else folder.stage.key(f"training.{name}")
    return (
        f"{folder.path / LAST}: already trained for {done} {name.removeprefix('max_')}, as the "
        f"recipe asks; train longer: --resume --set {key}={2 * done}"
    )


def _matching_network(recipe: Recipe, document: dict[str, Any], last: Path) -> DeepSpeech2:
    """Build the network of a checkpoint; its model and features must equal the recipe's."""
    begun = read_recipe(document, last)
    for name in ("labels", "model", "features"):
        if differing := differences(name, getattr(begun, name), getattr(recipe, name)):
            raise ConfigError(f"{last}: trained with another recipe: {differing}; {OWN_RECIPE}")
    return load_network(recipe, document.get("state_dict"), last)


def differences(name: str, begun: object, wanted: object) -> str:
    """List the keys that differ, such as `model.hidden = 512, the recipe has 1024`.

    Args:
        name: name of the key or section.
        begun: value in a checkpoint.
        wanted: value in the recipe.

    Returns:
        Differences, separated by semicolons; empty if the values are equal.
    """
    if not isinstance(begun, msgspec.Struct):
        same = begun == wanted
        return "" if same else f"{name} = {_short(begun)}, the recipe has {_short(wanted)}"
    found = (
        differences(f"{name}.{key}", getattr(begun, key), getattr(wanted, key))
        for key in begun.__struct_fields__
    )
    return "; ".join(filter(None, found))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}..."
