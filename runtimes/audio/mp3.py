"""The frames of MPEG audio (MP3, and layers 1 and 2), counted one by one.

A stream without a count (Xing, Info) has no length in its header, and a decoder guesses one from
its first frame. ISO/IEC 11172-3 and 13818-3; MPEG-2.5 is Fraunhofer's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from ds2deploy.runtimes.audio.spliced import Span

KBPS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bitrates of MPEG 1 and of 2 and 2.5, by layer."""

RATES = (44_100, 48_000, 32_000)
"""Sample rates of MPEG 1, in Hz; MPEG 2 has half, 2.5 a quarter."""

PIECE = 1 << 20
"""Bytes read at a time."""

SURE = 4
"""Frames in a row that make a stream; by chance one of 2,000 places looks like a header."""

MOST_BEFORE = 1 << 17
"""Bytes before the first frame that are passed over, tags aside."""

MOST_BETWEEN, MOST_AFTER = 1 << 12, 1 << 16
"""Bytes that are no frames and no tags, between frames and after them; more are lost sound."""


INFO_NAMES = (b"Xing", b"Info", b"VBRI")
"""Beginnings of the header that counts the frames; it takes the place of the first one's sound."""

INFO_AT = (13, 15, 21, 23, 36, 38)
"""Offsets of that header in a frame: after side information, which depends on the version and the
number of channels, and after a checksum."""


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
        cut_off: whether the file ends within the last frame.
    """

    recordings: list[Mp3Audio]
    lost: int
    cut_off: bool


class _Form(NamedTuple):
    """Content of a frame's header of four bytes; its size is 0 in free format."""

    size: int
    samples: int
    key: tuple[int, int, int, bool]
    padding: int


class _Frame(NamedTuple):
    span: Span
    form: _Form
    head: bytes


def find_mp3_audio(file: BinaryIO, span: Span) -> Mp3Walk:
    """Walk over the frames of a stream.

    Args:
        file: seekable.
        span: part of the file that holds the frames, and tags.
    """
    walk = _Walk(file, span)
    found: list[Mp3Audio] = []
    frames: list[_Frame] = []
    for frame in walk:
        if frames and (_info_at(frame) or frame.form.key != frames[0].form.key):
            found.append(_recording(frames))
            frames = []
        frames.append(frame)
    if frames:
        found.append(_recording(frames))
    return Mp3Walk(found, walk.lost, walk.cut_off)


def _recording(frames: list[_Frame]) -> Mp3Audio:
    spans: list[Span] = []
    for frame in frames:
        if spans and spans[-1].end == frame.span.start:
            spans[-1] = Span(spans[-1].start, spans[-1].size + frame.span.size)
        else:
            spans.append(frame.span)
    first = frames[0]
    info = first.span.size if _info_at(first) else 0
    return Mp3Audio(tuple(spans), len(frames) - bool(info), first.form.samples, _count(first), info)


def _info_at(frame: _Frame) -> int:
    """Offset in a frame of the header that counts the others, or 0."""
    head = frame.head
    if frame.form.key[1] != 3 or not (b"Xing" in head or b"Info" in head or b"VBRI" in head):
        return 0  # most frames, at once
    return next((at for at in INFO_AT if head.startswith(INFO_NAMES, at)), 0)


def _count(frame: _Frame) -> int | None:
    """Number of frames that the first one declares, or None."""
    place = _info_at(frame)
    content = frame.head[place:]
    # A frame may be too small for the count that its header announces.
    if not place or content.startswith(b"VBRI") or len(content) < 12 or not content[7] & 1:
        return None
    return int.from_bytes(content[8:12], "big")


