"""Files that appear whole or not at all, whoever else writes into the same folder.

A temporary file has a random name, so that two processes never share one: process ids repeat
between containers, and between machines that share a folder. Its writer holds a lock on it
(`flock`). A later attempt at the same file deletes what a crash left only if nobody holds that lock
and nothing was written to it for a day.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

LEFTOVER_S = 24 * 3600.0
"""Age of a temporary file, in seconds, from which it counts as left by a crash, if unlocked. Some
network file systems keep locks to one machine: there the age alone protects a file in use."""

ATTEMPTS = 10
"""Attempts to make a folder that another process, which failed, removes at the same time."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; its file takes the place of `path` on success.

    On failure it is deleted, and so are the folders that were made for it.
    """
    with WholeFiles() as files:
        yield files.add(path)


class WholeFiles:
    """Files that take their names together, in one step for others that write them too.

    On failure all temporary files are deleted, and so are the folders that were made for them.
    """

    def __init__(self) -> None:
        # One for all files: an engine's description is found by the engine's name.
        self._token = os.urandom(8).hex()
        self._names: list[tuple[Path, Path]] = []
        self._made: list[Path] = []
        self._locks = ExitStack()

    def __enter__(self) -> WholeFiles:
        return self

    def add(self, path: Path) -> Path:
        """Give a temporary path for one more file.

        It exists already, and is empty. The file that is added last takes its name first.

        Raises:
            IsADirectoryError: the name is a folder's.
        """
        if path.is_dir():  # now, and not after all the work, when the name is taken
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        # The suffix stays: libraries take format and compression from it.
        temporary = path.with_name(f".{self._token}.{path.name}")
        self._make(temporary)
        self._names.append((temporary, path))
        _remove_leftovers(path)
        return temporary

    def temporary(self, path: Path) -> Path:
        """Return the temporary path of a file that was added."""
        return next(temporary for temporary, name in self._names if name == path)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._locks:
            try:
                if kind is None:
                    self._take_names()
            except BaseException:
                self._discard()
                raise
            if kind is not None:
                self._discard()

    def _make(self, temporary: Path) -> None:
        """Create an empty file, and lock it."""
        for attempt in range(ATTEMPTS):
            made = [folder for folder in temporary.parents if not folder.exists()]
            try:
                temporary.parent.mkdir(parents=True, exist_ok=True)
                file = self._locks.enter_context(temporary.open("xb"))
            except FileNotFoundError:
                if attempt + 1 == ATTEMPTS:
                    raise
            else:
                self._made += made
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return

    def _take_names(self) -> None:
        folders = {path.parent for _, path in self._names} if len(self._names) > 1 else set()
        with ExitStack() as stack:
            # Two exports at once: all files of the one, and then all of the other.
            for folder in sorted(folders):
                stack.enter_context(_locked(folder))
            for temporary, path in reversed(self._names):
                temporary.replace(path)

    def _discard(self) -> None:
        for temporary, _ in self._names:
            temporary.unlink(missing_ok=True)
        for folder in sorted(self._made, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # another file is in it by now
                folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for other processes that hold the lock of a folder, and hold it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Delete what crashed processes left of earlier attempts at this file."""
    pattern = re.compile(rf"\.[0-9a-f]{{16}}\.{re.escape(path.name)}")
    for leftover in path.parent.iterdir():
        if not pattern.fullmatch(leftover.name):
            continue
        # Gone meanwhile, of another user, or in use; then it stays.
        with suppress(OSError), leftover.open("rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > LEFTOVER_S:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()


FOREIGN_BYTE = re.compile("[\udc80-\udcff]")
"""A byte of a file name that is not UTF-8, as Python holds it."""


LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""A character that no encoding can hold: such a byte, or half of a pair from a damaged list."""


def marked(text: str) -> str:
    r"""Write each byte that is not UTF-8 as `\xe9`, so that the text can be encoded."""
    return LONE_SURROGATE.sub(lambda match: _mark(match.group()), text)


def _mark(surrogate: str) -> str:
    number = ord(surrogate)
    byte = FOREIGN_BYTE.match(surrogate)
    return f"\\x{number - 0xDC00:02x}" if byte else f"\\u{number:04x}"


def json_text(document: Any) -> str:
    """Encode a document in one line of JSON that every parser reads.

    Args:
        document: structs, lists, dictionaries, strings and numbers.
    """
    import msgspec  # not at the top: `ds2deploy --help` has no need of it

    try:
        return msgspec.json.encode(document).decode()
    except UnicodeEncodeError:
        import json

        plain = msgspec.to_builtins(document)
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
        return LONE_SURROGATE.sub(lambda match: "\\" + _mark(match.group()), text)


def manifest_line(document: Any) -> str:
    """Encode a document in one line of JSON that keeps the bytes of names for Python's `json`."""
    import json

    text = json.dumps(document, ensure_ascii=False)
    return FOREIGN_BYTE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    import hashlib  # not at the top: `ds2deploy transcribe` has no need of it

    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
