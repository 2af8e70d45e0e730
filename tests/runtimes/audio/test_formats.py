"""The table of formats: what libsndfile writes is known again, and no two rows claim one suffix."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import soundfile

from ds2deploy.runtimes.audio.formats import (
    BY_SUFFIX,
    FORMATS,
    READ_SUFFIXES,
    content_format,
    conversion,
    suffix_format,
)
from ds2deploy.runtimes.audio.pcm import PcmStream
from ds2deploy.runtimes.errors import AudioError

WRITTEN = {
    "WAV": "WAV", "WAVEX": "WAV", "RF64": "RF64", "W64": "W64", "FLAC": "FLAC", "OGG": "Ogg",
    "AIFF": "AIFF", "AU": "AU", "CAF": "CAF", "NIST": "NIST SPHERE", "VOC": "VOC", "PAF": "PAF",
    "PVF": "PVF", "AVR": "AVR", "SVX": "8SVX",
}  # fmt: skip
"""Names of formats in libsndfile, and here."""


def written(form: str) -> bytes:
    buffer = io.BytesIO()
    subtype = None if form in ("OGG", "FLAC") else "PCM_16"
    soundfile.write(buffer, np.full(1600, 0.1), 16_000, format=form, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(("form", "name"), WRITTEN.items())
def test_files_are_known_by_their_first_bytes(form: str, name: str):
    content = written(form)
    found = content_format(content[:16])
    assert found is not None
    assert (found.name, found.kind) == (name, "read")
    if name not in ("WAV", "RF64"):
        with pytest.raises(AudioError, match=f": {name}; "):
            PcmStream(io.BytesIO(content), 16_000)


def test_every_row_that_has_a_beginning_is_known_by_it():
    known = {row.name for row in FORMATS if row.beginnings}
    assert set(WRITTEN.values()) < known
    for row in FORMATS:
        for offset, magic in row.beginnings:
            assert content_format((bytes(offset) + magic).ljust(16, b"\0")) is row


def test_no_suffix_stands_twice():
    counts = Counter(suffix for row in FORMATS for suffix in row.suffixes)
    assert set(counts.values()) == {1}
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in counts)
    assert {"read", "foreign", "headerless"} == {row.kind for row in BY_SUFFIX.values()}
    assert ".wav" in READ_SUFFIXES
    assert not READ_SUFFIXES & {".raw", ".pcm", ".m4a"}


def test_a_name_promises_a_format_and_the_command_that_converts_it():
    found = suffix_format("mail/A.M4A")
    assert found is not None
    assert found.kind == "foreign"
    assert conversion("mail/a.m4a") == "ffmpeg -i mail/a.m4a mail/a.wav"
    assert conversion("a.raw") == "ffmpeg -f s16le -ar 16000 -i a.raw a.wav"
    assert conversion("audio") == "ffmpeg -i audio audio.wav"
    assert suffix_format("notes.txt") is None
