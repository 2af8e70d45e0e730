"""Parts of a file, and bytes that are not in it, read as one file."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import BinaryIO, NamedTuple

TAIL = 4096
"""Bytes of zeros at the pretended end of an endless view: decoders look there for tags."""

ENDLESS = (1 << 40) + TAIL
"""Size that an endless view pretends to have, in bytes. Not a multiple of 2^32: libsndfile 1.2.2
divides by the lower half when it knows the format of nothing in the file."""


class Span(NamedTuple):
    """Part of a file.

    Attributes:
        start: offset of its first byte.
        size: number of bytes.
    """

    start: int
    size: int

    @property
    def end(self) -> int:
        """Offset of the byte after it."""
        return self.start + self.size


class Spliced(io.RawIOBase):
    """Read-only view of spans of a file, one after the other.

    Args:
        file: seekable; its position is not kept.
        parts: spans of the file, or bytes to put between them.
        endless: pretend a size that is never reached, for decoders that guess a length from it
            and would stop there.
    """

    def __init__(
        self, file: BinaryIO, parts: Sequence[Span | bytes], endless: bool = False
    ) -> None:
        super().__init__()
        self._file, self._parts = file, parts
        sizes = (part.size if isinstance(part, Span) else len(part) for part in parts)
        self._starts = [0, *accumulate(sizes)]
        self._size = ENDLESS if endless else self._starts[-1]
        self._place = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, which may be past the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as there are bytes; return how many."""
        filled = 0
        while filled < len(buffer) and (piece := self._piece(len(buffer) - filled)):
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    def _piece(self, most: int) -> bytes:
        """Bytes from the position on, of one part."""
        if self._place >= self._starts[-1]:
            rest = self._size - self._place
            piece = bytes(min(most, rest)) if 0 < rest <= TAIL else b""
        else:
            index = bisect_right(self._starts, self._place) - 1
            part, skipped = self._parts[index], self._place - self._starts[index]
            if isinstance(part, bytes):
                piece = part[skipped : skipped + most]
            else:
                self._file.seek(part.start + skipped)
                piece = self._file.read(min(most, part.size - skipped))
        self._place += len(piece)
        return piece
