"""Formats that libsndfile does not decode, known by their first bytes."""

from __future__ import annotations

MAGICS = {
    b"\x1aE\xdf\xa3": "WebM or Matroska",
    b"\x30\x26\xb2\x75": "WMA",
    b"#!AMR": "AMR",
    b"FWS": "Flash", b"FLV": "Flash",
}  # fmt: skip
"""First bytes, and the name of the format."""

FRAME_PAIR = 1 << 14
"""Bytes that hold the first two frames of any AAC or MP3 stream."""

ADTS_HEADER = 7
"""Bytes of the header of an AAC frame, at least."""


def foreign_format(head: bytes) -> str | None:
    """Name the format of a file that must be converted first; None for all others.

    Args:
        head: the first bytes, 12 or more; AAC is known by the second of its frames.
    """
    if head[4:8] == b"ftyp":
        return "MP4 or M4A"
    if _is_aac(head):
        return "AAC"
    return next((name for magic, name in MAGICS.items() if head.startswith(magic)), None)


def conversion(path: str) -> str:
    """Give the command that converts a recording to a format that is read."""
    return f"ffmpeg -i {path} {path.rpartition('.')[0] or path}.wav"


def _is_aac(head: bytes) -> bool:
    """Look for two AAC frames in ADTS at the beginning (ISO/IEC 13818-7, section 6.2)."""
    if not _is_adts_header(head):
        return False
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size >= ADTS_HEADER and _is_adts_header(head[size:])


def _is_adts_header(head: bytes) -> bool:
    return len(head) >= ADTS_HEADER and head[0] == 0xFF and head[1] & 0xF6 == 0xF0
