"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ds2deploy.cli.errors import complain
from ds2deploy.runtimes.backends import BACKENDS
from ds2deploy.runtimes.errors import ConfigError

RUNTIME = "Runtime"
"""Title of the option group that chooses where a model runs."""

DEVICE_RUNTIMES = tuple(backend.name for backend in BACKENDS)
"""Runtimes that need no PyTorch."""

RUNTIME_NAMES = f"{', '.join(DEVICE_RUNTIMES)} or torch"

MODEL_HELP = "Model to run: an artifact (.onnx, .engine) or a checkpoint (.ckpt)."

STDIN = Path("-")
"""Path that stands for standard input where a recording is expected."""


def argument(metavar: str, text: str) -> Any:
    """Describe an argument by its name in the usage and its help text.

    typer does not check that files are readable: the library's error names the remedy.
    """
    return typer.Argument(metavar=metavar, readable=False, help=text)


def option(metavar: str, text: str, group: str | None = None, **settings: Any) -> Any:
    """Describe an option by the placeholder of its value, its help text, and its group."""
    return typer.Option(
        metavar=metavar, readable=False, help=text, rich_help_panel=group, **settings
    )


def flag(name: str, text: str, group: str | None = None) -> Any:
    """Describe an option without a value."""
    return typer.Option(name, help=text, rich_help_panel=group)


def known_runtime(name: str | None) -> Any:
    """Check the name of a runtime.

    Raises:
        ConfigError: no such runtime; the message lists the known ones.
    """
    if name is None:
        return None
    from ds2deploy.loading import runtime_names

    if name not in runtime_names():
        remedy = f"; or --device {name}" if re.fullmatch(r"cpu|cuda:\d+", name) else ""
        raise ConfigError(f"--runtime {name}: expected one of {', '.join(runtime_names())}{remedy}")
    return name


def at_most_cores(threads: int) -> int:
    """Limit a number of threads to the cores of this process, and report if it was higher."""
    if not threads:
        return 0
    from ds2deploy.runtimes.session import usable_cores

    cores = usable_cores()
    if threads > cores:
        complain(f"--threads {threads}: this process may use {cores} cores; {cores} are used")
    return min(threads, cores)


Json = Annotated[bool, flag("--json", "Print the result as one JSON document on stdout.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override a value of the recipe. Repeat the option for several values.",
    ),
]
Device = Annotated[
    str | None,
    option("NAME", "Device to run on: cpu, cuda or cuda:1. Default: the runtime's own.", RUNTIME),
]
RuntimeName = Annotated[
    str | None,
    option(
        "NAME",
        f"Runtime to use: {RUNTIME_NAMES}. Default: the usual runtime of the file's format.",
        RUNTIME,
    ),
]
Threads = Annotated[
    int,
    option(
        "COUNT",
        "Number of CPU threads, at most one per core; 0 lets the runtime choose.",
        RUNTIME,
        min=0,
        callback=at_most_cores,
    ),
]
