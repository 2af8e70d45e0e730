"""Positions of the audio in WAV files, whatever the sizes in their headers.

Chunks: Microsoft, Multimedia Programming Interface (1991); RF64: EBU Tech 3306.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ds2deploy.runtimes.audio.spliced import Span

MPEG_FORMATS = (0x50, 0x55)
"""Format tags of MPEG audio, layers 1 and 2, and 3."""

UNKNOWN_SIZES = (range(0x7FFF_0000, 0x8000_0100), range(0xFFFF_0000, 0x1_0000_0000))
"""Sizes that a writer puts into a header when it does not know its end: sox and espeak-ng the
first, ffmpeg the second."""

WRAPPED = 1 << 32
"""A size of 32 bits counts modulo this."""

SLIP_S = 0.05
"""Longest that a header may exceed the audio by, in seconds, where its own length allows more."""

MOST_CHUNKS = 10_000
"""Chunks that are looked at in a file; a broken one can hold millions that are empty."""

LONGEST_FORMAT = 4096
"""Bytes of a format chunk, at most; the longest in use, of ADPCM, has 50."""


class WavAudio(NamedTuple):
    """The audio of one WAV file, which may be one of several that were joined.

    Attributes:
        magic: RIFF, RIFX or RF64.
        format: content of the format chunk.
        data: part of the file that holds the audio.
        truncated: True if the end is missing.
        regular: True if the header is correct, so that any decoder can read the file.
    """

    magic: bytes
    format: bytes
    data: Span
    truncated: bool
    regular: bool

    @property
    def tag(self) -> int:
        """Format of the samples, as registered by Microsoft."""
        return self._number(0, 2)

    def header(self) -> bytes:
        """Write a header with the right size."""
        order = "big" if self.magic == b"RIFX" else "little"
        size, padded = self.data.size, len(self.format) + len(self.format) % 2
        head = b"fmt " + len(self.format).to_bytes(4, order) + self.format.ljust(padded, b"\0")  # type: ignore[arg-type]
        if size >= UNKNOWN_SIZES[0].start:
            total = 4 + 36 + len(head) + 8 + size
            sizes = struct.pack("<QQQI", total, size, 0, 0)
            unknown = b"\xff" * 4
            return (
                b"RF64" + unknown + b"WAVEds64" + struct.pack("<I", 28) + sizes + head
                + b"data" + unknown
            )  # fmt: skip
        magic = b"RIFX" if self.magic == b"RIFX" else b"RIFF"
        total_32 = (4 + len(head) + 8 + size).to_bytes(4, order)  # type: ignore[arg-type]
        return magic + total_32 + b"WAVE" + head + b"data" + size.to_bytes(4, order)  # type: ignore[arg-type]

    def _number(self, offset: int, size: int) -> int:
        order = "big" if self.magic == b"RIFX" else "little"
        return int.from_bytes(self.format[offset : offset + size], order)  # type: ignore[arg-type]


def is_unknown(size: int) -> bool:
    """Check for a 32-bit size that stands for an unknown length."""
    return any(size in sizes for sizes in UNKNOWN_SIZES)


def find_wav_audio(file: BinaryIO, start: int = 0) -> list[WavAudio]:
    """Walk the chunks of a WAV file, and of WAV files that were appended to it.

    Args:
        file: seekable.
        start: offset where the first begins, after tags.

    Returns:
        The audio of each; nothing where there is no format or no audio.
    """
    end = file.seek(0, os.SEEK_END)
    found: list[WavAudio] = []
    place: int | None = start
    while place is not None:
        walk = _Walk(file, place, end)
        audio = walk.audio()
        if audio is None:
            break
        found.append(audio)
        place = walk.next_file
    return found


class _Walk:
    """Reads the chunks of one WAV file."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._start, self._end = file, start, end
        self._magic = self._read(start, 4)
        self._order = "big" if self._magic == b"RIFX" else "little"
        self._regular = start == 0
        self._total = self._whole_size = 0
        self._data: Span | None = None
        self.next_file: int | None = None

    def audio(self) -> WavAudio | None:
        form: bytes | None = None
        data: tuple[Span, int] | None = None
        for kind, chunk in self._chunks():
            if kind == b"fmt " and form is None:
                form = self._read(chunk.start, min(chunk.size, LONGEST_FORMAT))
            elif kind == b"ds64":
                sizes = self._read(chunk.start, 16)
                self._total = int.from_bytes(sizes[:8], "little")
                self._whole_size = int.from_bytes(sizes[8:], "little")
            elif kind == b"data" and data is None:
                data = self._sized(chunk)
            elif kind in (b"RIFF", b"RIFX", b"RF64") and data is not None:
                self.next_file = chunk.start - 8
                break
        if form is None or data is None or len(form) < 14:
            return None
        truncated = self._lost(form, *data)
        return WavAudio(self._magic, form, data[0], truncated, self._regular)

    def _lost(self, form: bytes, data: Span, missing: int) -> bool:
        """Check whether bytes that the header counts, and that are not there, were audio.

        Writers count (parts of) the header as audio, or forget the eight bytes of a chunk's own
        header. So up to a header's length may be missing, and 50 ms where the header is long. But
        where the header's total is too large by just as much, the file lost its end.
        """
        header = data.start - self._start
        per_s = int.from_bytes(form[8:12], self._order)  # type: ignore[arg-type]
        if missing > min(header, int(SLIP_S * per_s)):
            return True
        total = self._total or self._head(self._start)[1]
        return 0 < missing != header and self._start + 8 + total - self._end == missing

    def _chunks(self) -> Iterator[tuple[bytes, Span]]:
        """Yield every chunk's name, and its place by its header."""
        place = self._start + 12
        for _ in range(MOST_CHUNKS):
            if place + 8 > self._end:
                return
            kind, size = self._head(place)
            yield kind, Span(place + 8, size)
            if self._data is not None and self._data.start == place + 8:
                size = self._data.size
            after = place + 8 + size
            if size % 2 and not self._plausible(after + 1) and self._plausible(after):
                self._regular = self._regular and kind == b"data"
                place = after  # a writer that forgot the byte which makes a chunk's length even
            else:
                place = after + size % 2

    def _sized(self, chunk: Span) -> tuple[Span, int]:
        """Find the audio of a data chunk, and the number of its missing bytes."""
        size, there = chunk.size, self._end - chunk.start
        if self._magic == b"RF64" and size in UNKNOWN_SIZES[1]:
            known = 0 < self._whole_size < 1 << 62 and not is_unknown(self._whole_size)
            size = self._whole_size if known else there  # 0 where the writer could not seek back
        else:
            known = not (
                (size == 0 and not self._closed_empty())
                or (is_unknown(size) and size > there)
                or there - size >= WRAPPED
            )
            size = size if known else there
        self._regular = self._regular and known
        kept = min(size, there)
        self._data = Span(chunk.start, kept)
        return self._data, size - kept

    def _closed_empty(self) -> bool:
        """Check that a recording without samples was closed: its total size is right."""
        return self._start + 8 + self._head(self._start)[1] == self._end

    def _plausible(self, place: int) -> bool:
        """Check for a chunk that may begin here: four letters, or the end of the file."""
        kind = self._read(place, 4)
        return place >= self._end - 8 or (kind.isascii() and kind.decode().isprintable())

    def _head(self, place: int) -> tuple[bytes, int]:
        head = self._read(place, 8)
        return head[:4], int.from_bytes(head[4:], self._order)  # type: ignore[arg-type]

    def _read(self, place: int, count: int) -> bytes:
        self._file.seek(place)
        return self._file.read(count)
