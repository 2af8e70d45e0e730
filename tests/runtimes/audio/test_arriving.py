"""Recordings that are decoded while they arrive: the same samples and errors as of the whole."""

from __future__ import annotations

import io
import random
import tempfile
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile

from ds2deploy.runtimes.audio.arriving import HEAD, ArrivingFile, RereadError, read_arriving
from ds2deploy.runtimes.audio.loading import load_audio
from ds2deploy.runtimes.errors import AudioError
from ds2deploy.runtimes.features import FloatArray
from tests.runtimes.audio.test_file_objects import CONTAINERS

RATE = 16_000
LONG = np.random.default_rng(3).uniform(-0.3, 0.3, (8 * RATE, 2)).astype(np.float32)

EARLY = {
    "16-bit WAV": ("WAV", "PCM_16"),
    "24-bit WAV": ("WAV", "PCM_24"),
    "float WAV": ("WAV", "FLOAT"),
    "mu-law WAV": ("WAV", "ULAW"),
    "big-endian WAV": ("WAV", "PCM_16"),
    "extensible WAV": ("WAVEX", "PCM_16"),
    "FLAC": ("FLAC", "PCM_16"),
}
"""Formats that are decoded from their beginning."""

LATE = {"Ogg": ("OGG", "VORBIS"), "MP3": ("MP3", "MPEG_LAYER_III"), "ADPCM": ("WAV", "IMA_ADPCM")}


def written(name: str, rate: int = 44_100) -> bytes:
    form, subtype = {**EARLY, **LATE}[name]
    file = io.BytesIO()
    endian = "BIG" if name.startswith("big") else "FILE"
    soundfile.write(file, LONG, rate, format=form, subtype=subtype, endian=endian)
    return file.getvalue()


def read(file: ArrivingFile) -> FloatArray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.concatenate([np.zeros(0, np.float32), *read_arriving(file, RATE)])


def arrived_in_pieces(content: bytes, seed: int) -> FloatArray:
    """Read a file that another thread writes in pieces of random sizes."""
    chance, file = random.Random(seed), ArrivingFile(io.BytesIO())

    def write() -> None:
        place = 0
        while place < len(content):
            size = chance.choice([1, 100, 5_000, 70_000])
            file.write(content[place : place + size])
            place += size
        file.complete()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        return read(file)
    finally:
        thread.join()


@pytest.mark.parametrize("name", [*EARLY, *LATE])
def test_samples_are_those_of_the_complete_file(name: str) -> None:
    content = written(name)
    expected = load_audio(content, RATE)
    for seed in range(3):
        np.testing.assert_array_equal(arrived_in_pieces(content, seed), expected)


@pytest.mark.parametrize("name", list(CONTAINERS))
def test_odd_containers_are_read_as_a_whole_would_be(name: str) -> None:
    expected = load_audio(CONTAINERS[name], RATE)
    np.testing.assert_array_equal(arrived_in_pieces(CONTAINERS[name], 1), expected)


@pytest.mark.parametrize("name", list(EARLY))
def test_the_first_half_is_decoded_before_the_second_arrives(name: str) -> None:
    content = written(name, RATE)
    file, half = ArrivingFile(io.BytesIO()), len(content) // 2
    assert half > HEAD
    file.write(content[:half])
    pieces, found = read_arriving(file, RATE), []
    while sum(map(len, found)) < 3 * RATE:
        found.append(next(pieces))
    assert not file.is_complete
    file.write(content[half:])
    file.complete()
    np.testing.assert_array_equal(np.concatenate([*found, *pieces]), load_audio(content, RATE))


def damaged() -> Iterator[tuple[str, bytes]]:
    for name in ("16-bit WAV", "FLAC"):
        content = written(name)
        yield f"{name} without its end", content[: len(content) * 3 // 4]
        yield f"{name} of noise", content[:200] + random.Random(0).randbytes(200_000)
    file = io.BytesIO()
    holes = LONG.copy()
    holes[-5:] = np.nan
    soundfile.write(file, holes, RATE, format="WAV", subtype="FLOAT")
    yield "not finite at the end", file.getvalue()
    yield "text", b"RIFF" * 50_000
    yield "nothing", b""


@pytest.mark.parametrize(("name", "content"), list(damaged()))
def test_damage_is_the_error_of_the_complete_file(name: str, content: bytes) -> None:
    with tempfile.SpooledTemporaryFile() as upload:
        upload.write(content)
        upload.seek(0)
        try:
            expected: object = load_audio(upload, RATE).tobytes()
        except AudioError as error:
            expected = str(error)
    try:
        found: object = arrived_in_pieces(content, 2).tobytes()
    except AudioError as error:
        found = str(error)
    assert found == expected


def test_a_file_that_turns_out_different_is_to_be_read_again() -> None:
    content = written("16-bit WAV")
    storage = io.BytesIO()
    file = ArrivingFile(storage)
    file.write(content[: len(content) // 2])
    pieces = read_arriving(file, RATE)
    next(pieces)
    next(pieces)
    storage.seek(HEAD - 1000)
    storage.write(bytes(500))
    file.write(content[len(content) // 2 :])
    file.complete()
    with pytest.raises(RereadError):
        list(pieces)
    changed = storage.getvalue()
    np.testing.assert_array_equal(read(file), load_audio(changed, RATE))


def test_a_file_that_turns_out_shorter_is_to_be_read_again() -> None:
    content = written("16-bit WAV")
    storage = io.BytesIO()
    file = ArrivingFile(storage)
    file.write(content[: len(content) // 2])
    pieces = read_arriving(file, RATE)
    while next(pieces).size < 1000:
        pass
    next(pieces)
    short = io.BytesIO()
    soundfile.write(short, LONG[:3000], 44_100, format="WAV")
    storage.seek(0)
    storage.truncate()
    storage.write(short.getvalue())
    file.complete()
    with pytest.raises(RereadError):
        list(pieces)


def test_an_abort_ends_a_read_that_waits() -> None:
    file = ArrivingFile(io.BytesIO())
    file.write(written("16-bit WAV")[: 2 * HEAD])
    errors: list[Exception] = []

    def reading() -> None:
        try:
            read(file)
        except AudioError as error:
            errors.append(error)

    thread = threading.Thread(target=reading)
    thread.start()
    file.abort()
    thread.join(60)
    assert not thread.is_alive()
    assert len(errors) == 1


def test_a_complete_file_is_decoded_once() -> None:
    content = written("16-bit WAV")
    file = ArrivingFile(io.BytesIO())
    file.write(content)
    file.complete()
    assert len(next(read_arriving(file, RATE))) > RATE  # not in the pieces of an early reading
