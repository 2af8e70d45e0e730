"""Errors of a command: one line on standard error, and an exit code."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ds2deploy.output import in_one_line, print_error
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

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        """Run the command, and end the process."""
        options["standalone_mode"] = False
        try:
            code = super().main(*arguments, **options) or 0
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads has seen enough
            code = BAD_RESULT
        except typer.Abort:
            code = complain("aborted", BAD_RESULT)
        except USAGE_ERROR as error:
            code = _usage(error)
        except (Ds2Error, OSError) as error:
            code = _explained(error)
        raise SystemExit(code)


def complain(message: str, code: int = BAD_INPUT) -> int:
    """Print what is wrong in one line on standard error.

    Returns:
        The exit code.
    """
    print_error(f"ds2deploy: {in_one_line(message)}")
    return code


def complain_of(error: Ds2Error | OSError) -> str:
    """Print an error of one file among several.

    Returns:
        Its message.
    """
    message = error_text(error) if isinstance(error, Ds2Error) else _os_error_text(error)
    complain(message)
    return message


def fail(message: str, code: int) -> NoReturn:
    """Print what is wrong, and end with an exit code."""
    raise typer.Exit(complain(message, code))


def exit_where_broken(broken: int, count: int) -> None:
    """End with what so many broken recordings of all of them mean; return where none is."""
    if broken:
        raise typer.Exit(BAD_INPUT if broken == count else BAD_RESULT)


def error_text(error: Exception) -> str:
    """The message of an error; torch puts a traceback before that of a data loader's process."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text


def _explained(error: Ds2Error | OSError) -> int:
    """Print an error that is no wrong call; gives the exit code."""
    if isinstance(error, (ParityError, TrainingError)):
        return complain(str(error), BAD_RESULT)
    if isinstance(error, StoppedError):
        return complain(str(error), 128 + error.signal)
    if isinstance(error, Ds2Error):
        return complain(error_text(error))
    if error.strerror is None:
        raise error
    return complain(_os_error_text(error))


def _os_error_text(error: OSError) -> str:
    """Message of the system, with the file and the remedy."""
    remedy = ""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        remedy = "; expected a folder, not a file"
    elif isinstance(error, PermissionError):
        remedy = "; check its permissions, and those of its folder"
    return f"{error.filename or 'writing'}: {error.strerror}{remedy}"


def _usage(error: Any) -> int:
    """Print a wrong call in one line; the help where there was no call at all."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    command = error.ctx.command_path if error.ctx is not None else "ds2deploy"
    message = in_one_line(error.format_message()).rstrip(".")
    option = getattr(error, "option_name", "")
    if option.startswith("-") and not option.startswith("--"):
        message += " (a file whose name begins with a dash is given as ./-name)"
    name = command.partition(" ")[2]
    return complain(f"{name}{': ' if name else ''}{message}; see {command} --help")
