"""`ds2deploy inspect`: facts about files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ds2deploy.cli.errors import BAD_RESULT, complain, complain_of, exit_where_broken
from ds2deploy.cli.options import Json
from ds2deploy.cli.printing import print_json
from ds2deploy.output import escape_control
from ds2deploy.runtimes.errors import Ds2Error


def inspect(
    files: Annotated[
        list[Path],
        typer.Argument(
            readable=False,
            metavar="FILE...",
            help="Checkpoints, artifacts, manifests or recordings.",
        ),
    ],
    json: Json = False,
) -> None:
    """Describe checkpoints, artifacts, manifests and recordings.

    Of several files, unreadable ones are named on stderr and the others are described; then the
    exit code is 1, or 2 if no file could be read. With --json, several files are a list.

    Example: ds2deploy inspect deploy/model.onnx
    """
    from ds2deploy.inspection import inspect_file

    documents: list[dict[str, Any]] = []
    broken, partly = 0, False
    for file in files:
        try:
            facts = inspect_file(file)
        except (Ds2Error, OSError) as error:
            if len(files) == 1 or (isinstance(error, OSError) and error.strerror is None):
                raise
            broken += 1
            documents.append({"file": str(file), "error": complain_of(error)})
            continue
        for fault in facts["details"].get("left_out", ()):
            complain(fault)
            partly = True
        documents.append(facts)
        if not json:
            _print_facts(facts, first=len(documents) == 1)
    if json:
        print_json({"files": documents} if len(files) > 1 else documents[0])
    exit_where_broken(broken, len(files))
    if partly:
        raise typer.Exit(BAD_RESULT)


def _print_facts(facts: dict[str, Any], first: bool) -> None:
    """Print one line per fact, after an empty line if the file is not the first."""
    if not first:
        typer.echo()
    named = {name: value for name, value in facts.items() if name != "details"}
    width = max(len(name) for name in named)
    for name, value in named.items():
        typer.echo(f"{name:{width}}  {escape_control(str(value))}")
