"""Progress of long work: a display on a terminal, and occasional lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ds2deploy.output import in_one_line, print_error

SILENCE_S = 10.0
"""Time without a line before one is written, in seconds; a log then gets one every 15 s, even if a
busy machine delays it."""

MOST_LINES = 120
"""Approximate number of lines of a command that runs for hours; the intervals grow with time."""


class Heartbeat:
    """Writer of the current step of a long command to stderr after a time without output.

    Args:
        title: name of the work, with which every line begins.
        silent: write nothing.
        clock: function that returns the time, in seconds.
    """

    def __init__(
        self, title: str, silent: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title, self._silent, self._clock = title, silent, clock
        self._started = self._written = self._told = clock()
        self._message = ""
        self._lock = threading.Lock()

    def tell(self, message: str) -> None:
        """Set the current step, and write it if a line is due."""
        if self._silent:
            return
        with self._lock:
            if message != self._message:
                self._message, self._told = message, self._clock()
        self.beat()

    def note_line(self) -> None:
        """Record that another part of the program has written a line."""
        self._written = self._clock()

    def beat(self) -> None:
        """Write a line if one is due, with the duration of a long step."""
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
    """Write progress lines during the context if stderr is not a terminal.

    A thread checks the time, so that a single long step is reported as well.

    Args:
        title: name of the work.
        wanted: False writes nothing, for the processes of a training that do not report.

    Yields:
        The heartbeat; call its `tell` for every step.
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
    """Show the current step on stderr: a spinner on a terminal, occasional lines elsewhere.

    Args:
        title: name of the work.

    Yields:
        A function to call with a description of every step.
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
        A function to call with the number of finished files and their duration, in seconds.
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
    # Output during the context is printed above the bar if both are on the terminal; output to a
    # pipe or file is unchanged.
    with Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(title, total=total, facts=facts(0))
        yield lambda done, audio_s: bar.update(task, completed=done, facts=facts(audio_s))
