"""Recordings that decoders read in part, or whose headers do not know, or lie."""

from __future__ import annotations

import io
import os
import struct
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ds2deploy.runtimes.audio.loading import load_audio, load_part, measure_audio
from ds2deploy.runtimes.audio.pcm import PcmStream
from ds2deploy.runtimes.audio.samples import convert_audio
from ds2deploy.runtimes.audio.spliced import Span, Spliced
from ds2deploy.runtimes.errors import AudioError, AudioWarning, MissingFileError, NotAudioError
from tests.conftest import SHARED

RATE = 16_000
TONE = (0.3 * np.sin(np.arange(2 * RATE) / 5)).astype(np.float32)
NOISE = (0.1 * np.random.default_rng(0).standard_normal(2 * RATE)).astype(np.float32)


def encode(samples: np.ndarray, form: str, rate: int = RATE, **options: object) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, **options)
    return buffer.getvalue()


def write(tmp_path: Path, content: bytes, name: str = "recording") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def seconds(path: Path) -> float:
    """Duration as read, which every way of measuring it must agree with."""
    count = len(load_audio(path, RATE))
    for read in (False, True):
        assert measure_audio(path, read).duration_s == pytest.approx(count / RATE, abs=2e-4)
    return count / RATE


def mp3_stream(samples: np.ndarray, rate: int = RATE) -> bytes:
    """MP3 of variable bitrate without the frame that counts the others."""
    content = encode(samples, "MP3", rate, bitrate_mode="VARIABLE", compression_level=0.5)
    assert b"Xing" in content[:64]
    return content[content.index(content[:2], 2) :]


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def wav(
    data: bytes, size: int | None = None, total: int | None = None, rate: int = RATE,
    before: bytes = b"", after: bytes = b"", channels: int = 1,
) -> bytes:  # fmt: skip
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * rate * channels, 2 * channels, 16)
    size = len(data) if size is None else size
    body = chunk(b"fmt ", form) + before + b"data" + struct.pack("<I", size) + data + after
    total = 4 + len(body) if total is None else total
    return b"RIFF" + struct.pack("<I", total) + b"WAVE" + body


PCM = (NOISE * 32767).astype("<i2").tobytes()


# Several recordings in one file


def test_an_mp3_of_variable_rate_without_a_count_is_read_to_its_end(tmp_path: Path):
    """A quiet beginning has small frames; a length guessed from them is far too long or short."""
    loud_first = np.concatenate([NOISE * 5, TONE * 0, TONE * 0.01, NOISE])
    for samples in (loud_first, loud_first[::-1]):
        path = write(tmp_path, mp3_stream(samples))
        assert len(samples) / RATE <= seconds(path) < len(samples) / RATE + 0.15


@pytest.mark.parametrize("rates", [(RATE, RATE), (RATE, 22_050), (8_000, 44_100, RATE)])
def test_joined_mp3s_are_read_to_their_end(tmp_path: Path, rates: tuple[int, ...]):
    tags = b"ID3\x04\0\0\0\0\x02\0" + bytes(256), b"TAG" + bytes(125)
    parts = [encode(NOISE, "MP3", rate) for rate in rates]
    path = write(tmp_path, b"".join(tags[0] + part + tags[1] for part in parts))
    assert seconds(path) == pytest.approx(sum(len(NOISE) / rate for rate in rates), abs=0.01)
    streams = [mp3_stream(NOISE, rate) for rate in rates]
    expected = sum(len(NOISE) / rate for rate in rates)
    assert expected <= seconds(write(tmp_path, b"".join(streams))) < expected + 0.2 * len(rates)


def test_an_mp3_whose_count_is_too_small_is_read_to_its_end(tmp_path: Path):
    content = bytearray(encode(NOISE, "MP3"))
    place = content.index(b"Xing" if b"Xing" in content[:64] else b"Info") + 8
    content[place : place + 4] = (10).to_bytes(4, "big")
    assert seconds(write(tmp_path, bytes(content))) >= len(NOISE) / RATE
    content[place : place + 4] = (1000).to_bytes(4, "big")
    with pytest.raises(AudioError, match="truncated"):
        load_audio(write(tmp_path, bytes(content)), RATE)


