"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success.

    On failure it goes, and so do the folders that were made for it.
    """
    if path.is_dir():  # now, and not after all the work, when the name is taken
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    # The suffix stays: libraries take format and compression from it.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        with suppress(OSError):  # another file is in it by now
            for folder in made:
                folder.rmdir()
        raise


def _remove_leftovers(path: Path) -> None:
    """What processes that were killed left of earlier attempts at this file."""
    for leftover in path.parent.glob(f".*.{glob.escape(path.name)}"):
        process = leftover.name[1:].partition(".")[0]
        if leftover.name == f".{process}.{path.name}" and process.isdecimal():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                leftover.unlink(missing_ok=True)
            except (PermissionError, OverflowError):
                continue  # of somebody else, who is alive; or no process at all
