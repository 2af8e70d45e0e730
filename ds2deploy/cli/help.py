"""Help of commands, with the options in named groups."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from ds2deploy.cli.values import convert_plain_values


class GroupedCommand(TyperCommand):
    """Command whose help lists options in their groups (`rich_help_panel`).

    typer itself groups options only with rich, and loads pydantic for the types of arguments.
    Each of the two takes longer than the rest of the help.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """List the parameters; plain values of them need no pydantic."""
        return convert_plain_values(super().get_params(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options without a group, then each group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                groups["Arguments"].append(_argument(parameter))
            elif (record := parameter.get_help_record(ctx)) is not None:
                title = getattr(parameter, "rich_help_panel", None) or "Options"
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _argument(parameter: Any) -> tuple[str, str]:
    """Make the name and the help text of an argument."""
    name = parameter.metavar or parameter.name.upper()
    return f"{name}{'' if parameter.nargs == 1 else '...'}", parameter.help
