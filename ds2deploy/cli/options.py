"""Options that several commands share, and their parsing."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from ds2deploy.cli.errors import complain
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.session import usable_cores

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda or cuda:1; by default the one of the runtime.", rich_help_panel="Runtime"
    ),
]
RuntimeName = Annotated[
    str | None,
    typer.Option(
        help="onnxruntime, cuda, tensorrt, rtx, openvino or torch; by default the one of the file.",
        rich_help_panel="Runtime",
    ),
]


def _at_most_cores(threads: int) -> int:
    cores = usable_cores()
    if threads > cores:
        complain(f"--threads {threads}: more than the cores of this process; {cores} are used")
    return min(threads, cores)


Threads = Annotated[
    int,
    typer.Option(
        min=0,
        callback=_at_most_cores,
        help="CPU threads, at most one per core; 0 lets the runtime choose.",
        rich_help_panel="Runtime",
    ),
]


def runtime_name(name: str | None) -> Any:
    """Check the name given with --runtime; None stays None."""
    from ds2deploy.loading import runtime_names

    if name is not None and name not in runtime_names():
        remedy = f"; or --device {name}" if re.fullmatch(r"cpu|cuda:\d+", name) else ""
        raise ConfigError(f"--runtime {name}: expected one of {', '.join(runtime_names())}{remedy}")
    return name
