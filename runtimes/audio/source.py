"""Recordings as binary files that can be read at any place: paths, pipes, bytes, file objects."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Protocol, TypeGuard, cast

from ds2deploy.runtimes.audio.spliced import Span, Spliced
from ds2deploy.runtimes.errors import AudioError, MissingFileError, missing_file, one_line


class BinaryReader(Protocol):
    """An object that gives bytes, b"" at its end: an open file, a pipe, an upload."""

    def read(self, size: int, /) -> bytes:
        """Give at most so many bytes, from the position on."""
        ...


AudioFile = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryReader
"""A recording: its path, the content of its file, or a file object."""

MOST_PIPED = 4 << 30
"""Bytes of a pipe that are kept in a temporary file: 37 hours of 16-bit mono at 16 kHz."""

PIECE = 1 << 20
"""Bytes of a pipe at a time."""


def is_audio_file(audio: object) -> TypeGuard[AudioFile]:
    """Check for an `AudioFile`; anything else may be an array."""
    return isinstance(audio, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(
        audio, "read"
    )


def audio_name(source: AudioFile) -> str:
    """Name a recording for errors: its path, the `name` of a file object, else "audio"."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name else "audio"


def open_audio_file(source: AudioFile) -> BinaryIO:
    """Open a recording for reading at any place.

    A pipe (a FIFO, `/dev/stdin`, a shell's `<(command)`) and a file object are read to their end
    into a temporary file first, which has no name and goes when it is closed. Files that `open`
    gave are read in place, from their position on. No file object is closed.

    Args:
        source: the recording; the name of a file need not be UTF-8.

    Raises:
        MissingFileError: no such file, a link to nothing, or a directory.
        AudioError: it may not be read, is empty, is a device, or a pipe that does not end; or an
            object that gives no bytes.
    """
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source))
    name = audio_name(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _in_memory(name, source)
    if not hasattr(source, "read"):
        raise AudioError(
            f"{name}: has the type {type(source).__name__}; expected a path, the bytes of a file, "
            "or a binary file: open(path, 'rb')"
        )
    try:
        if isinstance(source, io.BytesIO):
            return _in_memory(name, source.read())
        if _is_opened(source) and source.seekable():
            return _in_place(name, source)
        return _copied(
            source.read, name, ("the file is empty", "record it again, or rewind it with seek(0)")
        )
    except AudioError:
        raise
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise unreadable(name, error) from None


def _open_path(path: Path) -> BinaryIO:
    try:
        file = path.open("rb", buffering=0)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise _unopened(path, error) from None
    try:
        return _regular_or_copied(file, path)
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise unreadable(str(path), error) from None
        raise


def _regular_or_copied(file: BinaryIO, path: Path) -> BinaryIO:
    """Give a file with its size on a disk as it is, and a pipe's content."""
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode):
        if found.st_size == 0:
            raise _empty(str(path), "empty file", "record or copy it again")
        return file
    if not (stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode)):
        raise AudioError(f"{path}: is a device; expected an audio file, or a pipe")
    with closing(file):
        return _copied(
            file.read,
            str(path),
            ("no data came through the pipe", "check the command that writes to it"),
        )


def _in_memory(name: str, content: bytes | bytearray | memoryview) -> BinaryIO:
    if not len(content):
        raise _empty(name, "no bytes", "rewind or record it again")
    return io.BytesIO(bytes(content))


def _is_opened(source: object) -> TypeGuard[BinaryIO]:
    """Check for a file of the system, which `open` gave: reading at any place costs nothing."""
    raw = source.raw if isinstance(source, (io.BufferedReader, io.BufferedRandom)) else source
    return isinstance(raw, io.FileIO)


def _in_place(name: str, file: BinaryIO) -> BinaryIO:
    """View an open file from its position on; the view's end leaves the file open."""
    start = file.tell()
    size = file.seek(0, os.SEEK_END) - start
    if size <= 0:
        raise _empty(name, "nothing after the current position", "rewind it with seek(0)")
    return cast(BinaryIO, Spliced(file, [Span(start, size)]))


def _copied(read: Callable[[int], bytes], name: str, nothing: tuple[str, str]) -> BinaryIO:
    """Read all that comes out of a pipe, or of a file object, into a temporary file.

    Args:
        read: function that reads at most the given number of bytes.
        name: name of the recording, for errors.
        nothing: description of an empty source, and the remedy.
    """
    import tempfile

    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (the caller closes it)
    try:
        count = 0
        while (piece := read(PIECE)) != b"":
            if not isinstance(piece, (bytes, bytearray, memoryview)):
                raise AudioError(
                    f"{name}: read() returned {type(piece).__name__}, expected bytes; open it in "
                    "binary mode: open(path, 'rb')"
                )
            count += len(piece)
            if count > MOST_PIPED:
                raise AudioError(
                    f"{name}: more than {MOST_PIPED >> 30} GiB came through a pipe; save the audio "
                    "and pass the path of the file"
                )
            file.write(piece)
        if not count:
            raise _empty(name, *nothing)
    except BaseException:
        file.close()
        raise
    return file


def _empty(name: str, what: str, remedy: str) -> AudioError:
    return AudioError(f"{name}: {what} (0 bytes); expected audio: {remedy}")


def _unopened(path: Path, error: OSError | ValueError) -> AudioError | MissingFileError:
    """Say why a path cannot be opened."""
    if isinstance(error, (IsADirectoryError, FileNotFoundError, NotADirectoryError)):
        if path.is_symlink() and not path.exists():
            target = path.readlink()
            return MissingFileError(
                f"{path}: a link to {target}, which does not exist; correct the link"
            )
        return missing_file(path, "an audio file")
    return unreadable(str(path), error)


def unreadable(name: str, error: OSError | ValueError) -> AudioError:
    """Make the error of a recording for an error of a disk, of permissions or of a closed file."""
    reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
    return AudioError(f"{name}: cannot be read ({reason}); make it readable, or leave it out")
