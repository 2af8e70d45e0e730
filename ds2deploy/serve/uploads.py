"""Reading of uploaded recordings in pieces, within the limit of their duration."""

from __future__ import annotations

from collections.abc import Iterator

from ds2deploy.runtimes.audio.arriving import ArrivingFile, read_arriving
from ds2deploy.runtimes.audio.loading import read_blocks
from ds2deploy.runtimes.audio.source import BinaryReader, audio_name
from ds2deploy.runtimes.errors import FILE_ERRORS
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.preparation import AudioInput, readable


def limited(file: BinaryReader, name: str, sample_rate: int, most_s: float) -> Iterator[FloatArray]:
    """Read a recording in pieces, up to a maximum duration; errors contain the name of the upload.

    Raises:
        AudioError: the upload is not audio, is damaged, or is longer than the limit.
        RereadError: see `read_arriving`.
    """
    if isinstance(file, ArrivingFile):
        pieces = read_arriving(file, sample_rate, most_s)
    else:
        pieces = read_blocks(file, sample_rate, most_s)
    try:
        yield from readable(AudioInput(name, pieces))
    except FILE_ERRORS as error:
        text = str(error)
        unnamed = audio_name(file) + ":"
        raise type(error)(
            name + text[len(unnamed) - 1 :] if text.startswith(unnamed) else text
        ) from None
