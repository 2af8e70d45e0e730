"""What a training leaves behind: best.ckpt, last.ckpt, metrics.jsonl."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import msgspec
import torch

from ds2deploy.board import Board
from ds2deploy.checkpoint import save_checkpoint
from ds2deploy.files import whole_file
from ds2deploy.runtimes.errors import AudioError, ConfigError, TrainingError
from ds2deploy.scoring import Hypothesis
from ds2deploy.step_callback import StepCallback

BEST = "best.ckpt"
LAST = "last.ckpt"
METRICS = "metrics.jsonl"
BROKEN = "broken.jsonl"
HYPOTHESES = "best.jsonl"

BROKEN_SHARE = 0.01
"""Of a training's recordings, those that may be unreadable: a large corpus has some. In a small one
the first ends the training, for each counts."""


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

    def callback(self, board: Board | None = None) -> RunRecorder:
        """What writes the files during a training; see `RunRecorder`."""
        return RunRecorder(self, board)

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl, without one that a dying process left unfinished."""
        path = self.path / METRICS
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        try:
            return [msgspec.json.decode(line, type=dict[str, Any]) for line in lines]
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}: holds a damaged line ({error}); take it out") from None

    def best_metrics(self) -> dict[str, float]:
        """Of the validation with the lowest WER."""
        validations = [line for line in self.metrics() if line["kind"] == "valid"]
        best = min(validations, key=_score, default={})
        return {name: best[name] for name in ("wer", "cer", "valid_loss", "epoch") if name in best}

    def append(self, line: dict[str, Any], name: str = METRICS) -> None:
        """Add a line to metrics.jsonl, or to another such file: whole, whoever else adds to it."""
        path = self.path / name
        encoded = msgspec.json.encode(line) + b"\n"
        try:
            with path.open("ab", buffering=0) as file:
                file.write(encoded)
        except OSError as error:
            raise disk_error(error, path) from None

    def write_hypotheses(self, hypotheses: Sequence[Hypothesis]) -> None:
        """What the best checkpoint made of the validation utterances."""
        with whole_file(self.path / HYPOTHESES) as temporary:
            temporary.write_bytes(b"".join(msgspec.json.encode(h) + b"\n" for h in hypotheses))

    def hypotheses(self) -> list[Hypothesis]:
        """The same; nothing before the first validation."""
        return [msgspec.json.decode(line, type=Hypothesis) for line in self._lines(HYPOTHESES)]

    def broken(self) -> list[dict[str, Any]]:
        """The lines of broken.jsonl: recordings that could not be read."""
        return [msgspec.json.decode(line, type=dict[str, Any]) for line in self._lines(BROKEN)]

    def _lines(self, name: str) -> list[bytes]:
        path = self.path / name
        return path.read_bytes().splitlines() if path.is_file() else []

    def rewind(self, step: int) -> None:
        """Drop the lines past a step, which a resumed training will write again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        with whole_file(self.path / METRICS) as temporary:
            temporary.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in kept))


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

    Attributes:
        validated_step: the step of the last validation.
    """

    def __init__(self, folder: RunFolder, board: Board | None = None) -> None:
        self._folder, self._board = folder, board
        self._best = _score(folder.best_metrics())
        self._started = time.monotonic()
        self.validated_step = -1
        self._epoch = 0
        self._broken: set[str] = set()

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Open the board."""
        super().on_train_start(trainer, module)
        if self._board is not None and trainer.is_global_zero:
            self._board.open(trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        """Name what cannot be read, step or not."""
        self._note_broken(trainer, module, batch.broken)
        self._epoch = trainer.current_epoch + 1
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
            self._write(trainer, kind="train", **values)
            if self._board is not None:
                self._board.add_step(step, values)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """One line, and `best.ckpt` if this is the best validation so far."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.validated_step = trainer.global_step
        if not trainer.is_global_zero:
            return
        self._write(trainer, kind="valid", **metrics)
        if self._board is not None:
            self._board.add_validation(trainer.global_step, metrics, module.hypotheses, module.seen)
        if not math.isfinite(metrics["valid_loss"]):
            raise TrainingError(
                f"{self._folder.path}: the validation loss is {metrics['valid_loss']} at step "
                f"{trainer.global_step}; start again with a lower training.learning_rate"
            )
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
        most = BROKEN_SHARE * module.utterances / trainer.world_size
        for error in broken:
            if error in self._broken:
                continue
            self._broken.add(error)
            place = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
            self._folder.append({**place, "error": error}, BROKEN)
            if len(self._broken) > most:
                others = len(self._broken) - 1
                where = f"; {self._folder.path / BROKEN} names {others} more" if others else ""
                raise AudioError(f"{error}{where}")
            print(f"left out: {error}", file=sys.stderr)

    def _write(self, trainer: lightning.Trainer, **values: Any) -> None:
        elapsed = round(time.monotonic() - self._started, 2)
        place = {"epoch": self._epoch, "step": trainer.global_step}
        self._folder.append({**place, **values, "elapsed_s": elapsed})