def test_an_mp3_frame_too_small_for_its_count_is_refused(tmp_path: Path):
    frame = b"\xff\xf3\x16\0" + bytes(17) + b"Xing"  # the 25 bytes of 8 kbit/s at 24 kHz
    path = write(tmp_path, frame * 6)
    with pytest.raises(AudioError) as raised:
        load_audio(path, RATE)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n" * 20, b""),
        (b"", b"TAG" + bytes(125)),
        (b"", b"APETAGEX" + struct.pack("<IIII", 2000, 232, 7, 0xA0000000) + bytes(208)),
        (b"ID3\x03\0\0\0\0\x10\0" + b"\xff\xfb\x90\x64" * 512, bytes(40)),
    ],
    ids=["text before", "ID3v1", "APE", "ID3v2 that looks like frames, and zeros"],
)
def test_bytes_around_mp3_frames_are_not_sound(tmp_path: Path, before: bytes, after: bytes):
    content = mp3_stream(NOISE)
    alone = seconds(write(tmp_path, content, "alone"))
    assert seconds(write(tmp_path, before + content + after)) == alone


def test_an_mp3_with_a_hole_is_damaged(tmp_path: Path):
    content = mp3_stream(NOISE)
    half = len(content) // 2
    with pytest.raises(AudioError, match=r"damaged, .* copy or record it again"):
        load_audio(write(tmp_path, content[:half] + bytes(9_000) + content[half:]), RATE)


@pytest.mark.parametrize("subtypes", [("VORBIS", "VORBIS"), ("OPUS", "OPUS"), ("OPUS", "VORBIS")])
@pytest.mark.parametrize("rates", [(RATE, RATE), (RATE, 8_000)])
def test_chained_ogg_is_read_to_its_end(
    tmp_path: Path, subtypes: tuple[str, str], rates: tuple[int, int]
):
    parts = [
        encode(NOISE, "OGG", rate, subtype=subtype)
        for rate, subtype in zip(rates, subtypes, strict=True)
    ]
    path = write(tmp_path, b"".join(parts))
    assert seconds(path) == pytest.approx(sum(len(NOISE) / rate for rate in rates), abs=0.001)
    first = load_audio(write(tmp_path, parts[0], "first"), RATE)
    np.testing.assert_array_equal(load_audio(path, RATE)[: len(first)], first)


def pages(content: bytes) -> list[bytes]:
    found, place = [], 0
    while place < len(content):
        table = content[place + 27 : place + 27 + content[place + 26]]
        size = 27 + len(table) + sum(table)
        found.append(content[place : place + size])
        place += size
    return found


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_with_a_page_lost_is_truncated(tmp_path: Path, subtype: str):
    """Lost in the middle, damaged, or at the end, as of a recorder that was killed."""
    parts = pages(encode(np.tile(NOISE, 3), "OGG", subtype=subtype))
    assert len(parts) > 5
    lost = b"".join(parts[:4] + parts[5:])
    flipped = b"".join([*parts[:4], parts[4][:-9] + bytes(9), *parts[5:]])
    for content in (lost, flipped, b"".join(parts[:-1])):
        with pytest.raises(AudioError, match="truncated"):
            load_audio(write(tmp_path, content), RATE)


def test_ogg_streams_side_by_side_are_refused(tmp_path: Path):
    one, other = (pages(encode(NOISE, "OGG", subtype="OPUS")) for _ in range(2))
    content = b"".join([one[0], other[0], *one[1:], *other[1:]])
    if one[0][14:18] == other[0][14:18]:
        pytest.fail("both streams have one serial number")
    with pytest.raises(AudioError, match="save each as a separate file"):
        load_audio(write(tmp_path, content), RATE)


def unknown_flac(content: bytes) -> bytes:
    """FLAC without a count of samples, 36 bits of its first block, as through a pipe."""
    changed = bytearray(content)
    changed[21] &= 0xF0
    changed[22:26] = bytes(4)
    return bytes(changed)


@pytest.mark.parametrize("rates", [(RATE, RATE), (RATE, 8_000)])
def test_joined_and_unknown_flac_is_read_to_its_end(tmp_path: Path, rates: tuple[int, int]):
    parts = [encode(NOISE, "FLAC", rate) for rate in rates]
    expected = sum(len(NOISE) / rate for rate in rates)
    for content in (b"".join(parts), b"".join(map(unknown_flac, parts))):
        assert seconds(write(tmp_path, content)) == pytest.approx(expected)
    tagged = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048) + unknown_flac(parts[0]) + b"TAG" + bytes(125)
    assert seconds(write(tmp_path, tagged)) == len(NOISE) / RATE


def test_joined_wavs_are_read_to_their_end(tmp_path: Path):
    path = write(tmp_path, wav(PCM) + wav(PCM, rate=8_000))
    assert seconds(path) == pytest.approx(len(NOISE) / RATE + len(NOISE) / 8_000)


