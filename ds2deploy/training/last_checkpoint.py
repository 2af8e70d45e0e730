"""`last.ckpt`: what a training goes on from, whatever ends the process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch

from ds2deploy.runtimes.errors import StoppedError, TrainingError
from ds2deploy.runtimes.files import WholeFiles
from ds2deploy.training.callbacks import StepCallback
from ds2deploy.training.run_folder import disk_error

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""End a training, after a checkpoint."""

WARNING = signal.SIGUSR1
"""A scheduler's announcement that the end is near: a checkpoint, and the training goes on."""


class LastCheckpoint(StepCallback):
    """Writes it after every epoch, every so many minutes, and when a signal comes.

    Batches and augmentation depend on the seed, the epoch and the utterance alone, and the network
    draws nothing: the plan's place, the optimiser's and the schedule's state and the weights are
    all that a training needs to go on as if nothing had happened.

    Args:
        path: of the file.
        every_s: seconds between two of them within an epoch.
    """

    def __init__(self, path: Path, every_s: float) -> None:
        self._path, self._every_s = path, every_s
        self._written = time.monotonic()
        self._saved_step = 0
        self._stop = 0
        self._warned = False
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Listen to signals, in the place of Lightning, which would end without a checkpoint."""
        super().on_train_start(trainer, module)
        self._saved_step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._handlers[number] = signal.signal(number, self._on_stop)
            self._handlers[WARNING] = signal.signal(WARNING, self._on_warning)

    def on_step(self, trainer: lightning.Trainer, module: Any, loss: float, index: int) -> None:
        """Write it if it is time, or end if a process was told to, or cannot go on."""
        stop, wanted, failed = self._agree(trainer, module)
        if failed:
            raise module.failure or TrainingError("another process cannot go on, and says why")
        if index + 1 >= trainer.num_training_batches:
            # Another follows at the end of the epoch; but a validation comes before that.
            if stop or (trainer.current_epoch + 1) % module.recipe.training.validate_every == 0:
                with _epoch_has_ended(trainer):
                    self._write(trainer)
        elif stop or wanted:
            self._write(trainer)
        if stop:
            raise self._stopped(stop)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """A validation is not waited for: it is made when the training is resumed.

        Unless other processes are in it, which would wait for this one.
        """
        if self._stop and trainer.state.fn == "fit" and trainer.world_size == 1:
            raise self._stopped(self._stop)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Write it."""
        self._write(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Give the signals back."""
        self._release()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: Any) -> None:
        """Give the signals back."""
        self._release()

    def _agree(self, trainer: lightning.Trainer, module: Any) -> tuple[int, bool, bool]:
        """The signal to stop by, whether to write, whether one failed: the same for all."""
        due = trainer.is_global_zero and time.monotonic() - self._written >= self._every_s
        votes = [self._stop, due or self._warned, module.failure is not None]
        stop, wanted, failed = _most(trainer, votes)
        return stop, bool(wanted), bool(failed)

    def _write(self, trainer: lightning.Trainer) -> None:
        error: OSError | None = None
        saved = False
        try:
            with WholeFiles() as files:
                # One process writes; the others wait for it.
                here = files.add(self._path) if trainer.is_global_zero else self._path
                trainer.save_checkpoint(here)
                saved = True
        except OSError as raised:
            error = raised
            if not saved:
                trainer.strategy.barrier("Trainer.save_checkpoint")  # at which the others wait
        if any(_most(trainer, [error is not None])):
            kept = f"last.ckpt is of step {self._saved_step}"
            if not self._path.is_file():
                kept = "there is no last.ckpt yet"
            raise disk_error(error or OSError("on another process"), self._path, kept) from None
        self._written, self._saved_step, self._warned = time.monotonic(), trainer.global_step, False

    def _stopped(self, number: int) -> StoppedError:
        kept = f"{self._path.name} is of step {self._saved_step}: go on from it with --resume"
        if not self._path.is_file():
            kept = f"there is no {self._path.name} yet, start again"
        name = signal.Signals(number).name
        return StoppedError(f"{self._path.parent}: stopped by {name}; {kept}", number)

    def _on_stop(self, number: int, _: FrameType | None) -> None:
        if self._stop:  # a second time: at once
            raise self._stopped(number)
        self._stop = number

    def _on_warning(self, *_: Any) -> None:
        self._warned = True

    def _release(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()


@contextmanager
def _epoch_has_ended(trainer: lightning.Trainer) -> Iterator[None]:
    """Lightning's counts as they will be after the validation: between, it cannot go on."""
    loop: Any = trainer.fit_loop
    epochs, batches = loop.epoch_progress, loop.epoch_loop.batch_progress
    epochs.increment_processed()
    batches.increment_completed()
    try:
        yield
    finally:
        for counts in (epochs.current, epochs.total):
            counts.processed -= 1
        for counts in (batches.current, batches.total):
            counts.completed -= 1


def _most(trainer: lightning.Trainer, votes: list[int] | list[bool]) -> list[int]:
    """The largest vote of all processes, one by one."""
    if trainer.world_size == 1:
        return [int(vote) for vote in votes]
    cast = torch.tensor([float(vote) for vote in votes], device=trainer.strategy.root_device)
    return [int(vote) for vote in trainer.strategy.reduce(cast, reduce_op="max")]
