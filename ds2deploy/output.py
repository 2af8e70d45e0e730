"""Standard output and error of a command, which may be a pipe, ASCII, full, or closed."""

from __future__ import annotations

import codecs
import io
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
"""Characters that end a line or control a terminal."""


def open_streams() -> None:
    """Prepare both streams for any file name, and replace closed ones.

    A file that is opened while descriptor 1 is closed gets descriptor 1, and the output of C
    libraries would be written to it.

    Raises:
        OutputError: standard output is closed.
    """
    closed = [descriptor for descriptor in (0, 1, 2) if not _is_open(descriptor)]
    for descriptor in closed:
        _to_devnull(descriptor)
    if sys.stdout is None or 1 in closed:
        raise OutputError("standard output: closed; redirect it to a file, or to /dev/null")
    codecs.register_error(ANY_NAME, _any_name)
    with suppress(io.UnsupportedOperation):  # a notebook's stream is not a file
        sys.stdout = _text(_Output(sys.stdout.fileno(), "wb", closefd=False), sys.stdout)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # for as long as the process lives
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors=ANY_NAME)


class _Output(io.FileIO):
    """Standard output, with errors that name it."""

    def write(self, content: Any) -> int:
        """Write bytes.

        Raises:
            BrokenPipeError: the reader has closed the pipe.
            OutputError: writing failed, for example because the disk is full.
        """
        try:
            return super().write(content)
        except OSError as error:
            _to_devnull(self.fileno())  # Python will write the rest of its buffer at exit
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputError(
                f"standard output: {error.strerror}; the output is incomplete; send it elsewhere"
            ) from None


def _text(raw: io.FileIO, like: TextIO) -> io.TextIOWrapper:
    """Make a text stream with the encoding of the stream that it replaces."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=like.encoding,
        errors=ANY_NAME,
        line_buffering=like.isatty() or bool(os.environ.get("PYTHONUNBUFFERED")),
    )


def print_error(line: str) -> None:
    """Print a line to standard error, and ignore a failure to write it."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def give_up_unwritten() -> None:
    """Discard unwritten output of standard error, for which Python would exit with code 120."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            _to_devnull(sys.stderr.fileno())


def in_one_line(text: str) -> str:
    """Collapse white space, and escape control characters."""
    return escape_control(" ".join(text.split()))


def escape_control(text: str) -> str:
    """Escape control characters as Python does, so that any name stays on one line."""
    return CONTROL.sub(lambda match: repr(match.group())[1:-1], text)


def print_json(document: Any, in_one_line: bool = False) -> None:
    """Print a document on standard output, in ASCII unless its encoding is UTF-8.

    Args:
        document: object that msgspec can encode.
        in_one_line: print the document on one line, and flush it.
    """
    import json

    import msgspec

    text = json_text(document)
    if (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") != "utf8":
        text = re.sub(r"[^\x00-\x7f]", lambda match: json.dumps(match.group())[1:-1], text)
    sys.stdout.write((text if in_one_line else msgspec.json.format(text)) + "\n")
    if in_one_line:
        sys.stdout.flush()


def print_line(text: str) -> None:
    """Print a line on standard output and flush it, above a progress bar if there is one.

    typer.echo would write to the underlying stream, and thus into the bar.
    """
    print(text, flush=True)


def _any_name(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write the raw bytes of names that are not UTF-8, and escape unsupported characters."""
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
