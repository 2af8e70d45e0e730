"""The parts of a recording that a decoder can read to their end, found by walking its container.

libsndfile reads the first of several recordings that were joined, guesses the length of a stream
that does not say it, and stops there. So containers are walked first, and what is decoded is
compared with what they hold.
"""

from __future__ import annotations

import re
from typing import BinaryIO, NamedTuple

from ds2deploy.runtimes.audio.caf import sized_caf
from ds2deploy.runtimes.audio.flac import file_size, find_flac_audio
from ds2deploy.runtimes.audio.mp3 import Mp3Audio, find_mp3_audio, is_mp3
from ds2deploy.runtimes.audio.mp3_frames import id3_size
from ds2deploy.runtimes.audio.ogg import find_ogg_audio
from ds2deploy.runtimes.audio.spliced import Span, Spliced
from ds2deploy.runtimes.audio.wav import MPEG_FORMATS, find_wav_audio
from ds2deploy.runtimes.errors import AudioError, NotAudioError

TAG_SIZE = 128
"""Bytes of an ID3v1 tag, at the end of a file."""

ID3_TAG = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)
"""A tag without a word, by which libsndfile knows MP3; some streams it does not know without."""

SAMPLE_DUMP = b"\xf0\x7e"
"""Begins a MIDI sample dump. It holds sounds of instruments, and on a damaged one libsndfile prints
lines of its own to standard output."""


class Section(NamedTuple):
    """A part of a recording, to be decoded by itself.

    Attributes:
        content: bytes to decode; None for the whole file.
        samples: number of samples of one channel; None where the decoder knows it.
        truncated: True if its container shows that the end is missing; None if the decoder knows.
    """

    content: Spliced | None = None
    samples: int | None = None
    truncated: bool | None = None


def find_sections(name: str, file: BinaryIO) -> list[Section]:
    """Find what to decode, in order; nothing where the container is not one of those walked.

    Args:
        name: name of the recording, for errors.
        file: the recording, seekable; the sections read from it.

    Raises:
        AudioError: damaged, or several recordings that are played at the same time.
    """
    start, head = _after_tags(file)
    if head.startswith(SAMPLE_DUMP):
        raise NotAudioError(f"{name}: a MIDI sample dump; convert it to WAV first")
    whole = Span(start, file_size(file) - start)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return _wav(name, file, whole)
    if head.startswith(b"OggS"):
        return _ogg(name, file)
    if head.startswith(b"fLaC"):
        return _flac(file, whole)
    if head.startswith(b"caff") and (parts := sized_caf(file)):
        return [Section(Spliced(file, parts))]
    if head.startswith(b"NIST"):
        return [Section(samples=_nist_count(file))]
    if is_frame(head):
        return find_mp3_sections(name, file, whole)
    return []


def find_mp3_sections(name: str, file: BinaryIO, span: Span | None = None) -> list[Section]:
    """Find the recordings of a stream of MPEG audio; the whole file where there is none.

    Args:
        name: name of the recording, for errors.
        file: the recording.
        span: part of it that holds the stream, if not all.

    Raises:
        AudioError: it is damaged.
    """
    span = span or Span(0, file_size(file))
    if not is_mp3(file, span):
        return [Section()]
    walk = find_mp3_audio(file, span)
    if walk.lost:
        raise AudioError(
            f"{name}: damaged, {walk.lost:,} bytes are not MP3 data; copy or record it again"
        )
    last = len(walk.recordings) - 1
    return [
        _mp3(file, found, walk.cut_off and i == last) for i, found in enumerate(walk.recordings)
    ]


def is_frame(head: bytes) -> bool:
    """Check whether a file begins like a frame of MPEG audio."""
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0


def _after_tags(file: BinaryIO) -> tuple[int, bytes]:
    """Find the offset after ID3v2 tags, and the first bytes from there."""
    start = 0
    while True:
        file.seek(start)
        head = file.read(12)
        if not head.startswith(b"ID3") or len(head) < 10:
            return start, head
        start += id3_size(head)


def _wav(name: str, file: BinaryIO, whole: Span) -> list[Section]:
    sections: list[Section] = []
    found = find_wav_audio(file, whole.start)
    for audio in found:
        if audio.tag in MPEG_FORMATS:
            sections += find_mp3_sections(name, file, audio.data)
        elif audio.regular and len(found) == 1:
            sections.append(Section(truncated=audio.truncated))
        else:
            content = Spliced(file, [audio.header(), audio.data])
            sections.append(Section(content, truncated=audio.truncated))
    return sections or [Section()]


def _ogg(name: str, file: BinaryIO) -> list[Section]:
    found = find_ogg_audio(file)
    if any(audio.streams > 1 for audio in found):
        raise AudioError(
            f"{name}: contains several simultaneous audio streams; save each as a separate file"
        )
    if len(found) == 1:
        return [Section(truncated=not found[0].whole)]
    return [Section(Spliced(file, [audio.span]), truncated=not audio.whole) for audio in found]


def _flac(file: BinaryIO, whole: Span) -> list[Section]:
    file.seek(max(0, whole.end - TAG_SIZE))
    end = whole.end - (TAG_SIZE if file.read(3) == b"TAG" else 0)
    found = find_flac_audio(file, end)
    if len(found) == 1 and end == whole.end:
        return [Section()]
    return [Section(Spliced(file, [span])) for span in found]


def _nist_count(file: BinaryIO) -> int | None:
    """Read the samples per channel that a NIST SPHERE header counts; libsndfile ignores it."""
    file.seek(0)
    count = re.search(rb"^sample_count -i (\d{1,12})\s*$", file.read(1024), re.MULTILINE)
    return int(count[1]) if count else None


def _mp3(file: BinaryIO, found: Mp3Audio, cut_off: bool) -> Section:
    if found.counted is not None and found.counted >= found.frames:
        truncated = found.counted > found.frames
        return Section(Spliced(file, [ID3_TAG, *found.spans]), truncated=truncated)
    # Without a count, or with one that is too small, a decoder would stop early.
    content = Spliced(file, [ID3_TAG, *found.audio_spans], endless=True)
    return Section(content, found.samples, cut_off)
