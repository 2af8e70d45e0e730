"""Folder of a training, with best.ckpt, last.ckpt and metrics.jsonl."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from ds2deploy.config import Recipe
from ds2deploy.data.batches import Batches
from ds2deploy.runtimes.errors import DECODING_ERRORS, ConfigError
from ds2deploy.runtimes.files import json_text, whole_file
from ds2deploy.training.hardware import is_main_process
from ds2deploy.training.scoring import Hypothesis

OWN_RECIPE = (
    "resume it with its own recipe, or choose another folder with --set training.run=FOLDER"
)
"""Remedy for a training that the recipe does not fit."""

BEST = "best.ckpt"
LAST = "last.ckpt"
METRICS = "metrics.jsonl"
BROKEN = "broken.jsonl"
HYPOTHESES = "best.jsonl"

STAGE = "stage"
"""Entry of `last.ckpt` and of the lines of metrics.jsonl in a training of several stages."""

Line = TypeVar("Line")

Count = Annotated[int, msgspec.Meta(ge=0)]


class ResumePoint(msgspec.Struct, frozen=True):
    """Position in a training.

    Attributes:
        step: number of optimisation steps.
        epochs: number of finished epochs.
        batches: number of finished batches in the current epoch.
        fingerprint: hash of the current epoch's batches; 0 before the first batch.
    """

    step: Count = 0
    epochs: Count = 0
    batches: Count = 0
    fingerprint: Count = 0

    @property
    def epoch(self) -> int:
        """Number of the current or just finished epoch, from 1; 0 before the first."""
        return self.epochs + (self.batches > 0)

    def after_batch(self, batches: Batches, makes_step: bool) -> ResumePoint:
        """Return the position after one more batch of an epoch."""
        step, done = self.step + makes_step, self.batches + 1
        if done == len(batches):
            return ResumePoint(step, self.epochs + 1)
        return ResumePoint(step, self.epochs, done, batches.fingerprint)

    def epochs_done(self, batches: Batches, accumulate: int) -> float:
        """Compute the number of finished epochs, including the fraction of the current one.

        Args:
            batches: batches of the current epoch.
            accumulate: number of batches per step.
        """
        done, steps = (steps_of(count, accumulate) for count in (self.batches, len(batches)))
        return self.epochs + done / steps

    def finishes(self, recipe: Recipe) -> bool:
        """Return True if no step of the recipe is left."""
        training = recipe.training
        enough = training.max_steps is not None and self.step >= training.max_steps
        return enough or self.epochs >= training.epochs


def steps_of(batches: int, accumulate: int) -> int:
    """Count the steps of an epoch's batches; the last step may have fewer batches."""
    return -(-batches // accumulate)


class Stage(NamedTuple):
    """Stage of a training that has several; prints as `stage 2 of 4`.

    Attributes:
        number: number of the stage, from 1.
        total: number of stages.
    """

    number: int
    total: int

    def __str__(self) -> str:
        return f"stage {self.number} of {self.total}"

    def key(self, name: str) -> str:
        """Name a key of this stage alone, as `--set` takes it."""
        return f"stages.{self.number}.{name}"


class _Known(msgspec.Struct):
    """Fields that are read from every line of metrics.jsonl and broken.jsonl."""

    step: int


class _Metrics(_Known, kw_only=True):
    """Line of metrics.jsonl, by whose numbers the best validation is chosen."""

    kind: str
    wer: float | None = None
    cer: float | None = None
    valid_loss: float | None = None


class RunFolder:
    """Folder of one training.

    Args:
        path: path of the folder, which is created when the training starts.
        stage: stage that is trained in the folder; None for a training of one stage.
    """

    def __init__(self, path: Path, stage: Stage | None = None) -> None:
        self.path, self.stage = path, stage

    def holds_training(self) -> bool:
        """Return True if the folder contains files of a training."""
        return any((self.path / name).exists() for name in (BEST, LAST, METRICS))

    def metrics(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl, without an incomplete last line of a killed process."""
        return self._lines(METRICS, dict[str, Any])

    def best_metrics(self) -> dict[str, float]:
        """Find the validation with the lowest WER."""
        validations = [line for line in self.metrics() if line["kind"] == "valid"]
        best = min(validations, key=score, default={})
        return {name: best[name] for name in ("wer", "cer", "valid_loss", "epoch") if name in best}

    def append(self, line: dict[str, Any], name: str = METRICS) -> None:
        """Append a line to metrics.jsonl or broken.jsonl; other processes may append as well."""
        path = self.path / name
        encoded = json_text(line).encode() + b"\n"
        try:
            with path.open("ab", buffering=0) as file:
                if file.write(encoded) < len(encoded):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise disk_error(error, path) from None

    def write_hypotheses(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Write the hypotheses of the best checkpoint on the validation set."""
        self._replace(HYPOTHESES, hypotheses)

    def hypotheses(self) -> list[Hypothesis]:
        """Read the hypotheses of the best checkpoint; empty before the first validation."""
        return self._lines(HYPOTHESES, Hypothesis)

    def broken(self) -> list[dict[str, Any]]:
        """Read the lines of broken.jsonl: recordings that could not be read."""
        return self._lines(BROKEN, dict[str, Any])

    def _lines(self, name: str, kind: type[Line]) -> list[Line]:
        path = self.path / name
        known = {METRICS: _Metrics, BROKEN: _Known}.get(name)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        try:
            for line in lines if known is not None else ():
                msgspec.json.decode(line, type=known)
            return [msgspec.json.decode(line, type=kind) for line in lines]
        except DECODING_ERRORS as error:
            raise ConfigError(f"{path}: damaged line ({error}); remove the line") from None

    def rewind(self, step: int) -> None:
        """Drop the lines after a step, which a resumed training writes again."""
        if not is_main_process():
            return
        for name in (METRICS, BROKEN):
            if not (self.path / name).is_file():
                continue
            kept = [x for x in self._lines(name, dict[str, Any]) if x["step"] <= step]
            self._replace(name, kept)

    def _replace(self, name: str, lines: Sequence[Any]) -> None:
        with whole_file(self.path / name) as temporary:
            temporary.write_bytes(b"".join(json_text(line).encode() + b"\n" for line in lines))


def score(metrics: dict[str, Any]) -> tuple[float, float]:
    """Make the sort key of a validation, lowest is best; null in metrics.jsonl means inf or NaN."""
    wer, loss = (metrics.get(name) for name in ("wer", "valid_loss"))
    return (float("inf") if wer is None else wer, float("inf") if loss is None else loss)


def disk_error(error: OSError, path: Path, kept: str = "") -> OSError:
    """Add the file, the remedy and the kept checkpoint to an error."""
    remedy = f"free some space, and resume with --resume{kept and '; '}{kept}"
    return OSError(error.errno, f"{error.strerror or error}; {remedy}", str(path))
