"""Paths to binary files that can be read at any place: files, links, pipes."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

from ds2deploy.runtimes.errors import AudioError, MissingFileError

MOST_PIPED = 4 << 30
"""Bytes of a pipe that are kept in a temporary file: 37 hours of 16-bit mono at 16 kHz."""

PIECE = 1 << 20
"""Bytes of a pipe at a time."""


def open_audio_file(path: Path) -> BinaryIO:
    """Open a recording for reading at any place.

    A pipe (a FIFO, `/dev/stdin`, a shell's `<(command)`) is read to its end into a temporary file
    first, which has no name and goes when it is closed.

    Args:
        path: a file or a pipe; its name need not be UTF-8.

    Raises:
        MissingFileError: no such file, a link to nothing, or a directory.
        AudioError: it may not be read, is empty, is a device, or a pipe that does not end.
    """
    try:
        file = path.open("rb", buffering=0)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise _unopened(path, error) from None
    try:
        found = os.fstat(file.fileno())
        if stat.S_ISREG(found.st_mode):
            if found.st_size == 0:
                raise AudioError(
                    f"{path}: empty file (0 bytes); expected audio, record or copy it again"
                )
            return file
        if not (stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode)):
            raise AudioError(f"{path}: is a device; expected an audio file, or a pipe")
        with file:
            return _spooled(path, file)
    except BaseException:
        file.close()
        raise


def _spooled(path: Path, pipe: BinaryIO) -> BinaryIO:
    """Read all that comes out of a pipe into a temporary file."""
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (the caller closes it)
    try:
        count = 0
        while piece := pipe.read(PIECE):
            count += len(piece)
            if count > MOST_PIPED:
                raise AudioError(
                    f"{path}: more than {MOST_PIPED >> 30} GiB through a pipe; give a file"
                )
            file.write(piece)
        if not count:
            raise AudioError(f"{path}: nothing came through the pipe (0 bytes); expected audio")
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise _unopened(path, error) from None
        raise
    return file


def _unopened(path: Path, error: OSError | ValueError) -> AudioError | MissingFileError:
    """Say why a recording cannot be opened."""
    if isinstance(error, IsADirectoryError):
        return MissingFileError(f"{path}: is a directory; expected an audio file")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        if path.is_symlink():
            target = path.readlink()
            return MissingFileError(f"{path}: a link to {target}, which is not there; correct it")
        return MissingFileError(f"{path}: no such file; expected an audio file")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return AudioError(f"{path}: cannot be read ({reason}); make it readable, or leave it out")
