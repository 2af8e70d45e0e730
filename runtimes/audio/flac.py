"""Boundaries of the recordings in a FLAC file (RFC 9639)."""

from __future__ import annotations

import os
import re
from typing import BinaryIO

from ds2deploy.runtimes.audio.spliced import Span

BEGINNING = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
"""Marker of a stream, and the head of its first block, STREAMINFO of 34 bytes. By chance these
eight bytes stand in one of 10^19 places."""

PIECE = 1 << 20
"""Bytes searched at a time."""


def find_flac_audio(file: BinaryIO, end: int) -> list[Span]:
    """Find the streams that stand one after the other in a file.

    Args:
        file: seekable.
        end: offset where its audio ends, and tags may follow.

    Returns:
        The streams, in order; none where the first is damaged.
    """
    starts: list[int] = []
    place = 0
    while place < end:
        file.seek(place)
        content = file.read(min(PIECE, end - place))
        starts += [place + match.start() for match in BEGINNING.finditer(content)]
        if len(content) < 8:
            break
        place += len(content) - 7  # one may lie across the seam
    ends = [*starts[1:], end][: len(starts)]
    return [Span(start, stop - start) for start, stop in zip(starts, ends, strict=True)]


def file_size(file: BinaryIO) -> int:
    """Size of a seekable file, in bytes."""
    return file.seek(0, os.SEEK_END)
