"""Error reporting of commands: one line on standard error, and an exit code."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ds2deploy.cli.values import convert_plain_values
from ds2deploy.output import give_up_unwritten, in_one_line, print_error
from ds2deploy.runtimes.errors import Ds2Error, ParityError, StoppedError, TrainingError

BAD_RESULT = 1
BAD_INPUT = 2

USAGE_ERROR: Any = typer.BadParameter.__bases__[0]
"""Base class of usage errors: click's, or the copy of it that newer typer versions contain."""

PLAINER = {
    "Value error, ": "",
    "Input should be": "expected",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
}
"""Phrases of typer's and pydantic's messages, and plainer ones."""


class ErrorsInOneLine(TyperGroup):
    """Command group that turns errors a user can act on into one line and an exit code."""

    def get_params(self, ctx: Any) -> list[Any]:
        """List the parameters; plain values of them need no pydantic."""
        return convert_plain_values(super().get_params(ctx))

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        """Run the command and end the process."""
        options["standalone_mode"] = False
        try:
            code = super().main(*arguments, **options) or 0
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of the output has closed the pipe
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
    """Print a message as one line on standard error."""
    print_error(f"ds2deploy: {in_one_line(str(message))}")


def error_text(error: Ds2Error | OSError) -> str:
    """Make a message with the file and the remedy of an error.

    Raises:
        OSError: the given error, if the system gives no reason for it: a bug, not a user's error.
    """
    if isinstance(error, Ds2Error):
        text = str(error)
        if "Original Traceback" in text:  # torch prepends it to errors of data-loading processes
            text = text.strip().splitlines()[-1].partition(": ")[2]
        return text
    if error.strerror is None:
        raise error
    remedy = ""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        remedy = "; expected a folder, not a file"
    elif isinstance(error, PermissionError):
        remedy = "; check the permissions of the file and of its folder"
    return f"{error.filename or 'writing'}: {error.strerror}{remedy}"


def exit_if_failed(failed: int, total: int) -> None:
    """Exit with code 1 if some of the files failed, and with code 2 if all of them did."""
    if failed:
        raise typer.Exit(BAD_INPUT if failed == total else BAD_RESULT)


def _exit_code(error: Ds2Error | OSError) -> int:
    if isinstance(error, StoppedError):
        return 128 + error.signal
    return BAD_RESULT if isinstance(error, (ParityError, TrainingError)) else BAD_INPUT


def _usage(error: Any) -> int:
    """Print a usage error as one line, or the help if the command was called without arguments."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    command = error.ctx.command_path if error.ctx is not None else "ds2deploy"
    message = in_one_line(error.format_message()).rstrip(".")
    message = message[:1].lower() + message[1:]
    for phrase, plainer in PLAINER.items():
        message = message.replace(phrase, plainer)
    option = getattr(error, "option_name", "")
    if option.startswith("-") and not option.startswith("--"):
        message += " (write a file name that begins with a dash as ./-name)"
    name = command.partition(" ")[2]
    see = " See" if message.endswith("?") else "; see"  # typer suggests a command or an option
    complain(f"{name}{': ' if name else ''}{message}{see} {command} --help")
    return BAD_INPUT
