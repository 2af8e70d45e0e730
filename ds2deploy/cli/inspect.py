"""The command `ds2deploy inspect`, which describes files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ds2deploy.cli.errors import BAD_RESULT, complain, error_text, exit_if_failed
from ds2deploy.cli.options import Json, argument
from ds2deploy.output import escape_control, print_json
from ds2deploy.runtimes.errors import Ds2Error

FILES_HELP = (
    "Files to describe: checkpoints, artifacts, language models, decoder settings, manifests or "
    "recordings."
)


def inspect(
    files: Annotated[list[Path], argument("FILE", FILES_HELP)],
    json: Json = False,
) -> None:
    """Describe models, manifests and recordings.

    If several files are given, unreadable ones are reported on stderr and skipped. The exit code
    is then 1, or 2 if no file can be read. With --json, several files are printed as a list.

    Example: ds2deploy inspect deploy/model.onnx
    """
    from ds2deploy.inspection import inspect_file

    documents: list[dict[str, Any]] = []
    failed, partly = 0, False
    for file in files:
        try:
            facts = inspect_file(file)
        except (Ds2Error, OSError) as error:
            if len(files) == 1:
                raise
            failed += 1
            documents.append({"file": str(file), "error": error_text(error)})
            complain(documents[-1]["error"])
            continue
        for fault in facts["details"].get("left_out", ()):
            complain(fault)
            partly = True
        documents.append(facts)
        if not json:
            _print_facts(facts, first=len(documents) == 1)
    if json:
        print_json({"files": documents} if len(files) > 1 else documents[0])
    exit_if_failed(failed, len(files))
    if partly:
        raise typer.Exit(BAD_RESULT)


def _print_facts(facts: dict[str, Any], first: bool) -> None:
    """Print one line for each fact, after an empty line if it is not the first file."""
    if not first:
        typer.echo()
    named = {name: value for name, value in facts.items() if name != "details"}
    width = max(len(name) for name in named)
    for name, value in named.items():
        typer.echo(f"{name:{width}}  {escape_control(str(value))}")