@pytest.mark.parametrize(
    "content",
    [mp3_stream(np.tile(NOISE, 2)), encode(NOISE, "OGG") * 2, wav(PCM) * 2, encode(NOISE, "FLAC")],
    ids=["MP3", "Ogg", "WAV", "FLAC"],
)
def test_a_part_is_that_of_the_whole(tmp_path: Path, content: bytes):
    path = write(tmp_path, content)
    whole = load_audio(path, RATE)
    for start_s, duration_s in ((0.0, None), (0.5, 1.0), (1.9, 0.2), (1.5, 99.0)):
        part, rate = load_part(path, start_s, duration_s)
        assert rate == RATE
        start = round(start_s * RATE)
        expected = whole[start : None if duration_s is None else start + round(duration_s * RATE)]
        np.testing.assert_allclose(part[:, 0], expected, atol=1e-4)


# Headers that do not know, or lie


@pytest.mark.parametrize("before", [b"", chunk(b"LIST", b"INFO" + bytes(5_001))])
@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_of_unknown_size_is_read_to_its_end(tmp_path: Path, size: int, before: bytes):
    path = write(tmp_path, wav(PCM, size, 0xFFFFFFFF if size else 36, before=before))
    assert seconds(path) == len(NOISE) / RATE


@pytest.mark.parametrize("sizes", [(0, 0), (2**64 - 1, 2**64 - 1)])
def test_rf64_of_unknown_size_is_read_to_its_end(tmp_path: Path, sizes: tuple[int, int]):
    plain = wav(PCM, 0xFFFFFFFF, 0xFFFFFFFF)
    ds64 = chunk(b"ds64", struct.pack("<QQQI", *sizes, 0, 0))
    path = write(tmp_path, b"RF64" + plain[4:12] + ds64 + plain[12:])
    assert seconds(path) == len(NOISE) / RATE


def test_caf_and_au_of_unknown_size_are_read_to_their_end(tmp_path: Path):
    caf = bytearray(encode(NOISE, "CAF"))
    place = caf.index(b"data") + 4
    caf[place : place + 8] = b"\xff" * 8
    au = bytearray(encode(NOISE, "AU"))
    au[8:12] = b"\xff" * 4
    for content in (caf, au):
        assert seconds(write(tmp_path, bytes(content))) == len(NOISE) / RATE


@pytest.mark.parametrize("excess", [2, 8, 36, 44])
def test_a_size_that_counts_the_header_is_no_truncation(tmp_path: Path, excess: int):
    path = write(tmp_path, wav(PCM, len(PCM) + excess, 36 + len(PCM)))
    np.testing.assert_array_equal(load_audio(path, RATE), np.frombuffer(PCM, "<i2") / 2**15)


@pytest.mark.parametrize("missing", [1, 2, 46, 100, 2_000])
def test_a_wav_that_lost_its_end_is_truncated(tmp_path: Path, missing: int):
    for content in (wav(PCM)[:-missing], wav(PCM[: -missing - 44], len(PCM), 0)):
        with pytest.raises(AudioError, match="truncated"):
            load_audio(write(tmp_path, content), RATE)


def test_a_chunk_of_odd_size_without_its_padding(tmp_path: Path):
    odd = chunk(b"LIST", b"INFO" + b"x" * 41)[:-1]
    assert seconds(write(tmp_path, wav(PCM, before=odd))) == len(NOISE) / RATE


def test_mp3_inside_wav_is_read_to_its_end(tmp_path: Path):
    content = mp3_stream(NOISE)
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4_000, 1, 0, 12, 1, 0, 576, 1, 0)
    fact = chunk(b"fact", struct.pack("<I", 99_999))
    body = chunk(b"fmt ", form) + fact + chunk(b"data", content)
    path = write(tmp_path, b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)
    assert seconds(path) == seconds(write(tmp_path, content, "alone"))


@pytest.mark.parametrize("rate", [1, 100, 999, 768_001, 2_000_000_000])
def test_a_rate_that_no_recorder_has_is_refused_at_once(tmp_path: Path, rate: int):
    path = write(tmp_path, wav(PCM, rate=rate))
    for read in (load_audio, lambda path, _: measure_audio(path)):
        with pytest.raises(AudioError, match=r"a sample rate of .* Hz; expected 1000 to") as raised:
            read(path, RATE)
        assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "change", [(22, b"\0\0"), (24, b"\0\0\0\0"), (34, b"\0\0"), (20, b"\x99\x99")]
)
def test_a_header_without_sense_is_refused(tmp_path: Path, change: tuple[int, bytes]):
    content = bytearray(wav(PCM))
    content[change[0] : change[0] + len(change[1])] = change[1]
    path = write(tmp_path, bytes(content))
    with pytest.raises(AudioError) as raised:
        load_audio(path, RATE)
    assert str(raised.value).startswith(f"{path}: ")


