"""Boundaries of the recordings in an Ogg file (RFC 3533)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ds2deploy.runtimes.audio.spliced import Span

BEGINS, ENDS = 2, 4
"""Bits of a page: the first, and the last, of a logical stream."""

CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
"""Beginnings of the first packet of a logical stream of audio."""


class OggAudio(NamedTuple):
    """One recording of those that stand one after the other (are chained) in a file.

    Attributes:
        span: part of the file that holds its pages.
        streams: number of logical streams of audio that it has side by side.
        whole: True if its last page is complete and marked as the last.
    """

    span: Span
    streams: int
    whole: bool


class _Page(NamedTuple):
    span: Span
    flags: int
    serial: bytes
    codec: bool
    complete: bool


def find_ogg_audio(file: BinaryIO) -> list[OggAudio]:
    """Find the recordings that are chained in an Ogg file.

    Args:
        file: seekable, begins with a page.
    """
    found: list[OggAudio] = []
    group: list[_Page] = []
    for page in _pages(file):
        if group and page.flags & BEGINS and not group[-1].flags & BEGINS:
            found.append(_joined(group))
            group = []
        group.append(page)
    return [*found, _joined(group)] if group else found


def _joined(pages: list[_Page]) -> OggAudio:
    """Make a recording of its pages."""
    start, audio = pages[0].span.start, {page.serial for page in pages if page.codec}
    last = next((page for page in reversed(pages) if not audio or page.serial in audio), pages[-1])
    whole = bool(last.flags & ENDS) and last.complete
    return OggAudio(Span(start, pages[-1].span.end - start), len(audio), whole)


def _pages(file: BinaryIO) -> Iterator[_Page]:
    """Yield every page; bytes between two pages are skipped."""
    end = file.seek(0, os.SEEK_END)
    place: int | None = 0
    while place is not None and place < end:
        file.seek(place)
        head = file.read(27 + 255 + 8)
        if not head.startswith(b"OggS") or len(head) < 27:
            place = _next_page(file, place + 1)
            continue
        table = head[27 : 27 + head[26]]
        size = 27 + head[26] + sum(table)
        codec = head[27 + head[26] :].startswith(CODECS) and bool(head[5] & BEGINS)
        complete = len(table) == head[26] and place + size <= end
        yield _Page(Span(place, min(size, end - place)), head[5], head[14:18], codec, complete)
        place += size


def _next_page(file: BinaryIO, place: int) -> int | None:
    """Offset of the next page from here on."""
    while True:
        file.seek(place)
        content = file.read(1 << 20)
        if (index := content.find(b"OggS")) >= 0:
            return place + index
        if len(content) < 4:
            return None
        place += len(content) - 3
