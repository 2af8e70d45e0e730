"""Progress of long work: a display on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ds2deploy.output import in_one_line, print_error

SILENCE_S = 10.0
"""Seconds without a line before one is written: a log gets one every 15 s, even if a busy machine
delays it."""

MOST_LINES = 120
"""Number of lines of a command that runs for hours, about: its silences grow with its time."""


class Heartbeat:
    """Writes the current step of a long command to stderr when nothing was written for a while.

    Args:
        title: name of the work; begins every line.
        silent: write nothing.
        clock: seconds, from any start.
    """

    def __init__(
        self, title: str, silent: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title, self._silent, self._clock = title, silent, clock
        self._started = self._written = self._told = clock()
        self._message = ""
        self._lock = threading.Lock()

    def tell(self, message: str) -> None:
        """Take note of the current step, and write it if a line is due."""
        if self._silent:
            return
        with self._lock:
            if message != self._message:
                self._message, self._told = message, self._clock()
        self.beat()

    def note_line(self) -> None:
        """Take note of a line that something else has written."""
        self._written = self._clock()

    def beat(self) -> None:
        """Write a line if one is due, with the duration of a step that takes long."""
        with self._lock:
            now = self._clock()
            silence_s = max(SILENCE_S, (now - self._started) / MOST_LINES)
            if self._silent or now - self._written < silence_s:
                return
            self._written = now
            line = f"{self._title}: {self._message}" if self._message else self._title
            if now - self._told >= silence_s:
                line += f", for {now - self._told:.0f} s so far"
        print_error(in_one_line(line))


@contextmanager
def heartbeat(title: str, wanted: bool = True) -> Iterator[Heartbeat]:
    """Write lines on the work that is done meanwhile, where stderr is not a terminal.

    A thread watches the clock, so that a single long step is reported too.

    Args:
        title: name of the work.
        wanted: write at all; False in the processes of a training that do not report.

    Yields:
        The heartbeat, to be told of every step.
    """
    beating = Heartbeat(title, silent=not wanted or sys.stderr.isatty())
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            beating.beat()

    thread = threading.Thread(target=watch, name="ds2deploy-heartbeat", daemon=True)
    thread.start()
    try:
        yield beating
    finally:
        ended.set()
        thread.join()


@contextmanager
def status(title: str) -> Iterator[Callable[[str], None]]:
    """Show the current step on stderr: a spinner on a terminal, a line now and then elsewhere.

    Args:
        title: name of the work.

    Yields:
        A function to call with every step.
    """
    if not sys.stderr.isatty():
        with heartbeat(title) as beating:
            yield beating.tell
        return
    from rich.console import Console

    with Console(stderr=True).status(title) as spinner:
        yield lambda message: spinner.update(f"{title}: {message}")


@contextmanager
def file_progress(title: str, total: int) -> Iterator[Callable[[int, float], None]]:
    """Show files, seconds of audio and speed on stderr: a bar on a terminal, lines elsewhere.

    Args:
        title: name of the work.
        total: number of files.

    Yields:
        A function to call with the number of files that are done, and their seconds of audio.
    """
    started = time.monotonic()

    def facts(audio_s: float) -> str:
        return f"{audio_s:.0f} s of audio, {audio_s / (time.monotonic() - started + 1e-9):.3g}x"

    if not sys.stderr.isatty():
        with heartbeat(title) as lines:
            yield lambda done, audio_s: lines.tell(f"{done} of {total} files, {facts(audio_s)}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files, {task.fields[facts]}"),
    )
    # What is printed meanwhile goes above the bar where both are on the terminal; a pipe or a file
    # gets it untouched.
    with Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(title, total=total, facts=facts(0))
        yield lambda done, audio_s: bar.update(task, completed=done, facts=facts(audio_s))