class _Walk:
    """Frames of a stream in order.

    Attributes:
        lost: count of lost bytes, see `Mp3Walk`.
        cut_off: whether the file ends within the last frame.
    """

    def __init__(self, file: BinaryIO, span: Span) -> None:
        self._file, self._span, self._start = file, span, span.start
        self._buffer, self._base = b"", span.start
        self._free: dict[tuple[int, int, int, bool], int] = {}
        self.lost = 0
        self.cut_off = False

    def __iter__(self) -> Iterator[_Frame]:
        place, end = self._span.start, self._span.end
        key: tuple[int, int, int, bool] | None = None
        junk = 0
        while place + 4 <= end:
            form = self._form(place)
            if form is None or (form.key != key and not self._sure(place, form)):
                after = self._after_tag(place) or self._resync(place + 1)
                if not self._tag(place):
                    junk += after - place
                elif place == self._start:
                    self._start = after
                place = after
                continue
            if place + form.size > end:
                self.cut_off = form.key == key
                break
            if key is not None and junk > MOST_BETWEEN:
                self.lost = max(self.lost, junk)
            key, junk = form.key, 0
            yield _Frame(Span(place, form.size), form, self._at(place, min(64, form.size)))
            place += form.size
        if key is not None and junk > MOST_AFTER:
            self.lost = max(self.lost, junk)

    def _form(self, place: int) -> _Form | None:
        form = _parse(self._at(place, 4))
        if form is None or form.size:
            return form
        size = self._free.get(form.key) or self._free_size(place, form)
        return form._replace(size=size + form.padding) if size else None

    def _free_size(self, place: int, form: _Form) -> int:
        """Size, without padding, of frames whose header does not say it; 0 if not found."""
        content = self._at(place, 1 << 13)
        for match in re.finditer(re.escape(content[:2]), content[4:]):
            other = _parse(content[4 + match.start() : 8 + match.start()])
            if other is not None and other.size == 0 and other.key == form.key:
                self._free[form.key] = 4 + match.start() - form.padding
                return self._free[form.key]
        return 0

    def _sure(self, place: int, form: _Form) -> bool:
        """Check that `SURE` frames of one kind follow one another.

        A short stream has fewer, but begins where the file does. A frame with a count is enough.
        """
        key, short = form.key, place == self._start
        if _info_at(_Frame(Span(place, form.size), form, self._at(place, 64))):
            return True
        for _ in range(SURE):
            if place + form.size >= self._span.end or self._tag(place):
                return short
            found = self._form(place)
            if found is None or found.key != key:
                return False
            form = found
            place += form.size
        return True

    def _resync(self, place: int) -> int:
        """The next place that may be a header, or a tag."""
        content = self._at(place, PIECE // 2)
        match = re.search(rb"\xff[\xe0-\xff]|ID3|TAG|APETAGEX", content)
        return place + (match.start() if match else max(1, len(content) - 8))

    def _tag(self, place: int) -> bool:
        return self._after_tag(place) is not None

    def _after_tag(self, place: int) -> int | None:
        """Offset after a tag that begins here: ID3v1, ID3v2, APE."""
        head = self._at(place, 32)
        if head.startswith(b"ID3") and len(head) >= 10:
            return place + id3_size(head)
        if head.startswith(b"TAG+"):
            return place + 227
        if head.startswith(b"TAG"):
            return place + 128
        if head.startswith(b"APETAGEX") and len(head) == 32:
            is_header = head[23] & 0x20
            return place + 32 + (int.from_bytes(head[12:16], "little") if is_header else 0)
        return None

    def _at(self, place: int, count: int) -> bytes:
        """Bytes of the stream, fewer at its end."""
        count = min(count, self._span.end - place)
        offset = place - self._base
        if offset < 0 or offset + count > len(self._buffer):
            self._file.seek(place)
            self._buffer, self._base = self._file.read(PIECE), place
            offset = 0
        return self._buffer[offset : offset + max(count, 0)]


def id3_size(head: bytes) -> int:
    """Size of an ID3v2 tag in bytes, from its first ten: a number of four times seven bits."""
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if head[5] & 0x10 else 0)


@lru_cache(maxsize=4096)
def _parse(head: bytes) -> _Form | None:
    """The header of a frame, or None."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version = {0: 4, 2: 2, 3: 1}.get(head[1] >> 3 & 3)  # MPEG 2.5, 2, 1
    layer, bitrate, rate = 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version is None or layer == 4 or bitrate == 15 or rate == 3 or head[3] & 3 == 2:
        return None
    hertz, padding = RATES[rate] // version, head[2] >> 1 & 1
    samples = 384 if layer == 1 else 576 if layer == 3 and version > 1 else 1152
    key = (version, layer, hertz, head[3] >> 6 == 3)
    slot = 4 if layer == 1 else 1
    if bitrate == 0:
        return _Form(0, samples, key, padding * slot)
    kbps = KBPS[min(version, 2), layer][bitrate - 1]
    size = (samples // 8 * 1000 * kbps // hertz // slot + padding) * slot
    return _Form(size, samples, key, padding * slot)


def is_mp3(file: BinaryIO, span: Span) -> bool:
    """Check that a stream of frames begins near the beginning, maybe after something else."""
    walk = _Walk(file, Span(span.start, min(span.size, MOST_BEFORE + PIECE)))
    first = next(iter(walk), None)
    return first is not None and first.span.start <= span.start + MOST_BEFORE
