"""Writing of `last.ckpt`, from which an interrupted training resumes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric import Fabric

from ds2deploy.runtimes.errors import Ds2Error, StoppedError, TrainingError
from ds2deploy.runtimes.files import whole_file
from ds2deploy.training.hardware import reduced
from ds2deploy.training.run_folder import disk_error

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a training after a checkpoint."""

WARNING = signal.SIGUSR1
"""Signal by which a scheduler announces the end; writes a checkpoint, and training continues."""


class LastCheckpoint:
    """Writer of `last.ckpt`, after every epoch, at intervals, and when a signal arrives.

    Batches and augmentation depend only on the seed, the epoch and the utterance, and the network
    draws no random numbers. The weights, the states of optimiser and schedule, and the number of
    finished batches therefore suffice to resume exactly.

    Args:
        path: path of the file.
        every_s: interval between checkpoints within an epoch, in seconds.
        fabric: processes of the training.
        content: function that returns the current content of the file.
    """

    def __init__(
        self,
        path: Path,
        every_s: float,
        fabric: Fabric,
        content: Callable[[], dict[str, Any]],
    ) -> None:
        self._path, self._every_s = path, every_s
        self._fabric, self._content = fabric, content
        self._written, self._step = time.monotonic(), content()["global_step"]
        self._stop = 0
        self._warned = False

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handle signals during the context, then restore the previous handlers."""
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for stop in SIGNALS:
                before[stop] = signal.signal(stop, self._on_stop)
            before[WARNING] = signal.signal(WARNING, self._on_warning)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def after_step(self, epoch_ended: bool, failure: Ds2Error | None) -> None:
        """Write the checkpoint if it is due, and end if a process got a signal or failed.

        Args:
            epoch_ended: True at the end of an epoch, where the loop writes a checkpoint itself.
            failure: error of this process; None if it has none.

        Raises:
            StoppedError: a signal arrived.
            Ds2Error: this process or another one failed.
        """
        due = self._fabric.is_global_zero and time.monotonic() - self._written >= self._every_s
        votes = [self._stop, due or self._warned, failure is not None]
        stop, wanted, failed = map(int, reduced(self._fabric, votes, "max"))
        if failed:
            raise failure or TrainingError("another process failed; see its message")
        if stop or (wanted and not epoch_ended):
            self.write()
        if stop:
            raise self._stopped(stop)

    def stop_if_told(self) -> None:
        """End during a validation after a signal; resuming repeats the validation."""
        if self._stop and self._fabric.world_size == 1:  # other processes would wait for this one
            raise self._stopped(self._stop)

    def write(self) -> None:
        """Write the checkpoint in one process, while the others wait.

        Raises:
            OSError: the disk is full; the previous file is kept.
        """
        error: OSError | None = None
        content = self._content()
        try:
            if self._fabric.is_global_zero:
                with whole_file(self._path) as temporary, temporary.open("wb") as file:
                    torch.save(content, file)
        except OSError as raised:
            error = raised
        if any(reduced(self._fabric, [error is not None], "max")):
            error = error or OSError("on another process")
            raise disk_error(error, self._path, self._kept()) from None
        self._written, self._step, self._warned = time.monotonic(), content["global_step"], False

    def _stopped(self, number: int) -> StoppedError:
        remedy = ": resume with --resume" if self._path.is_file() else ", start again"
        name = signal.Signals(number).name
        return StoppedError(
            f"{self._path.parent}: stopped by {name}; {self._kept()}{remedy}", number
        )

    def _kept(self) -> str:
        there = self._path.is_file()
        return f"last.ckpt contains step {self._step}" if there else "there is no last.ckpt yet"

    def _on_stop(self, number: int, _: FrameType | None) -> None:
        if self._stop:  # a second signal ends the process at once
            raise self._stopped(number)
        self._stop = number

    def _on_warning(self, *_: Any) -> None:
        self._warned = True
