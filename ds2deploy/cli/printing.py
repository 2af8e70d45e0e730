"""Results on standard output, and progress on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ds2deploy.heartbeat import heartbeat
from ds2deploy.output import json_for_output


def print_json(document: Any) -> None:
    """Print a document, indented."""
    sys.stdout.write(json_for_output(document, indent=True) + "\n")


def print_json_line(document: Any) -> None:
    """Print a document in one line, at once."""
    sys.stdout.write(json_for_output(document, indent=False) + "\n")
    sys.stdout.flush()


def print_line(text: str) -> None:
    """Print a line above the progress bar, which typer.echo would write into."""
    print(text, flush=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int, float], None]]:
    """Show progress on stderr: a bar on a terminal, otherwise a line now and then.

    Args:
        title: first words of the bar or line
        total: number of files

    Yields:
        Function to call with the number of files done and their seconds of audio.
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
