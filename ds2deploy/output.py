"""Standard output and error of a command, whatever they are: a pipe, ASCII, full, or closed."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from ds2deploy.runtimes.errors import OutputError
from ds2deploy.runtimes.files import FOREIGN_BYTE, json_text

ANY_NAME = "ds2deploy.any_name"
"""Name of the error handler of both streams, see `_any_name`."""

CONTROL = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\u2028\u2029]")
"""Characters that end a line or steer a terminal."""


def open_streams() -> None:
    """Make both streams fit for any file name, and replace those that are closed.

    A file that is opened while descriptor 1 is closed becomes descriptor 1, and what a library in
    C prints would end up in it.

    Raises:
        OutputError: standard output is closed.
    """
    closed = [descriptor for descriptor in (0, 1, 2) if not _is_open(descriptor)]
    for descriptor in closed:
        _to_devnull(descriptor)
    if sys.stdout is None or 1 in closed:
        raise OutputError("standard output: closed; redirect it to a file, or to /dev/null")
    codecs.register_error(ANY_NAME, _any_name)
    with suppress(io.UnsupportedOperation):  # a notebook's, which is no file
        sys.stdout = _text(_Output(sys.stdout.fileno(), "wb", closefd=False), sys.stdout)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # for as long as the process lives
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors=ANY_NAME)


class _Output(io.FileIO):
    """Standard output, which is named in its errors."""

    def write(self, content: Any) -> int:
        """Write bytes.

        Raises:
            BrokenPipeError: nobody reads it any more.
            OutputError: it cannot be written, because the disk is full for instance.
        """
        try:
            return super().write(content)
        except OSError as error:
            _to_devnull(self.fileno())  # what Python still holds it writes again, at its end
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputError(
                f"standard output: {error.strerror}; the output is not complete, send it elsewhere"
            ) from None


def _text(raw: io.FileIO, like: TextIO) -> io.TextIOWrapper:
    """Text on another stream, with the encoding of the one that it replaces."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=like.encoding,
        errors=ANY_NAME,
        line_buffering=like.isatty() or bool(os.environ.get("PYTHONUNBUFFERED")),
    )


def print_error(line: str) -> None:
    """Print a line to standard error; one that cannot be written changes nothing else."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def give_up_unwritten() -> None:
    """Forget what standard error holds and cannot write: Python would end with code 120."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            _to_devnull(sys.stderr.fileno())


def in_one_line(text: str) -> str:
    """Collapse white space, and escape what would steer a terminal."""
    return escape_control(" ".join(text.split()))


def escape_control(text: str) -> str:
    """Write control characters as Python does: a name with a line break stays in one line."""
    return CONTROL.sub(lambda match: repr(match.group())[1:-1], text)


def print_json(document: Any, in_one_line: bool = False) -> None:
    """Print a document on standard output; beyond ASCII where its encoding is UTF-8.

    Args:
        document: anything that msgspec encodes.
        in_one_line: print it in one line, and at once.
    """
    import msgspec

    text = json_text(document)
    if (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") != "utf8":
        text = re.sub(r"[^\x00-\x7f]", lambda match: json.dumps(match.group())[1:-1], text)
    sys.stdout.write((text if in_one_line else msgspec.json.format(text)) + "\n")
    if in_one_line:
        sys.stdout.flush()


def print_line(text: str) -> None:
    """Print a line on standard output at once, above a bar that is there.

    typer.echo would find the stream below the bar, and write into it.
    """
    print(text, flush=True)


def _any_name(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write the bytes of names that are not UTF-8; escape characters that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    written = b"".join(
        bytes([ord(character) - 0xDC00])
        if FOREIGN_BYTE.match(character)
        else character.encode("ascii", "backslashreplace")
        for character in error.object[error.start : error.end]
    )
    return written, error.end


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _to_devnull(descriptor: int) -> None:
    with suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
