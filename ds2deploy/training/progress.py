"""Progress display of a training: a bar on a terminal, and log lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ds2deploy.heartbeat import Heartbeat
from ds2deploy.training.hardware import is_main_process
from ds2deploy.training.run_folder import ResumePoint, Stage


class TrainingProgress:
    """Display of epoch, step, loss and the last word error rate.

    Args:
        epochs: number of epochs of the training.
        heartbeat: writer of step lines if there is no bar.
        console: console to write to; None writes to stderr.
        stage: stage of the training; None for one without stages.

    Attributes:
        loss: moving average of the loss; NaN before the first batch.
    """

    def __init__(
        self,
        epochs: int,
        heartbeat: Heartbeat,
        console: Console | None = None,
        stage: Stage | None = None,
    ) -> None:
        self._epochs, self._heartbeat = epochs, heartbeat
        self._stage = "" if stage is None else f"{stage}, "
        self._console = console or Console(stderr=True)
        self._started = time.monotonic()
        self.loss = float("nan")
        self._bar: Progress | None = None
        self._total = 0

    @contextmanager
    def bar(self, step: int, total: int) -> Iterator[None]:
        """Show a bar with `step` of `total` steps done, if there is a terminal."""
        self._total = total
        if not (is_main_process() and self._console.is_terminal):
            yield
            return
        columns = (
            TextColumn(f"[bold]{self._stage}training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.description}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as self._bar:
            self._task = self._bar.add_task("", total=total, completed=step)
            yield

    def note_plan(self, total: int) -> None:
        """Change the total number of steps, which may differ from the first estimate."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def note_batch(self, point: ResumePoint, loss: float | None) -> None:
        """Show the loss of a batch; None for a batch without a usable utterance."""
        if loss is not None:
            self.loss = loss if self.loss != self.loss else 0.9 * self.loss + 0.1 * loss
        if self._bar is not None:
            self._bar.update(self._task, completed=point.step, description=f"loss {self.loss:.2f}")
        self._heartbeat.tell(f"{self._at(point)}, loss {self.loss:.2f}")

    def note_validated(self, point: ResumePoint, batches: int) -> None:
        """Count the batches of a validation."""
        self._heartbeat.tell(f"{self._at(point)}, validated {batches} batches")

    def note_validation(self, point: ResumePoint, metrics: dict[str, float]) -> None:
        """Write a permanent line with the result of a validation."""
        if not is_main_process():
            return
        self._console.print(
            f"{self._stage}epoch {point.epoch:3}/{self._epochs}  step {point.step:5}  "
            f"loss {self.loss:7.2f}  "
            f"WER {100 * metrics['wer']:6.2f} %  CER {100 * metrics['cer']:6.2f} %  "
            f"{time.monotonic() - self._started:6.0f} s",
            highlight=False,
            soft_wrap=True,
        )
        self._heartbeat.note_line()

    def _at(self, point: ResumePoint) -> str:
        at = f"{self._stage}epoch {point.epoch}/{self._epochs}, step {point.step}"
        return f"{at} of {self._total}" if self._total else at
