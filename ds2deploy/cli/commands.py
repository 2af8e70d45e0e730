"""Commands of the command line, each built when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer

from ds2deploy.cli.errors import ErrorsInOneLine
from ds2deploy.cli.help import GroupedCommand

COMMANDS = (
    "prepare", "train", "evaluate", "compress", "export", "verify", "lm", "tune", "transcribe",
    "bulk", "serve", "bench", "inspect", "doctor", "demo",
)  # fmt: skip
"""Names of the commands, in the order of the help. A command is the function of this name in the
module of this name in `ds2deploy.cli`."""


class CommandGroup(ErrorsInOneLine):
    """The group of all commands, which builds one that is asked for: all take 10 times as long."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = dict.fromkeys(COMMANDS)  # the names, for lists and suggestions

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Build a command; None if there is none of this name."""
        return build_command(cmd_name) if cmd_name in COMMANDS else None


def build_command(name: str) -> Any:
    """Import the module of a command and build the command."""
    function = getattr(import_module(f"ds2deploy.cli.{name}"), name)
    single = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    single.command(cls=GroupedCommand)(function)
    return typer.main.get_command(single)
