"""Core Audio files whose writer did not know how long they would be."""

from __future__ import annotations

from typing import BinaryIO

from ds2deploy.runtimes.audio.flac import file_size
from ds2deploy.runtimes.audio.spliced import Span

UNKNOWN = b"\xff" * 8
"""Size of the audio, -1, that stands for "to the end of the file"; libsndfile refuses it."""


def sized_caf(file: BinaryIO) -> list[Span | bytes] | None:
    """Put the size of the audio into the header of a file that does not say it.

    Args:
        file: seekable, begins with a CAF header.

    Returns:
        Parts of the file, with the size between them; None where the header knows it.
    """
    end, place = file_size(file), 8
    while place + 12 <= end:
        file.seek(place)
        head = file.read(12)
        if head == b"data" + UNKNOWN:
            size = (end - place - 12).to_bytes(8, "big")
            return [Span(0, place + 4), size, Span(place + 12, end - place - 12)]
        place += 12 + int.from_bytes(head[4:], "big")
    return None
