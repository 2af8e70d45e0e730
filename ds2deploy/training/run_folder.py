"""What a training leaves behind: best.ckpt, last.ckpt, metrics.jsonl."""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lightning
import msgspec
import torch
from lightning.pytorch.utilities import rank_zero_only

from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.runtimes.errors import DECODING_ERRORS, AudioError, ConfigError, TrainingError
from ds2deploy.runtimes.files import json_text, whole_file
from ds2deploy.training.callbacks import StepCallback
from ds2deploy.training.scoring import Hypothesis
from ds2deploy.training.tensorboard import TensorBoardLog

BEST = "best.ckpt"
LAST = "last.ckpt"
METRICS = "metrics.jsonl"
BROKEN = "broken.jsonl"
HYPOTHESES = "best.jsonl"

BROKEN_SHARE = 0.01
"""Share of a training's recordings that may be unusable: a large corpus has some. In a small one
the first ends the training, for each counts."""


Line = TypeVar("Line")


class ResumePoint(NamedTuple):
    """Where a training stands.

    Attributes:
        step: of the optimiser, from 1; 0 before the first.
        epoch: that is going on or has just ended, from 1; 0 before the first.
    """

    step: int = 0
    epoch: int = 0


START = ResumePoint()


class _Known(msgspec.Struct):
    """Fields that are read of every line of metrics.jsonl and broken.jsonl."""

    step: int


class _Metrics(_Known, kw_only=True):
    """A line of metrics.jsonl; the best validation is chosen by its numbers."""

    kind: str
    wer: float | None = None
    cer: float | None = None
    valid_loss: float | None = None


class RunFolder:
    """The folder of one training.

    Args:
        path: of the folder; it is made when the training starts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def holds_training(self) -> bool:
        """Whether something here would be lost."""
        return any((self.path / name).exists() for name in (BEST, LAST, METRICS))

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl, without one that a dying process left unfinished."""
        return self._lines(METRICS, dict[str, Any])

    def best_metrics(self) -> dict[str, float]:
        """Of the validation with the lowest WER."""
        validations = [line for line in self.metrics() if line["kind"] == "valid"]
        best = min(validations, key=_score, default={})
        return {name: best[name] for name in ("wer", "cer", "valid_loss", "epoch") if name in best}

    def append(self, line: dict[str, Any], name: str = METRICS) -> None:
        """Add a line to metrics.jsonl, or to another such file: whole, whoever else adds to it."""
        path = self.path / name
        encoded = json_text(line).encode() + b"\n"
        try:
            with path.open("ab", buffering=0) as file:
                if file.write(encoded) < len(encoded):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise disk_error(error, path) from None

    def write_hypotheses(self, hypotheses: Sequence[Hypothesis]) -> None:
        """What the best checkpoint made of the validation utterances."""
        with whole_file(self.path / HYPOTHESES) as temporary:
            temporary.write_bytes(b"".join(json_text(h).encode() + b"\n" for h in hypotheses))

    def hypotheses(self) -> list[Hypothesis]:
        """The same; nothing before the first validation."""
        return self._lines(HYPOTHESES, Hypothesis)

    def broken(self) -> list[dict[str, Any]]:
        """The lines of broken.jsonl: recordings that could not be read."""
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
            raise ConfigError(f"{path}: holds a damaged line ({error}); take it out") from None

    def rewind(self, step: int) -> None:
        """Drop the lines past a step, which a resumed training will write again.

        One process of several does it, before all go on.
        """
        if getattr(rank_zero_only, "rank", 0):
            return
        for name in (METRICS, BROKEN):
            if not (self.path / name).is_file():
                continue
            kept = [x for x in self._lines(name, dict[str, Any]) if x["step"] <= step]
            with whole_file(self.path / name) as temporary:
                temporary.write_bytes(b"".join(json_text(x).encode() + b"\n" for x in kept))


def _score(metrics: dict[str, Any]) -> tuple[float, float]:
    """Lower is better; what is not finite stands as null in metrics.jsonl."""
    wer, loss = metrics.get("wer"), metrics.get("valid_loss")
    return (float("inf") if wer is None else wer, float("inf") if loss is None else loss)


