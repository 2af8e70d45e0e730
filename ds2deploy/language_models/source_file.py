"""Source files of language models: text or ARPA, plain or gzip, or standard input."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ds2deploy.runtimes.decoding.language_model_file import TextSource
from ds2deploy.runtimes.errors import MissingFileError, TextError, system_reason
from ds2deploy.text_files import UTF_16

GZIP_MAGIC = b"\x1f\x8b"

ARPA_BEGINS = b"\\data\\"
"""First line of an ARPA file after empty lines and comments."""

BLOCK = 1 << 16
"""Number of bytes that are read at a time."""

LOOKED_AT = 4096
"""Number of bytes in which the first line of an ARPA file is searched."""


class SourceFile:
    """Open source file.

    Attributes:
        name: name of the file in errors.
        lines: stream of the decompressed bytes.
        is_arpa: True for an ARPA file.
    """

    def __init__(self, path: Path, raw: BinaryIO) -> None:
        self.name = "standard input" if str(path) == "-" else str(path)
        self._digest = hashlib.sha256()
        self._raw = _Hashed(raw, self._digest)
        raw_bytes: Any = self._raw
        buffered = io.BufferedReader(raw_bytes, BLOCK)
        if buffered.peek(2).startswith(GZIP_MAGIC):
            decompressed: Any = gzip.GzipFile(fileobj=buffered)
            buffered = io.BufferedReader(decompressed, BLOCK)
        self.lines = buffered
        begins = self.lines.peek(LOOKED_AT)[:LOOKED_AT]
        without_mark = begins.removeprefix(codecs.BOM_UTF8)
        self.is_arpa = any(line.strip() == ARPA_BEGINS for line in without_mark.splitlines())
        if b"\0" in begins and not begins.startswith(UTF_16):
            raise TextError(f"{self.name}: binary data; expected UTF-8 text or an ARPA file")

    def describe(self) -> TextSource:
        """Return name and SHA-256 of the whole file, after reading the rest of it."""
        while self._raw.read(1 << 20):
            pass
        return TextSource(Path(self.name).name, self._digest.hexdigest())


@contextmanager
def open_source(path: Path) -> Iterator[SourceFile]:
    """Open a file; `-` is standard input.

    Raises:
        MissingFileError: the file does not exist.
        TextError: the file cannot be read or is damaged; also raised during reading.
    """
    try:
        if str(path) == "-":
            yield SourceFile(path, sys.stdin.buffer)
        else:
            with path.open("rb", buffering=0) as file:
                yield SourceFile(path, file)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; expected text or an ARPA file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TextError(f"{path}: damaged gzip file ({error}); copy it again") from None
    except OSError as error:
        reason = system_reason(error)
        raise TextError(f"{path}: cannot be read ({reason}); make it readable") from None


class _Hashed(io.RawIOBase):
    """File that reads another file, and computes a hash of its bytes."""

    def __init__(self, file: BinaryIO, digest: hashlib._Hash) -> None:
        self._file, self._digest = file, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        content = self._file.read(len(buffer)) or b""
        self._digest.update(content)
        buffer[: len(content)] = content
        return len(content)
