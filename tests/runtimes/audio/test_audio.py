"""Any recording becomes mono float32 at the model's rate; a damaged one is refused by name."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2deploy.runtimes.audio import recording as module
from ds2deploy.runtimes.audio.loading import load_audio
from ds2deploy.runtimes.audio.samples import convert_audio
from ds2deploy.runtimes.errors import AudioError, Ds2Error, MissingFileError

RATE = 16_000

LOSSLESS = [
    ("WAV", "PCM_16", 1 / 32768),
    ("WAV", "PCM_24", 1 / 2**23),
    ("WAV", "FLOAT", 0),
    ("WAVEX", "PCM_16", 1 / 32768),
    ("RF64", "PCM_16", 1 / 32768),
    ("W64", "PCM_16", 1 / 32768),
    ("AU", "PCM_16", 1 / 32768),
    ("AIFF", "PCM_16", 1 / 32768),
    ("CAF", "PCM_16", 1 / 32768),
    ("FLAC", "PCM_16", 1 / 32768),
]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]


def needs(file_format: str, subtype: str) -> None:
    if not soundfile.check_format(file_format, subtype):
        pytest.skip(f"this libsndfile cannot write {file_format} {subtype}")


def encode(
    samples: np.ndarray, file_format: str = "WAV", subtype: str | None = None, **options: object
) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=file_format, subtype=subtype, **options)
    return buffer.getvalue()


def speechlike(seconds: float = 1.0, channels: int | None = None) -> np.ndarray:
    """A tone in noise, loud enough for every coder to keep all of it."""
    random = np.random.default_rng(0)
    count = round(seconds * RATE)
    shape = count if channels is None else (count, channels)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(count) / RATE)
    return (
        (tone if channels is None else tone[:, None]) + 0.05 * random.standard_normal(shape)
    ).astype(np.float32)


def wav(data: bytes, riff_size: int | None = None, data_size: int | None = None) -> bytes:
    """Mono 16-bit PCM with the sizes that are given, or else the right ones."""
    riff = 36 + len(data) if riff_size is None else riff_size
    size = len(data) if data_size is None else data_size
    head = struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return (
        (b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + head)
        + (b"data" + struct.pack("<I", size))
        + data
    )


PCM = (speechlike() * 32767).astype("<i2")


@pytest.fixture
def recording(tmp_path: Path):
    """Writes bytes under a name that gives no format away."""

    def write(content: bytes) -> Path:
        path = tmp_path / "recording"
        path.write_bytes(content)
        return path

    return write


# What is read


@pytest.mark.parametrize(("file_format", "subtype", "step"), LOSSLESS)
def test_lossless_formats_come_back_as_they_were(file_format, subtype, step, recording):
    samples = speechlike()
    loaded = load_audio(recording(encode(samples, file_format, subtype)), RATE)
    assert loaded.dtype == np.float32
    assert loaded.shape == samples.shape
    np.testing.assert_allclose(loaded, samples, rtol=0, atol=step)


@pytest.mark.parametrize(("file_format", "subtype"), LOSSY)
def test_lossy_formats_keep_length_and_sound(file_format, subtype, recording):
    needs(file_format, subtype)
    samples = speechlike()
    loaded = load_audio(recording(encode(samples, file_format, subtype)), RATE)
    assert loaded.dtype == np.float32
    assert loaded.shape == samples.shape
    correlation = np.corrcoef(loaded, samples)[0, 1]
    assert correlation > 0.97


def test_a_path_may_be_a_string(recording):
    path = recording(encode(speechlike()))
    np.testing.assert_array_equal(load_audio(str(path), RATE), load_audio(path, RATE))


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_channels_are_averaged(channels, recording):
    samples = speechlike(0.2, channels)
    loaded = load_audio(recording(encode(samples, "WAV", "FLOAT")), RATE)
    np.testing.assert_allclose(loaded, samples.astype(float).mean(axis=1), rtol=0, atol=1e-6)


def test_opposite_channels_cancel():
    left = speechlike(0.1)
    mono = convert_audio(np.stack([left, -left], axis=1), RATE, RATE)
    np.testing.assert_array_equal(mono, np.zeros_like(left))


@pytest.mark.parametrize(
    ("file_format", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), *LOSSY]
)
def test_reading_in_blocks_leaves_no_seam(file_format, subtype, recording, monkeypatch):
    needs(file_format, subtype)
    path = recording(encode(speechlike(), file_format, subtype))
    whole = load_audio(path, RATE)
    for block in (1000, 16_000):  # in between, and exactly the whole
        monkeypatch.setattr(module, "BLOCK", block)
        np.testing.assert_array_equal(load_audio(path, RATE), whole)


# Conversion of what is in memory


@pytest.mark.parametrize("to_rate", [8_000, 16_000])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_resampling_keeps_a_sine(rate, to_rate):
    frequency, amplitude = 437.0, 0.4
    time = np.arange(rate) / rate
    sine = (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)
    converted = convert_audio(sine, rate, to_rate)
    assert converted.dtype == np.float32
    assert len(converted) == to_rate
    expected = amplitude * np.sin(2 * np.pi * frequency * np.arange(to_rate) / to_rate)
    # The filter rings at the cut ends; between them frequency, phase and amplitude must agree.
    inner = slice(to_rate // 10, -to_rate // 10)
    np.testing.assert_allclose(converted[inner], expected[inner], rtol=0, atol=2e-4)


def test_resampling_removes_what_the_new_rate_cannot_hold():
    time = np.arange(48_000) / 48_000
    sine = np.sin(2 * np.pi * 10_000 * time).astype(np.float32)
    converted = convert_audio(sine, 48_000, RATE)
    assert np.abs(converted[1600:-1600]).max() < 1e-3


@settings(max_examples=60, deadline=None)
@given(
    rate=st.integers(1_000, 200_000),
    milliseconds=st.integers(20, 200),
    channels=st.sampled_from([None, 1, 2, 8]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64, ">f4"]),
)
def test_any_rate_and_channel_count_becomes_mono_of_the_same_duration(
    rate, milliseconds, channels, dtype
):
    count = rate * milliseconds // 1000
    samples = np.full(count if channels is None else (count, channels), 0.25, dtype)
    converted = convert_audio(samples, rate, RATE)
    assert converted.dtype == np.float32
    assert converted.dtype.isnative
    assert converted.flags.c_contiguous
    assert abs(len(converted) - count * RATE / rate) <= 1
    assert converted[len(converted) // 2] == pytest.approx(0.25, abs=0.01)


def test_the_callers_array_is_left_alone():
    samples = speechlike(0.1)
    before = samples.copy()
    convert_audio(samples, RATE, 8_000)
    np.testing.assert_array_equal(samples, before)


def test_plain_lists_and_tensors_are_arrays_too():
    expected = convert_audio(np.full(800, 0.5, np.float32), 8_000, RATE)
    np.testing.assert_array_equal(convert_audio([0.5] * 800, 8_000, RATE), expected)
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(convert_audio(torch.full((800,), 0.5), 8_000, RATE), expected)


SECOND = np.zeros(RATE, np.float32)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (SECOND.astype(np.int16), RATE, "samples of type int16.*divide 16-bit integers by 32768"),
        (SECOND.astype(np.uint8), RATE, "samples of type uint8; expected float32"),
        (SECOND.astype(np.complex64), RATE, "samples of type complex64; expected float32"),
        (None, RATE, "samples of type object; expected float32"),
        (0.5, RATE, "0 dimensions; expected"),
        (SECOND.reshape(10, 10, 160), RATE, "3 dimensions; expected"),
        (SECOND.reshape(2, -1), RATE, r"shape \(2, 8000\); expected \(samples, channels\)"),
        (SECOND[:0], RATE, "0 samples; expected speech"),
        (np.zeros((RATE, 0), np.float32), RATE, "0 samples; expected speech"),
        (SECOND[:1], RATE, r"1 sample \(0.062 ms\); expected at least 10 ms"),
        (SECOND[:159], RATE, r"159 samples \(9.9 ms\); expected at least 10 ms"),
        (np.append(SECOND, np.nan), RATE, "NaN or infinite"),
        (np.append(SECOND, np.inf), RATE, "NaN or infinite"),
        (np.append(SECOND.astype(float), 1e300), RATE, "NaN or infinite"),
        (np.full((RATE, 2), [np.inf, -np.inf], np.float32), RATE, "NaN or infinite"),
        (SECOND, 0, "sample rate of 0 Hz"),
        (SECOND, -8_000, "sample rate of -8000 Hz"),
        (SECOND, float("nan"), "sample rate of nan Hz"),
        (SECOND, float("inf"), "expected at least 10 ms"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_an_array_that_is_not_audio_is_refused(samples, rate, message):
    with pytest.raises(AudioError, match=f"^interview: .*{message}") as raised:
        convert_audio(samples, rate, RATE, source="interview")
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, Ds2Error)


def test_ten_milliseconds_are_enough():
    assert len(convert_audio(SECOND[:160], RATE, RATE)) == 160


# What is missing, or is not audio


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "no such.wav"
    with pytest.raises(MissingFileError) as raised:
        load_audio(path, RATE)
    assert str(raised.value) == f"{path}: no such file; expected an audio file"
    assert isinstance(raised.value, FileNotFoundError)


def test_a_directory_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="is a directory") as raised:
        load_audio(tmp_path, RATE)
    assert str(raised.value).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file (0 bytes)"),
        (b"not audio at all, but a text of some length\n" * 40, "not audio in a supported format"),
        (bytes(1000), "not audio in a supported format"),
        (b"RIFF", "not audio in a supported format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "not audio in a supported format"),
        (wav(b""), "0 samples"),
        (wav(PCM[:100].tobytes()), "100 samples (6.2 ms); expected at least 10 ms"),
    ],
)
def test_a_file_that_holds_no_audio_is_named(content, message, recording):
    path = recording(content)
    with pytest.raises(AudioError) as raised:
        load_audio(path, RATE)
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_samples_that_are_not_finite_are_refused(recording):
    samples = speechlike(0.1)
    samples[700] = np.nan
    path = recording(encode(samples, "WAV", "FLOAT"))
    with pytest.raises(AudioError, match="NaN or infinite") as raised:
        load_audio(path, RATE)
    assert str(path) in str(raised.value)


# Truncated files


@pytest.mark.parametrize("seconds", [0.3, 4.0])
@pytest.mark.parametrize(
    ("file_format", "subtype"), [*[(f, s) for f, s, _ in LOSSLESS], ("AIFF", "FLOAT"), *LOSSY]
)
def test_a_truncated_file_is_refused(file_format, subtype, seconds, recording):
    needs(file_format, subtype)
    whole = encode(speechlike(seconds), file_format, subtype)
    load_audio(recording(whole), RATE)
    least = 8 if file_format == "CAF" else 1  # libsndfile itself overlooks three samples of CAF
    for kept in (len(whole) - least, *(len(whole) * n // 10 for n in range(1, 10))):
        path = recording(whole[:kept])
        with pytest.raises(AudioError) as raised:
            load_audio(path, RATE)
        assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("file_format", "subtype"),
    [("WAV", "PCM_16"), ("AIFF", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")],
)
def test_a_truncated_file_is_called_so(file_format, subtype, recording):
    needs(file_format, subtype)
    whole = encode(speechlike(4.0), file_format, subtype)
    with pytest.raises(AudioError, match="truncated, its end is missing; copy or record it again"):
        load_audio(recording(whole[: len(whole) * 7 // 10]), RATE)


def test_an_ogg_file_cut_between_two_pages_is_truncated(recording):
    whole = encode(speechlike(4.0), "OGG", "VORBIS")
    last_page = whole.rfind(b"OggS")
    assert last_page > len(whole) // 2
    with pytest.raises(AudioError, match="truncated"):
        load_audio(recording(whole[:last_page]), RATE)


# Headers that are odd, around audio that is whole


@pytest.mark.parametrize(
    ("riff_size", "data_size"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),  # ffmpeg to a pipe
        (0x7FFFF024, 0x7FFFF000),  # sox and espeak-ng to a pipe
        (0x7FFFFFFF, 0x7FFFFFDB),
        (0x80000024, 0x80000000),
        (0xFFFFFFFF, None),
        (None, 0xFFFFFFFF),
        (0, None),
        (0, 0),  # GStreamer to a pipe
        (36, 0),  # Python's wave module to a pipe
    ],
)
def test_a_wav_stream_that_did_not_know_its_length_is_read_to_its_end(
    riff_size, data_size, recording
):
    path = recording(wav(PCM.tobytes(), riff_size, data_size))
    np.testing.assert_allclose(load_audio(path, RATE), PCM / 32768, rtol=0, atol=1e-7)


def test_an_empty_recording_is_not_filled_from_what_follows_it(recording):
    notes = b"LIST" + struct.pack("<I", 2004) + b"INFO" + b"ICMT" + struct.pack("<I", 1992)
    content = wav(b"", riff_size=36 + 2012, data_size=0) + notes + b"remarks!" * 249
    assert len(content) == 8 + 36 + 2012
    with pytest.raises(AudioError, match="0 samples"):
        load_audio(recording(content), RATE)


def test_a_wrong_total_in_the_header_does_not_matter_where_the_audio_is_whole(recording):
    # Writers that forget to subtract the eight bytes of the RIFF header are common.
    path = recording(wav(PCM.tobytes(), riff_size=44 + 2 * len(PCM)))
    assert len(load_audio(path, RATE)) == len(PCM)


@pytest.mark.parametrize(
    "after",
    [
        b"trailing garbage" * 10,
        b"\0",
        b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0",
        b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58",
    ],
    ids=["garbage", "zero byte", "LIST chunk", "truncated LIST chunk"],
)
def test_bytes_after_the_audio_are_ignored(after, recording):
    whole = wav(PCM.tobytes(), riff_size=36 + 2 * len(PCM) + len(after)) + after
    np.testing.assert_allclose(load_audio(recording(whole), RATE), PCM / 32768, atol=1e-7)


def test_a_missing_padding_byte_does_not_matter(recording):
    # A chunk of odd length is followed by a byte that some writers forget.
    whole = encode(speechlike()[:15_999], "WAV", "PCM_24")
    assert len(whole) % 2 == 0
    assert len(load_audio(recording(whole[:-1]), RATE)) == 15_999


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0])
def test_a_flac_stream_that_did_not_know_its_length_is_read_to_its_end(size, recording):
    content = bytearray(encode(speechlike(), "FLAC"))
    assert content[:4] == b"fLaC"
    # STREAMINFO counts samples in 36 bits: half of byte 21, and bytes 22 to 25.
    content[22:26] = struct.pack(">I", size)
    if size:
        content[21] |= 0x0F  # 64 thousand million samples: as an array 240 GB
    assert len(load_audio(recording(bytes(content)), RATE)) == RATE


def test_an_ogg_file_with_something_after_its_last_page_is_whole(recording):
    content = encode(speechlike(), "OGG", "VORBIS") + b"a tag of some player" * 7
    assert len(load_audio(recording(content), RATE)) == RATE


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_stream_that_did_not_know_its_length_is_read_to_its_end(mode, recording):
    needs("MP3", "MPEG_LAYER_III")
    # Silence and then sound: frames of different sizes, from which a length cannot be guessed.
    samples = speechlike(4.0) * (np.arange(4 * RATE) > 2 * RATE)
    content = encode(samples, "MP3", bitrate_mode=mode, compression_level=0.5)
    second_frame = content.find(content[:2], 2)
    assert b"Xing" in content[:second_frame] or b"Info" in content[:second_frame]
    streamed = load_audio(recording(content[second_frame:]), RATE)
    # Without that header the coder's own delay is not removed.
    assert len(samples) <= len(streamed) < len(samples) + 2500


def test_a_picture_in_an_mp3_tag_hides_no_truncation(recording):
    needs("MP3", "MPEG_LAYER_III")
    tag = b"ID3\x04\0\0" + bytes([0, 1, 0, 0]) + b"\0" * 16_384  # a size of four 7-bit bytes
    content = tag + encode(speechlike(4.0), "MP3")
    assert len(load_audio(recording(content), RATE)) == 4 * RATE
    with pytest.raises(AudioError, match="truncated"):
        load_audio(recording(content[:-2000]), RATE)