def disk_error(error: OSError, path: Path, kept: str = "") -> OSError:
    """The same error, with the file, the remedy, and what is left of the training."""
    remedy = "; ".join(["make room, and go on with --resume", *([kept] if kept else [])])
    return OSError(error.errno, f"{error.strerror or error}; {remedy}", str(path))


class RunRecorder(StepCallback):
    """Writes metrics at every step that the recipe logs, and the best checkpoint.

    Args:
        folder: where to.
        board: that shows the same; None for none.
        place: where a training is gone on with.

    Attributes:
        validated_step: the step of the last validation.
    """

    def __init__(
        self, folder: RunFolder, board: TensorBoardLog | None = None, place: ResumePoint = START
    ) -> None:
        self._folder, self._board, self._place = folder, board, place
        self._best = _score(folder.best_metrics())
        # Of all lives together.
        elapsed_s = max((line["elapsed_s"] for line in folder.metrics()), default=0.0)
        self._started = time.monotonic() - elapsed_s
        self.validated_step = -1
        self._broken = {line["error"] for line in folder.broken()}

    def setup(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        """Open the board."""
        if self._board is not None and trainer.is_global_zero:
            self._board.open(self._place.step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        """Name what cannot be read, step or not."""
        self._place = ResumePoint(trainer.global_step, trainer.current_epoch + 1)
        self._note_broken(trainer, module, batch.broken)
        super().on_train_batch_end(trainer, module, outputs, batch, index)

    def on_step(self, trainer: lightning.Trainer, module: Any, loss: float, index: int) -> None:
        """One line every `training.log_every` steps; the loss is that of all processes."""
        step = trainer.global_step
        if step != 1 and step % module.recipe.training.log_every:
            return
        losses = torch.tensor(loss, dtype=torch.float64, device=module.device)
        values = {
            "loss": float(trainer.strategy.reduce(losses, reduce_op="mean")),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": module.gradient_norm,
        }
        if module.scales_loss:
            values["skipped_steps"] = module.skipped_steps
        if trainer.is_global_zero:
            self._write(kind="train", **values)
            if self._board is not None:
                self._board.add_step(step, values)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """One line, and `best.ckpt` if this is the best validation so far."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        step = self.validated_step = self._place.step
        if trainer.is_global_zero:
            self._write(kind="valid", **metrics)
        if not math.isfinite(metrics["valid_loss"]):  # on all processes, which end together
            raise TrainingError(
                f"{self._folder.path}: the validation loss is {metrics['valid_loss']} at step "
                f"{step}; start again with a lower training.learning_rate"
            )
        if not trainer.is_global_zero:
            return
        if self._board is not None:
            self._board.add_validation(step, metrics, module.hypotheses, module.seen)
        score = _score(metrics)
        if score < self._best:
            save_checkpoint(self._folder.path / BEST, module.network, module.recipe, metrics)
            self._folder.write_hypotheses(module.hypotheses)
            self._best = score

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Name what cannot be read."""
        self._note_broken(trainer, module, batch.broken)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """The board has what came last."""
        self._flush()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: Any) -> None:
        """The board has what came last."""
        self._flush()

    def _flush(self) -> None:
        if self._board is not None:
            self._board.flush()

    def _note_broken(self, trainer: lightning.Trainer, module: Any, broken: Sequence[str]) -> None:
        """A few recordings may be broken; each is named, once, by the process that met it."""
        most = BROKEN_SHARE * module.utterances
        for error in broken:
            if error in self._broken:
                continue
            self._broken.add(error)
            self._folder.append({**self._place._asdict(), "error": error}, BROKEN)
            if len(self._broken) > most:
                module.failure = AudioError(
                    f"{error} ({len(self._broken)} of {module.utterances} recordings cannot be "
                    f"used, {BROKEN_SHARE:.0%} may; {self._folder.path / BROKEN} names them, and "
                    "`ds2deploy prepare --read --leave-out` leaves them out)"
                )
                if trainer.world_size == 1:
                    raise module.failure
            print(f"left out: {error}", file=sys.stderr)

    def _write(self, **values: Any) -> None:
        elapsed_s = round(time.monotonic() - self._started, 2)
        place = {"epoch": self._place.epoch, "step": self._place.step}
        self._folder.append({**place, **values, "elapsed_s": elapsed_s})
