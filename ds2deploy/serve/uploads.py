"""Reading of uploaded recordings in pieces, within the limit of their duration."""

from __future__ import annotations

from collections.abc import Iterator

from ds2deploy.runtimes.audio.arriving import ArrivingFile, read_arriving
from ds2deploy.runtimes.audio.loading import read_blocks
from ds2deploy.runtimes.audio.source import BinaryReader, audio_name
from ds2deploy.runtimes.errors import (
    FILE_ERRORS,
)
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.preparation import AudioInput, readable
from ds2deploy.serve.limits import RefusedError


def _readable(file: BinaryReader, name: str, sample_rate: int) -> Iterator[FloatArray]:
    """Read a recording in pieces; errors contain the name of the upload."""
    if isinstance(file, ArrivingFile):
        pieces = read_arriving(file, sample_rate)
    else:
        pieces = read_blocks(file, sample_rate)
    try:
        yield from readable(AudioInput(name, pieces))
    except FILE_ERRORS as error:
        text = str(error)
        unnamed = audio_name(file) + ":"
        raise type(error)(
            name + text[len(unnamed) - 1 :] if text.startswith(unnamed) else text
        ) from None


def limited(file: BinaryReader, name: str, sample_rate: int, most_s: float) -> Iterator[FloatArray]:
    """Read a recording in pieces, up to a maximum duration.

    Raises:
        AudioError: the upload is not audio, or is damaged; the message names it.
        RefusedError: the recording is longer than the limit.
        RereadError: see `read_arriving`.
    """
    count = 0
    for piece in _readable(file, name, sample_rate):
        count += len(piece)
        if count > most_s * sample_rate:
            raise RefusedError(
                413,
                f"{name}: longer than {most_s:g} s of audio; split it",
                "audio_too_long",
                "file",
            )
        yield piece
