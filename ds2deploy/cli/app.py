"""Commands and entry point of the command line."""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from ds2deploy.cli.commands import CommandGroup
from ds2deploy.cli.errors import BAD_INPUT, complain
from ds2deploy.output import open_streams
from ds2deploy.runtimes.errors import AudioWarning, OutputError

app = typer.Typer(
    cls=CommandGroup,
    help="Train DeepSpeech 2, export it to ONNX, run it without PyTorch, and prove they agree.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SPINS = "1000"
"""Number of rounds that a waiting libgomp thread spins before it sleeps: about 10 microseconds.

torch computes with libgomp, whose default is 300,000 rounds (3 ms). When another process has
displaced a thread, the threads that wait for it would spin on the core that it needs.
"""


OBJECTS = 10_000
"""Number of new objects after which Python looks for unused ones. At its own 700 it looks 40 times
while `ds2deploy transcribe` imports what it needs, which is 4 % of the command's time."""


def main() -> None:
    """Run the `ds2deploy` command."""
    gc.set_threshold(OBJECTS, *gc.get_threshold()[1:])
    # Exit through SystemExit, so that half-written files are removed, as after an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    shorten_spinning()  # before torch is imported
    try:
        open_streams()
    except OutputError as error:
        complain(error)
        sys.exit(BAD_INPUT)
    try:
        app(prog_name="ds2deploy")
    finally:
        # Python's exit searches all objects for cycles, a tenth of the time of `transcribe`. The
        # system frees their memory anyway, and files are closed by those that opened them.
        gc.freeze()


def shorten_spinning() -> None:
    """Make waiting threads of torch sleep early, unless the environment sets this already.

    Call it before torch is imported, and only in processes of ds2deploy: libgomp reads the
    environment when it is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def _version(wanted: bool) -> None:
    if wanted:
        from ds2deploy.version import __version__

        typer.echo(f"ds2deploy {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Handle the options of ds2deploy itself."""
    warnings.showwarning = partial(_show_warning, warnings.showwarning)


def _show_warning(
    other: Callable[..., None], message: Warning | str, category: type[Warning], *rest: Any
) -> None:
    """Print a warning about a recording as one line, and other warnings as `other` does."""
    if issubclass(category, AudioWarning):
        complain(message)
    else:
        other(message, category, *rest)
