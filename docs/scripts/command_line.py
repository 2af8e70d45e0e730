"""Write the reference of the command line: `python docs/scripts/command_line.py OUT.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer.main

from ds2deploy.cli.app import app

INTRODUCTION = """# Command line

This page is generated from the program's help. Exit codes: 0 success; 1 the command ran, but the
result is bad or some inputs failed; 2 invalid input or usage, with one line on standard error that
names the problem and the remedy.
"""


def reference() -> str:
    """Make the whole page in Markdown."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("ds2deploy", [], resilient_parsing=True)
    parts = [INTRODUCTION]
    for name in group.list_commands(context):
        parts.extend(_command(group.get_command(context, name), name, context))
    return "\n".join(parts)


def _command(command: Any, name: str, group: Any) -> Iterator[str]:
    context = command.make_context(name, [], parent=group, resilient_parsing=True)
    yield f"## {name}\n"
    for paragraph in (command.help or "").strip().split("\n\n"):
        text = " ".join(paragraph.split())
        title, colon, example = text.partition(": ")
        if colon and "ds2deploy" in example and len(title) < 60:
            yield f"{title}:\n\n```text\n{example}\n```\n"
        else:
            yield f"{text}\n"
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    if arguments:
        yield _table("argument", [(_metavar(item), item.help or "") for item in arguments])
    panels: dict[str, list[tuple[str, str]]] = {}
    for item in command.params:
        record = item.get_help_record(context) if item.param_type_name == "option" else None
        if record is not None:
            panel = getattr(item, "rich_help_panel", None) or ""
            panels.setdefault(panel, []).append(record)
    for panel, options in panels.items():
        if panel:
            yield f"### {panel} {{: #{name}-{panel.lower().replace(' ', '-')} }}\n"
        yield _table("option", options)


def _table(kind: str, rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {kind} | meaning |", "|---|---|"]
    for name, text in rows:
        meaning = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{name}` | {meaning} |")
    return "\n".join([*lines, ""])


def _metavar(item: Any) -> str:
    return str(item.metavar or item.name.upper())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), "utf-8")
