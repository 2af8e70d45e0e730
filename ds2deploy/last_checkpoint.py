"""`last.ckpt`: what a training goes on from, whatever ends the process."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch

from ds2deploy.run_folder import disk_error
from ds2deploy.runtimes.errors import StoppedError
from ds2deploy.step_callback import StepCallback

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
        """Write it if it is time, or if a process was told to end."""
        stop, wanted = self._agree(trainer)
        # At the end of an epoch comes one anyway, after the validation.
        if stop or (wanted and index + 1 < trainer.num_training_batches):
            self._write(trainer)
        if stop:
            raise self._stopped(stop)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """A validation is not waited for: it is made again."""
        if self._stop and trainer.state.fn == "fit":
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

    def _agree(self, trainer: lightning.Trainer) -> tuple[int, bool]:
        """Whether to stop, by which signal, and whether to write: the same for all processes."""
        due = trainer.is_global_zero and time.monotonic() - self._written >= self._every_s
        if trainer.world_size == 1:
            return self._stop, due or self._warned
        votes = torch.tensor([float(self._stop), float(due or self._warned)])
        votes = trainer.strategy.reduce(votes.to(trainer.strategy.root_device), reduce_op="max")
        return int(votes[0]), bool(votes[1])

    def _write(self, trainer: lightning.Trainer) -> None:
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            step = self._saved_step
            kept = f"last.ckpt is of step {step}" if step else "there is no last.ckpt yet"
            raise disk_error(error, self._path, kept) from None
        self._written, self._saved_step, self._warned = time.monotonic(), trainer.global_step, False

    def _stopped(self, number: int) -> StoppedError:
        name = signal.Signals(number).name
        return StoppedError(
            f"{self._path.parent}: stopped by {name}; {self._path.name} is of step "
            f"{self._saved_step}: go on from it with --resume",
            number,
        )

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