def test_three_hundred_channels_are_averaged(tmp_path: Path):
    samples = np.repeat(NOISE[:1_600, None], 300, axis=1)
    path = write(tmp_path, encode(samples, "WAV", subtype="FLOAT"))
    np.testing.assert_allclose(load_audio(path, RATE), NOISE[:1_600], atol=1e-6)


@pytest.mark.parametrize("form", ["NIST", "AVR", "MAT4", "MAT5", "VOC", "SVX"])
def test_containers_without_their_end_are_truncated(tmp_path: Path, form: str):
    content = encode(NOISE, form, subtype="PCM_16")
    assert seconds(write(tmp_path, content)) == len(NOISE) / RATE
    with pytest.raises(AudioError, match="truncated"):
        load_audio(write(tmp_path, content[: len(content) * 7 // 10]), RATE)


def test_a_long_stream_is_not_held_in_memory_to_be_measured(tmp_path: Path):
    path = write(tmp_path, wav(b"", 0xFFFFFFFF, 0xFFFFFFFF))
    with path.open("r+b") as file:
        file.truncate(400_000_044)  # of zeros, which take no room on the disk
    tracemalloc.start()
    try:
        assert measure_audio(path).samples == 200_000_000
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


# Paths


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_pipe_is_read_like_a_file(tmp_path: Path, form: str):
    content = encode(NOISE, form)
    expected = load_audio(write(tmp_path, content), RATE)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    thread = threading.Thread(target=fifo.write_bytes, args=(content,))
    thread.start()
    np.testing.assert_array_equal(load_audio(fifo, RATE), expected)
    thread.join()
    source, sink = os.pipe()
    thread = threading.Thread(target=lambda: os.fdopen(sink, "wb").write(content))
    thread.start()
    with os.fdopen(source):
        np.testing.assert_array_equal(load_audio(f"/proc/self/fd/{source}", RATE), expected)
    thread.join()


def test_a_pipe_without_a_byte_and_a_device_are_refused(tmp_path: Path):
    source, sink = os.pipe()
    os.close(sink)
    with os.fdopen(source), pytest.raises(AudioError, match="no data came through the pipe"):
        load_audio(f"/proc/self/fd/{source}", RATE)
    with pytest.raises(AudioError, match="/dev/zero: is a device"):
        load_audio("/dev/zero", RATE)


def test_a_name_that_is_not_utf8_does_not_matter(tmp_path: Path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    path.write_bytes(wav(PCM))
    assert seconds(path) == len(NOISE) / RATE


@pytest.mark.parametrize(
    "name", ["speech.raw", "speech.pcm", "speech.RAW", "speech.au", "speech.snd"]
)
def test_headerless_samples_are_refused(tmp_path: Path, name: str):
    path = write(tmp_path, PCM, name)
    with pytest.raises(NotAudioError) as raised:
        load_audio(path, RATE)
    assert str(raised.value).startswith(f"{path}: ")
    assert ("--rate HZ" in str(raised.value)) == (path.suffix.lower() in (".raw", ".pcm"))


def test_a_wav_with_another_suffix_is_read(tmp_path: Path):
    assert seconds(write(tmp_path, wav(PCM), "speech.raw")) == len(NOISE) / RATE


def test_links_to_nothing_and_names_that_cannot_be(tmp_path: Path):
    link, loop = tmp_path / "link.wav", tmp_path / "loop.wav"
    link.symlink_to(tmp_path / "gone.wav")
    loop.symlink_to(loop)
    with pytest.raises(MissingFileError, match=r"link.wav: a link to .*gone.wav"):
        load_audio(link, RATE)
    for path in (loop, tmp_path / ("n" * 300), tmp_path / "with\0zero"):
        with pytest.raises(AudioError, match="cannot be read"):
            load_audio(path, RATE)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, wav(PCM))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AudioError, match=r"cannot be read \(Permission denied\); make it readable"):
        load_audio(path, RATE)


# Levels


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (NOISE * 32768, "divide 16-bit integers by 32768"),
        (NOISE * 0, "digital silence"),
        (np.stack([NOISE, -NOISE], axis=1), "opposite phase"),
        (np.stack([NOISE, -0.99 * NOISE], axis=1), "opposite phase"),
    ],
)
def test_audio_that_is_not_what_was_meant_is_warned_of(
    tmp_path: Path, samples: np.ndarray, message: str
):
    with pytest.warns(AudioWarning, match=f"^interview: .*{message}"):
        convert_audio(samples, RATE, RATE, "interview")
    path = write(tmp_path, encode(samples, "WAV", subtype="FLOAT"))
    with pytest.warns(AudioWarning, match=message) as caught:
        load_audio(path, RATE)
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "samples",
    [NOISE * 4, NOISE * 1e-4, np.stack([NOISE, NOISE * 0], axis=1), np.stack([NOISE] * 2, axis=1)],
)
def test_loud_and_quiet_audio_is_not_warned_of(samples: np.ndarray):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_audio(samples, RATE, RATE)


