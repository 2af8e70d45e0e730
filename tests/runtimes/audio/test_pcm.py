"""Raw audio and WAV streams from a pipe."""

from __future__ import annotations

import io
import os
import struct
import threading

import numpy as np
import pytest
import soundfile

from ds2deploy.runtimes.audio.pcm import PcmFormat, PcmStream
from ds2deploy.runtimes.errors import AudioError

RAMP = (np.arange(-800, 800) / 1000).astype(np.float32)


def wav(subtype: str, samples: np.ndarray = RAMP, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, format=form, subtype=subtype)
    return file.getvalue()


def read(content: bytes, rate: int = 16_000, told: bool = False) -> tuple[PcmFormat, np.ndarray]:
    stream = PcmStream(io.BytesIO(content), rate, "standard input", told)
    return stream.format, np.concatenate(list(stream))


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize(
    ("subtype", "step"),
    [("PCM_U8", 2**-7), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("PCM_32", 1e-9), ("FLOAT", 0)],
)
def test_a_wav_stream_says_what_it_is(subtype: str, step: float, form: str):
    found, samples = read(wav(subtype, form=form))
    assert (found.sample_rate, found.channels) == (8000, 1)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, RAMP, rtol=0, atol=step + 1e-7)


def test_stereo_and_remarks_before_the_audio():
    content = wav("PCM_16", np.stack([RAMP, -RAMP], axis=1))
    content = content[:12] + b"LIST" + struct.pack("<I", 5) + b"abcde\0" + content[12:]
    found, samples = read(content)
    assert found.channels == 2
    np.testing.assert_allclose(samples, np.stack([RAMP, -RAMP], axis=1), atol=2**-15)


def test_stopped_arecord_streams_are_read_to_their_end():
    """Its header declares two gigabytes, and the last frame may be cut."""
    content = bytearray(wav("PCM_16"))
    data = content.find(b"data")
    content[data + 4 : data + 8] = (0x7FFF_FF00).to_bytes(4, "little")
    _, samples = read(bytes(content[:-1]))
    np.testing.assert_allclose(samples, RAMP[:-1], atol=2**-15)


def test_without_a_header_it_is_16_bits_mono_at_the_rate():
    pcm = (RAMP * 32767).astype("<i2")
    found, samples = read(pcm.tobytes(), 8000, told=True)
    assert found == PcmFormat(8000, 1, 16)
    np.testing.assert_array_equal(samples, (pcm / 32768).astype(np.float32))
    for count in (1, 3, 5, 7):  # shorter than the bytes that would hold a header
        assert len(read(pcm[:count].tobytes())[1]) == count


def test_pieces_come_as_soon_as_they_are_there():
    """Odd bytes wait for their other half; nobody waits for a full buffer."""
    source, sink = os.pipe()
    pcm = (RAMP * 32767).astype("<i2").tobytes()
    goes_on = threading.Event()

    def write() -> None:
        with os.fdopen(sink, "wb", buffering=0) as file:
            file.write(pcm[:101])
            goes_on.wait(10)
            file.write(pcm[101:])

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(source, "rb") as file:
        pieces = iter(PcmStream(file, 16_000))
        first = next(pieces)
        assert 0 < len(first) <= 50
        goes_on.set()
        rest = np.concatenate([first, *pieces])
    thread.join()
    assert len(rest) == len(RAMP)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 samples; expected speech"),
        (b"\0", "0 samples"),
        (wav("ULAW"), "a WAV stream with format code 7, 8 bits"),
        (wav("DOUBLE"), "a WAV stream with format code 3, 64 bits"),
        (wav("PCM_16")[:20], "ends within its header"),
        (wav("PCM_16")[:12] + b"fmt \x04\0\0\0abcd" + b"data\0\0\0\0", "header of .* is damaged"),
        (wav("PCM_16")[:12] + b"LIST\xff\xff\xff\x7f", "header of .* is damaged"),
        (wav("PCM_16")[:12] + b"data\0\0\0\0", 'no "fmt " chunk'),
        (wav("PCM_16", RAMP[:0]), "0 samples"),
    ],
    ids=["empty", "half", "mu-law", "double", "cut", "short", "huge", "no format", "no samples"],
)
def test_unreadable_standard_input_is_refused(content: bytes, message: str):
    with pytest.raises(AudioError, match=message) as raised:
        read(content)
    assert str(raised.value).startswith("standard input: ")


def test_remarks_after_the_audio_are_not_audio():
    content = wav("PCM_16") + b"LIST" + struct.pack("<I", 400) + bytes(range(200)) * 2
    _, samples = read(content)
    np.testing.assert_allclose(samples, RAMP, atol=2**-15)


def test_a_header_of_two_megabytes_is_passed_over():
    content = wav("PCM_16")
    picture = b"LIST" + struct.pack("<I", 2_000_001) + bytes(2_000_002)
    _, samples = read(content[:12] + picture + content[12:])
    np.testing.assert_allclose(samples, RAMP, atol=2**-15)
    with pytest.raises(AudioError, match="ends within its header"):
        read(content[:12] + picture[:1_000_000])


@pytest.mark.parametrize("rate", [0, 1, 100, 4_000_000_000])
def test_a_rate_that_no_recorder_has_is_refused(rate: int):
    content = bytearray(wav("PCM_16"))
    content[24:28] = struct.pack("<I", rate)
    with pytest.raises(AudioError, match="Hz; expected") as raised:
        read(bytes(content))
    assert str(raised.value).startswith("standard input: ")


@pytest.mark.parametrize(
    ("form", "named"),
    [("FLAC", "FLAC"), ("OGG", "Ogg"), ("AIFF", "AIFF"), ("CAF", "CAF")],
)
def test_input_that_would_be_read_as_noise_is_refused(form: str, named: str):
    file = io.BytesIO()
    soundfile.write(file, RAMP, 8000, format=form)
    with pytest.raises(AudioError, match=f"standard input: {named}; .* convert it first: ffmpeg"):
        read(file.getvalue())


def test_a_rate_that_contradicts_the_header():
    with pytest.raises(AudioError, match="8000 Hz, but --rate is 44100; omit --rate"):
        read(wav("PCM_16"), 44_100, told=True)
    assert read(wav("PCM_16"), 8000, told=True)[0].sample_rate == 8000
