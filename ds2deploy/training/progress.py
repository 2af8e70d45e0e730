"""A person's view of a training: a bar on a terminal; lines of steps and validations elsewhere."""

from __future__ import annotations

import time
from typing import Any

import lightning
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ds2deploy.heartbeat import Heartbeat


class TrainingProgress(lightning.Callback):
    """Shows epoch, step, loss and the last word error rate.

    Args:
        beating: writes the steps where there is no bar.
        console: where to; stderr without one.
    """

    def __init__(self, beating: Heartbeat | None = None, console: Console | None = None) -> None:
        self._beating = beating or Heartbeat("training", silent=True)
        self._console = console or Console(stderr=True)
        self._started = time.monotonic()
        self._loss = float("nan")
        self._epoch = 0
        self._bar: Progress | None = None
        self._total = 0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Open the bar, where there is a terminal."""
        training = module.recipe.training
        total = module.steps_per_epoch * training.epochs
        self._total = min(total, training.max_steps or total)
        if not trainer.is_global_zero or not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.description}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=self._total, completed=trainer.global_step)
        self._bar.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        """Advance it."""
        self._epoch = trainer.current_epoch + 1
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        if batch.scale:  # without an utterance that can be used, it is 0, and no success
            self._loss = loss if self._loss != self._loss else 0.9 * self._loss + 0.1 * loss
        if self._bar is not None:
            self._bar.update(
                self._task, completed=trainer.global_step, description=f"loss {self._loss:.2f}"
            )
        self._beating.tell(f"{self._place(trainer, module)}, loss {self._loss:.2f}")

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int,
        dataloader: int = 0,
    ) -> None:  # fmt: skip
        """Count the batches that were validated."""
        self._beating.tell(f"{self._place(trainer, module)}, validated {index + 1} batches")

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """One line that stays."""
        if trainer.is_global_zero:
            metrics = trainer.callback_metrics
            self._console.print(
                f"epoch {self._epoch:3}/{module.recipe.training.epochs}  "
                f"step {trainer.global_step:5}  loss {self._loss:7.2f}  "
                f"WER {100 * metrics['wer']:6.2f} %  CER {100 * metrics['cer']:6.2f} %  "
                f"{time.monotonic() - self._started:6.0f} s",
                highlight=False,
            )
            self._beating.note_line()

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Close it."""
        self._close()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: Any) -> None:
        """Close it."""
        self._close()

    def _place(self, trainer: lightning.Trainer, module: Any) -> str:
        epochs = module.recipe.training.epochs
        place = f"epoch {trainer.current_epoch + 1}/{epochs}, step {trainer.global_step}"
        return f"{place} of {self._total}" if self._total else place

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
