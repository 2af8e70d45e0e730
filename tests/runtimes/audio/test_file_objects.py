"""Recordings as bytes and as file objects: samples and errors are those of the path."""

from __future__ import annotations

import gzip
import io
import mmap
import os
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds2deploy.runtimes.audio import source as module
from ds2deploy.runtimes.audio.loading import load_audio, load_part, measure_audio
from ds2deploy.runtimes.errors import AudioError, AudioWarning, NotAudioError
from tests.runtimes.audio.test_odd_audio import (
    NOISE,
    PCM,
    RATE,
    chunk,
    encode,
    mp3_stream,
    unknown_flac,
    wav,
)


def caf_of_unknown_size() -> bytes:
    content = bytearray(encode(NOISE, "CAF"))
    place = content.index(b"data") + 4
    content[place : place + 8] = b"\xff" * 8
    return bytes(content)


CONTAINERS: dict[str, bytes] = {
    "WAV": wav(PCM),
    "WAV of unknown size": wav(PCM, 0xFFFFFFFF, 0xFFFFFFFF),
    "WAV with remarks": wav(PCM, before=chunk(b"LIST", b"INFO" + bytes(5_001)), after=bytes(99)),
    "joined WAV": wav(PCM) + wav(PCM, rate=8_000),
    "joined MP3": mp3_stream(NOISE) + encode(NOISE, "MP3", 22_050),
    "MP3 with tags": b"ID3\x04\0\0\0\0\x02\0" + bytes(256) + encode(NOISE, "MP3"),
    "MP3 after text": b"HTTP/1.0 200 OK\r\n\r\n" * 20 + mp3_stream(NOISE),
    "chained Ogg": encode(NOISE, "OGG", subtype="OPUS") + encode(NOISE, "OGG", 8_000),
    "Ogg": encode(NOISE, "OGG", subtype="VORBIS"),
    "FLAC": encode(NOISE, "FLAC"),
    "joined FLAC": unknown_flac(encode(NOISE, "FLAC")) * 2,
    "CAF of unknown size": caf_of_unknown_size(),
    **{form: encode(NOISE, form) for form in ("CAF", "RF64", "W64", "AIFF", "AU", "VOC", "SVX")},
    **{form: encode(NOISE, form, subtype="PCM_16") for form in ("NIST", "AVR", "MAT4", "MAT5")},
}


OPENED: list[Any] = []


@pytest.fixture(autouse=True)
def files_are_closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


class Upload:
    """What a server may hand over: `read` alone, which gives less than it was asked for."""

    def __init__(self, content: bytes) -> None:
        self._content, self.asked = io.BytesIO(content), 0

    def read(self, size: int = -1, /) -> bytes:
        self.asked += 1
        return self._content.read(min(size, 1_000) if size >= 0 else -1)


def spooled(content: bytes) -> Any:
    file = tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file


def rolled_over(content: bytes) -> Any:
    file = tempfile.SpooledTemporaryFile(max_size=1)  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file


def piped(content: bytes) -> Any:
    source, sink = os.pipe()

    def write() -> None:
        with os.fdopen(sink, "wb") as file:
            file.write(content)

    threading.Thread(target=write).start()
    return os.fdopen(source, "rb")


def opened(content: bytes, buffering: int) -> Any:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        again = Path(file.name).open("rb", buffering=buffering)  # noqa: SIM115
    OPENED.append(again)
    return again


def zipped(content: bytes) -> Any:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", content)
    return zipfile.ZipFile(packed).open("a.wav")


def mapped(content: bytes) -> Any:
    memory = mmap.mmap(-1, len(content))
    memory.write(content)
    memory.seek(0)
    return memory


OBJECTS: dict[str, Callable[[bytes], Any]] = {
    "BytesIO": io.BytesIO,
    "open": lambda content: opened(content, -1),
    "open without a buffer": lambda content: opened(content, 0),
    "upload in memory": spooled,
    "upload on disk": rolled_over,
    "pipe": piped,
    "gzip": lambda content: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(content))),
    "zip": zipped,
    "mmap": mapped,
    "read alone": Upload,
}
"""Kinds of file objects, made of their content."""


@pytest.fixture
def expected(tmp_path: Path) -> Callable[[bytes], np.ndarray]:
    """Samples as they are read from a path."""

    def read(content: bytes) -> np.ndarray:
        path = tmp_path / "recording"
        path.write_bytes(content)
        return load_audio(path, RATE)

    return read


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_the_same_samples(kind: str, expected):
    content = CONTAINERS[kind]
    samples = expected(content)
    assert len(samples) >= len(NOISE)
    np.testing.assert_array_equal(load_audio(content, RATE), samples)
    np.testing.assert_array_equal(load_audio(Upload(content), RATE), samples)


@pytest.mark.parametrize("kind", OBJECTS)
def test_every_object_gives_the_same_samples_and_stays_open(kind: str, expected):
    content = CONTAINERS["chained Ogg"]
    file = OBJECTS[kind](content)
    np.testing.assert_array_equal(load_audio(file, RATE), expected(content))
    assert not getattr(file, "closed", False)


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_is_read_from_its_position_on(kind: str, expected):
    file = OBJECTS[kind](b"x" * 900 + wav(PCM))
    assert file.read(900) == b"x" * 900
    np.testing.assert_array_equal(load_audio(file, RATE), expected(wav(PCM)))


