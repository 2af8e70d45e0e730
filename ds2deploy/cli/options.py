"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ds2deploy.cli.errors import complain
from ds2deploy.runtimes.errors import ConfigError

RUNTIME = "Runtime"
"""Title of the group of options that choose where a model runs."""

RUNTIME_NAMES = "onnxruntime, cuda, tensorrt, rtx, openvino or torch"

STDIN = Path("-")
"""Name of standard input in the place of a recording."""


def argument(metavar: str, text: str) -> Any:
    """Describe an argument: its name in the usage, and its help.

    A file that cannot be read is reported by the library, with the remedy.
    """
    return typer.Argument(metavar=metavar, readable=False, help=text)


def option(metavar: str, text: str, group: str | None = None, **settings: Any) -> Any:
    """Describe an option with a value: what stands for the value, its help, and its group."""
    return typer.Option(
        metavar=metavar, readable=False, help=text, rich_help_panel=group, **settings
    )


def flag(name: str, text: str, group: str | None = None) -> Any:
    """Describe an option without a value."""
    return typer.Option(name, help=text, rich_help_panel=group)


def known_runtime(name: str | None) -> Any:
    """Check the name of a runtime.

    Raises:
        ConfigError: no such runtime; names those that there are.
    """
    if name is None:
        return None
    from ds2deploy.loading import runtime_names

    if name not in runtime_names():
        remedy = f"; or --device {name}" if re.fullmatch(r"cpu|cuda:\d+", name) else ""
        raise ConfigError(f"--runtime {name}: expected one of {', '.join(runtime_names())}{remedy}")
    return name


def at_most_cores(threads: int) -> int:
    """Bound a number of threads by the cores of this process, with a line where it is lower."""
    if not threads:
        return 0
    from ds2deploy.runtimes.session import usable_cores

    cores = usable_cores()
    if threads > cores:
        complain(f"--threads {threads}: more than the cores of this process; {cores} are used")
    return min(threads, cores)


Json = Annotated[bool, flag("--json", "Print one JSON document on stdout.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override a value of the recipe; may be repeated.",
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
        f"Runtime to use: {RUNTIME_NAMES}. Default: the one that the file is made for.",
        RUNTIME,
    ),
]
Threads = Annotated[
    int,
    option(
        "COUNT",
        "CPU threads, at most one per core; 0 lets the runtime choose.",
        RUNTIME,
        min=0,
        callback=at_most_cores,
    ),
]