# What they are made of


def test_a_view_reads_like_its_bytes():
    content = bytes(range(100))
    view = Spliced(io.BytesIO(content), [b"ab", Span(10, 5), Span(0, 3), b"", b"z"])
    joined = b"ab" + content[10:15] + content[:3] + b"z"
    assert view.read() == joined
    for start in range(len(joined) + 2):
        view.seek(start)
        assert view.read(4) == joined[start : start + 4]
    assert view.seek(0, io.SEEK_END) == len(joined)
    endless = Spliced(io.BytesIO(content), [Span(0, 100)], endless=True)
    assert endless.seek(0, io.SEEK_END) > 1 << 40
    endless.seek(0)
    assert endless.read(200) == content


# Samples from the field

FIELD = SHARED / "fieldcases"


@pytest.mark.skipif(not FIELD.is_dir(), reason=f"{FIELD} is not there")
@pytest.mark.parametrize(
    ("name", "expected_s"),
    [
        ("base8k.wav", 2.962), ("over2.wav", 2.962), ("over44.wav", 2.962), ("pipe.flac", 2.962),
        ("rf64pipe.wav", 2.962), ("v_quiet_first.mp3", 19.801), ("chain_opus.opus", 4.550),
        ("mp3_in.wav", 3.060),
    ],
)  # fmt: skip
def test_samples_from_the_field(name: str, expected_s: float):
    assert seconds(FIELD / name) == pytest.approx(expected_s, abs=0.001)


# Cut off, or of another kind ----------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 60])
def test_an_mp3_without_a_count_that_ends_within_a_frame_is_truncated(lost: int, tmp_path: Path):
    """One that ends between two frames cannot be told from a whole one."""
    whole = tmp_path / "whole.mp3"
    whole.write_bytes(mp3_stream(TONE))
    samples = len(load_audio(whole, RATE))
    assert samples > 0
    cut = tmp_path / "cut.mp3"
    cut.write_bytes(whole.read_bytes()[:-lost])
    with pytest.raises(AudioError, match="truncated") as raised:
        load_audio(cut, RATE)
    assert str(cut) in str(raised.value)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "MP4"),
        (b"\x1aE\xdf\xa3\x01\0\0\0\0\0\0\x1f", "WebM"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa", "WMA"),
        (b"#!AMR\n" + bytes(20), "AMR"),
        ((b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(9)) * 4, "AAC"),
    ],
)
def test_formats_that_must_be_converted_are_named(head: bytes, name: str, tmp_path: Path):
    path = tmp_path / "a.wav"
    path.write_bytes(head + bytes(4000))
    with pytest.raises(NotAudioError, match=name) as raised:
        load_audio(path, RATE)
    assert f"ffmpeg -i {path}" in str(raised.value)
    with pytest.raises(AudioError, match=name):
        PcmStream(io.BytesIO(path.read_bytes()), RATE)


def test_mp3_without_tags_on_standard_input_is_refused():
    with pytest.raises(AudioError, match="MP3"):
        PcmStream(io.BytesIO(mp3_stream(TONE)), RATE)


@pytest.mark.parametrize("first", [b"\xff\xff", b"\xff\xfb", b"\xf1\xff", b"\xff\xf1"])
def test_raw_audio_that_begins_like_a_frame_is_read(first: bytes):
    noise = np.random.default_rng(0).integers(-2000, 2000, 20_000, dtype="<i2").tobytes()
    stream = PcmStream(io.BytesIO(first + noise), RATE)
    assert sum(len(piece) for piece in stream) == 20_001
