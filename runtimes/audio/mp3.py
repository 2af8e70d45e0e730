"""The recordings in a stream of MPEG audio, whose frames are counted one by one.

A stream without a count (Xing, Info) has no length in its header, and a decoder guesses one from
its first frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ds2deploy.runtimes.audio.mp3_frames import Frame, FrameHeader, Key, parse_header, tag_size
from ds2deploy.runtimes.audio.spliced import Span

PIECE = 1 << 20
"""Bytes read at a time."""

SURE = 4
"""Frames in a row that make a stream; by chance one of 2,000 places looks like a header."""

MOST_BEFORE = 1 << 17
"""Bytes before the first frame that are passed over, tags aside."""

MOST_BETWEEN, MOST_AFTER = 1 << 12, 1 << 16
"""Bytes that are no frames and no tags, between frames and after them; more are lost sound."""


class Mp3Audio(NamedTuple):
    """A recording of one rate and channel count, of those that stand in a file.

    Attributes:
        spans: parts of the file that hold its frames, without the tags between them.
        frames: number of complete frames, without the one that only counts the others.
        frame_samples: samples of one channel in a frame.
        counted: number of frames that the first one declares; None where it declares none.
        info: size of that first frame in bytes; 0 where it holds sound.
    """

    spans: tuple[Span, ...]
    frames: int
    frame_samples: int
    counted: int | None
    info: int

    @property
    def samples(self) -> int:
        """Samples of one channel."""
        return self.frames * self.frame_samples

    @property
    def audio_spans(self) -> tuple[Span, ...]:
        """The spans without the frame that counts the others."""
        first = self.spans[0]
        return (Span(first.start + self.info, first.size - self.info), *self.spans[1:])


class Mp3Walk(NamedTuple):
    """Result of a walk over a file.

    Attributes:
        recordings: found recordings, in the order of the file.
        lost: bytes in the largest part that is neither frame nor tag, where that is too much.
        cut_off: True if the file ends within the last frame.
    """

    recordings: list[Mp3Audio]
    lost: int
    cut_off: bool


def find_mp3_audio(file: BinaryIO, span: Span) -> Mp3Walk:
    """Walk over the frames of a stream.

    Args:
        file: seekable.
        span: part of the file that holds the frames, and tags.
    """
    walk = _Walk(file, span)
    found: list[Mp3Audio] = []
    frames: list[Frame] = []
    for frame in walk:
        if frames and (frame.info_at or frame.header.key != frames[0].header.key):
            found.append(_recording(frames))
            frames = []
        frames.append(frame)
    if frames:
        found.append(_recording(frames))
    return Mp3Walk(found, walk.lost, walk.cut_off)


def is_mp3(file: BinaryIO, span: Span) -> bool:
    """Check that a stream of frames begins near the beginning, maybe after something else."""
    walk = _Walk(file, Span(span.start, min(span.size, MOST_BEFORE + PIECE)))
    first = next(iter(walk), None)
    return first is not None and first.span.start <= span.start + MOST_BEFORE


def _recording(frames: list[Frame]) -> Mp3Audio:
    spans: list[Span] = []
    for frame in frames:
        if spans and spans[-1].end == frame.span.start:
            spans[-1] = Span(spans[-1].start, spans[-1].size + frame.span.size)
        else:
            spans.append(frame.span)
    first = frames[0]
    info = first.span.size if first.info_at else 0
    return Mp3Audio(
        tuple(spans), len(frames) - bool(info), first.header.samples, first.declared, info
    )


class _Walk:
    """Frames of a stream in order.

    Attributes:
        lost: count of lost bytes, see `Mp3Walk`.
        cut_off: True if the file ends within the last frame.
    """

    def __init__(self, file: BinaryIO, span: Span) -> None:
        self._file, self._span, self._start = file, span, span.start
        self._buffer, self._base = b"", span.start
        self._free: dict[Key, int] = {}
        self.lost = 0
        self.cut_off = False

    def __iter__(self) -> Iterator[Frame]:
        place, end = self._span.start, self._span.end
        key: Key | None = None
        junk = 0
        while place + 4 <= end:
            header = self._header(place)
            if header is None or (header.key != key and not self._sure(place, header)):
                if size := tag_size(self._at(place, 32)):
                    self._start += size if place == self._start else 0
                else:
                    size = self._resync(place + 1) - place
                    junk += size
                place += size
                continue
            if place + header.size > end:
                self.cut_off = header.key == key
                break
            if key is not None and junk > MOST_BETWEEN:
                self.lost = max(self.lost, junk)
            key, junk = header.key, 0
            yield Frame(Span(place, header.size), header, self._at(place, min(64, header.size)))
            place += header.size
        if key is not None and junk > MOST_AFTER:
            self.lost = max(self.lost, junk)

    def _header(self, place: int) -> FrameHeader | None:
        header = parse_header(self._at(place, 4))
        if header is None or header.size:
            return header
        size = self._free.get(header.key) or self._free_size(place, header)
        return header._replace(size=size + header.padding) if size else None

    def _free_size(self, place: int, header: FrameHeader) -> int:
        """Size, without padding, of frames whose header does not say it; 0 if not found."""
        content = self._at(place, 1 << 13)
        for match in re.finditer(re.escape(content[:2]), content[4:]):
            other = parse_header(content[4 + match.start() : 8 + match.start()])
            if other is not None and other.size == 0 and other.key == header.key:
                self._free[header.key] = 4 + match.start() - header.padding
                return self._free[header.key]
        return 0

    def _sure(self, place: int, header: FrameHeader) -> bool:
        """Check that `SURE` frames of one kind follow one another.

        A short stream has fewer, but begins where the file does. A frame with a count is enough.
        """
        key, short = header.key, place == self._start
        if Frame(Span(place, header.size), header, self._at(place, 64)).info_at:
            return True
        for _ in range(SURE):
            if place + header.size >= self._span.end or tag_size(self._at(place, 32)):
                return short
            found = self._header(place)
            if found is None or found.key != key:
                return False
            header = found
            place += header.size
        return True

    def _resync(self, place: int) -> int:
        """Find the next place that may be a header, or a tag."""
        content = self._at(place, PIECE // 2)
        match = re.search(rb"\xff[\xe0-\xff]|ID3|TAG|APETAGEX", content)
        return place + (match.start() if match else max(1, len(content) - 8))

    def _at(self, place: int, count: int) -> bytes:
        """Bytes of the stream, fewer at its end."""
        count = min(count, self._span.end - place)
        offset = place - self._base
        if offset < 0 or offset + count > len(self._buffer):
            self._file.seek(place)
            self._buffer, self._base = self._file.read(PIECE), place
            offset = 0
        return self._buffer[offset : offset + max(count, 0)]