@pytest.mark.parametrize("give", [bytearray, memoryview, lambda content: memoryview(content)[::1]])
def test_buffers_are_read_as_the_content_of_a_file(give: Callable[[bytes], Any], expected):
    np.testing.assert_array_equal(load_audio(give(wav(PCM)), RATE), expected(wav(PCM)))


@pytest.mark.parametrize("suffix", ["gsm", "vox"])
def test_codings_without_a_header_are_known_by_the_name(suffix: str, tmp_path: Path):
    path = tmp_path / f"a.{suffix}"
    content = encode(NOISE, "RAW", subtype={"gsm": "GSM610", "vox": "VOX_ADPCM"}[suffix])
    path.write_bytes(content)
    samples = load_audio(path, RATE)
    assert len(samples) == pytest.approx(2 * len(NOISE), rel=0.01)  # of 8 kHz
    with path.open("rb") as file:
        np.testing.assert_array_equal(load_audio(file, RATE), samples)
    with pytest.raises(NotAudioError, match=r"^audio: "):
        load_audio(content, RATE)


def test_parts_and_lengths_of_an_object():
    content = CONTAINERS["FLAC"]
    assert measure_audio(Upload(content)).samples == len(NOISE)
    part, rate = load_part(opened(content, -1), 0.5, 1.0)
    assert (part.shape, rate) == ((RATE, 1), RATE)


def test_a_large_file_is_read_in_place(monkeypatch: pytest.MonkeyPatch):
    """Nothing of what `open` gave is copied; gigabytes may be behind it."""
    monkeypatch.setattr(module, "_copied", None)
    for kind in ("open", "open without a buffer"):
        assert len(load_audio(OBJECTS[kind](wav(PCM)), RATE)) == len(NOISE)
    with pytest.raises(TypeError):
        load_audio(Upload(wav(PCM)), RATE)


# What is refused


def named(content: bytes, name: Any) -> Any:
    file = Upload(content)
    file.name = name  # type: ignore[attr-defined]
    return file


@pytest.mark.parametrize("kind", ["WAV", "MP3 with tags", "Ogg", "chained Ogg", "AU", "VOC"])
def test_truncation_is_found(kind: str):
    content = CONTAINERS[kind][: len(CONTAINERS[kind]) * 7 // 10]
    for source in (content, Upload(content), opened(content, -1)):
        with pytest.raises(AudioError, match="truncated"):
            load_audio(source, RATE)


@pytest.mark.parametrize(
    ("source", "name", "remedy"),
    [
        (lambda: b"", "audio", "record it again"),
        (lambda: io.BytesIO(), "audio", "rewind"),
        (lambda: Upload(b""), "audio", "rewind"),
        (lambda: opened(b"", -1), None, "seek(0)"),
        (lambda: b"hello, this is no recording", "audio", "convert it"),
        (lambda: named(wav(PCM)[:999], "mail/a.wav"), "mail/a.wav", "copy or record it again"),
        (lambda: named(wav(PCM)[:999], 7), "audio", "copy or record it again"),
        (lambda: named(b"\x1aE\xdf\xa3" + bytes(99), "a.webm"), "a.webm", "ffmpeg -i a.webm"),
        (lambda: named(PCM, "a.raw"), "a.raw", "--rate HZ"),
        (lambda: io.StringIO("text"), "audio", "open(path, 'rb')"),
        (lambda: io.TextIOWrapper(io.BytesIO(wav(PCM)), "latin-1"), "audio", "open(path, 'rb')"),
        (lambda: object(), "audio", "open(path, 'rb')"),
        (lambda: None, "audio", "open(path, 'rb')"),
        (lambda: closed(io.BytesIO(wav(PCM))), "audio", "closed file"),
        (lambda: closed(opened(wav(PCM), -1)), None, "closed file"),
        (lambda: closed(spooled(wav(PCM))), "audio", "closed file"),
        (lambda: Failing(), "audio", "cannot be read (Connection reset by peer)"),
    ],
)  # fmt: skip
def test_an_object_without_audio_is_one_line_with_the_remedy(
    source: Callable[[], Any], name: str | None, remedy: str
):
    with pytest.raises(AudioError) as raised:
        load_audio(source(), RATE)
    message = str(raised.value)
    assert "\n" not in message
    assert remedy in message
    assert name is None or message.startswith(f"{name}: ")


def closed(file: Any) -> Any:
    file.close()
    return file


class Failing:
    def read(self, size: int, /) -> bytes:
        raise ConnectionResetError(104, "Connection reset by peer")


def test_an_object_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_PIPED", 3 * module.PIECE)

    class Endless:
        def read(self, size: int, /) -> bytes:
            return bytes(size)

    with pytest.raises(AudioError, match=r"^audio: more than .*; save the audio"):
        load_audio(Endless(), RATE)


def test_warnings_name_the_object():
    with pytest.warns(AudioWarning, match=r"^mail/a.wav: .*digital silence"):
        load_audio(named(wav(bytes(32_000)), "mail/a.wav"), RATE)
