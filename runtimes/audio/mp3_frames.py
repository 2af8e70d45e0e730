"""Frames of MPEG audio (MP3, and layers 1 and 2), and the tags between them.

ISO/IEC 11172-3 and 13818-3; MPEG-2.5 is Fraunhofer's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

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

INFO_NAMES = (b"Xing", b"Info", b"VBRI")
"""Beginnings of the header that counts the frames; it takes the place of the first one's sound."""

INFO_AT = (13, 15, 21, 23, 36, 38)
"""Offsets of that header in a frame: after side information, which depends on the version and the
number of channels, and after a checksum."""


Key = tuple[int, int, int, bool]
"""Version, layer, sample rate in Hz and mono: the same in all frames of a recording."""


class FrameHeader(NamedTuple):
    """Content of a frame's header of four bytes; its size is 0 in free format."""

    size: int
    samples: int
    key: Key
    padding: int


class Frame(NamedTuple):
    """Place, header and first 64 bytes of a frame."""

    span: Span
    header: FrameHeader
    begin: bytes

    @property
    def info_at(self) -> int:
        """Offset of the header that counts the other frames, or 0."""
        begin = self.begin
        if self.header.key[1] != 3 or not (
            b"Xing" in begin or b"Info" in begin or b"VBRI" in begin
        ):
            return 0  # most frames, at once
        return next((at for at in INFO_AT if begin.startswith(INFO_NAMES, at)), 0)

    @property
    def declared(self) -> int | None:
        """Number of frames that this one declares, or None."""
        place = self.info_at
        info = self.begin[place:]
        # A frame may be too small for the count that its header announces.
        if not place or info.startswith(b"VBRI") or len(info) < 12 or not info[7] & 1:
            return None
        return int.from_bytes(info[8:12], "big")


@lru_cache(maxsize=4096)
def parse_header(head: bytes) -> FrameHeader | None:
    """Read the header of a frame; None where the bytes are no header."""
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
        return FrameHeader(0, samples, key, padding * slot)
    kbps = KBPS[min(version, 2), layer][bitrate - 1]
    size = (samples // 8 * 1000 * kbps // hertz // slot + padding) * slot
    return FrameHeader(size, samples, key, padding * slot)


def tag_size(head: bytes) -> int:
    """Size of the tag (ID3v1, ID3v2, APE) that begins with these 32 bytes; 0 where none does."""
    if head.startswith(b"ID3") and len(head) >= 10:
        return id3_size(head)
    if head.startswith(b"TAG+"):
        return 227
    if head.startswith(b"TAG"):
        return 128
    if head.startswith(b"APETAGEX") and len(head) == 32:
        is_header = head[23] & 0x20
        return 32 + (int.from_bytes(head[12:16], "little") if is_header else 0)
    return 0


def id3_size(head: bytes) -> int:
    """Size of an ID3v2 tag in bytes, from its first ten: a number of four times seven bits."""
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if head[5] & 0x10 else 0)
