"""Commands of the command line, each built when it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


class Commands(Mapping[str, Any]):
    """Commands by name. Looking one up imports its module: building all takes 10 times as long."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        if name not in self._built:
            self._built[name] = build_command(name)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class CommandGroup(ErrorsInOneLine):
    """The group of all commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        """List the names of the commands without building them."""
        return list(COMMANDS)


def build_command(name: str) -> Any:
    """Import the module of a command and build the command."""
    function = getattr(import_module(f"ds2deploy.cli.{name}"), name)
    single = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    single.command(cls=GroupedCommand)(function)
    return typer.main.get_command(single)
