"""Errors of a command: one line on standard error, and an exit code."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ds2deploy.output import give_up_unwritten, in_one_line, print_error
from ds2deploy.runtimes.errors import (
    Ds2Error,
    ParityError,
    StoppedError,
    TrainingError,
)

BAD_RESULT = 1
BAD_INPUT = 2

USAGE_ERROR: Any = typer.BadParameter.__bases__[0]
"""Class of wrong calls: click's, of which newer versions of typer hold a copy of their own."""


class ErrorsInOneLine(TyperGroup):
    """Turns the errors that a person can act on into one line and an exit code."""

    def get_params(self, ctx: Any) -> list[Any]:
        """List the parameters; every flag has a value, where typer would load pydantic for None."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.default is None:
                parameter.default = False
        return parameters

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        """Run the command, and end the process."""
        options["standalone_mode"] = False
        try:
            code = super().main(*arguments, **options) or 0
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads has seen enough
            code = BAD_RESULT
        except typer.Abort:
            complain("aborted")
            code = BAD_RESULT
        except USAGE_ERROR as error:
            code = _usage(error)
        except (Ds2Error, OSError) as error:
            complain(error_text(error))
            code = _exit_code(error)
        give_up_unwritten()
        raise SystemExit(code)


def complain(message: object) -> None:
    """Print what is wrong in one line on standard error."""
    print_error(f"ds2deploy: {in_one_line(str(message))}")


def error_text(error: Ds2Error | OSError) -> str:
    """Turn an error into a message with the file and the remedy.

    Raises:
        OSError: the error itself, where the system gives no reason: a fault of a program.
    """
    if isinstance(error, Ds2Error):
        text = str(error)
        if "Original Traceback" in text:  # torch puts it before the error of a loading process
            text = text.strip().splitlines()[-1].partition(": ")[2]
        return text
    if error.strerror is None:
        raise error
    remedy = ""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        remedy = "; expected a folder, not a file"
    elif isinstance(error, PermissionError):
        remedy = "; check its permissions, and those of its folder"
    return f"{error.filename or 'writing'}: {error.strerror}{remedy}"


def exit_if_failed(failed: int, total: int) -> None:
    """End with exit code 1 where some of several files failed, and 2 where all did."""
    if failed:
        raise typer.Exit(BAD_INPUT if failed == total else BAD_RESULT)


def _exit_code(error: Ds2Error | OSError) -> int:
    if isinstance(error, StoppedError):
        return 128 + error.signal
    return BAD_RESULT if isinstance(error, (ParityError, TrainingError)) else BAD_INPUT


def _usage(error: Any) -> int:
    """Print a wrong call in one line; the help where there was no call at all."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    command = error.ctx.command_path if error.ctx is not None else "ds2deploy"
    message = in_one_line(error.format_message()).rstrip(".").replace("Value error, ", "")
    option = getattr(error, "option_name", "")
    if option.startswith("-") and not option.startswith("--"):
        message += " (a file whose name begins with a dash is given as ./-name)"
    name = command.partition(" ")[2]
    complain(f"{name}{': ' if name else ''}{message}; see {command} --help")
    return BAD_INPUT
