"""Formats of recordings: their names, suffixes and first bytes, and what has to be converted."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal, NamedTuple


class AudioFormat(NamedTuple):
    """Row of the table `FORMATS`.

    Attributes:
        name: name of the format, in messages.
        suffixes: suffixes of its files, in lower case.
        beginnings: bytes that its files begin with, each with its offset.
        kind: "read" by libsndfile; "foreign", to be converted first; or "headerless", samples of
            which nothing says rate and coding.
    """

    name: str
    suffixes: tuple[str, ...]
    beginnings: tuple[tuple[int, bytes], ...] = ()
    kind: Literal["read", "foreign", "headerless"] = "read"


FORMATS = (
    AudioFormat("RIFX", (), ((0, b"RIFX"),)),
    AudioFormat("RF64", (".rf64",), ((0, b"RF64"),)),
    AudioFormat("WAV", (".wav", ".wave", ".bwf"), ((8, b"WAVE"),)),
    AudioFormat("W64", (".w64",), ((0, b"riff\x2e\x91\xcf\x11"),)),
    AudioFormat("FLAC", (".flac",), ((0, b"fLaC"),)),
    AudioFormat("Ogg", (".ogg", ".oga", ".opus"), ((0, b"OggS"),)),
    AudioFormat("MP3", (".mp3",), ((0, b"ID3"),)),
    AudioFormat("AIFF", (".aiff", ".aif", ".aifc"), ((8, b"AIFF"), (8, b"AIFC"))),
    AudioFormat("8SVX", (".svx",), ((8, b"8SVX"), (8, b"16SV"))),
    AudioFormat("AU", (".au", ".snd"), ((0, b".snd"), (0, b"dns."))),
    AudioFormat("CAF", (".caf",), ((0, b"caff"),)),
    AudioFormat("NIST SPHERE", (".sph", ".nist"), ((0, b"NIST_1A"),)),
    AudioFormat("VOC", (".voc",), ((0, b"Creative Voi"),)),
    AudioFormat("PAF", (".paf",), ((0, b" paf"), (0, b"fap "))),
    AudioFormat("PVF", (".pvf",), ((0, b"PVF1"),)),
    AudioFormat("AVR", (".avr",), ((0, b"2BIT"),)),
    AudioFormat("HTK", (".htk",)),
    AudioFormat("IRCAM", (".sf",)),
    AudioFormat("Psion WVE", (".wve",)),
    AudioFormat("GSM 06.10", (".gsm",)),
    AudioFormat("VOX ADPCM", (".vox",)),
    AudioFormat("raw samples", (".raw", ".pcm"), kind="headerless"),
    AudioFormat(
        "MP4 or M4A",
        (".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".3ga"),
        ((4, b"ftyp"),),
        "foreign",
    ),
    AudioFormat(
        "WebM or Matroska",
        (".webm", ".weba", ".mka", ".mkv"),
        ((0, b"\x1aE\xdf\xa3"),),
        "foreign",
    ),
    AudioFormat("WMA", (".wma",), ((0, b"\x30\x26\xb2\x75"),), "foreign"),
    AudioFormat("AMR", (".amr", ".awb"), ((0, b"#!AMR"),), "foreign"),
    AudioFormat("Flash", (), ((0, b"FWS"), (0, b"FLV")), "foreign"),
    AudioFormat("AAC", (".aac",), kind="foreign"),  # known by its frames
    AudioFormat("AC-3", (".ac3",), kind="foreign"),
    AudioFormat("Monkey's Audio", (".ape",), kind="foreign"),
    AudioFormat("DSD", (".dsf",), kind="foreign"),
    AudioFormat("Speex", (".spx",), kind="foreign"),
    AudioFormat("TTA", (".tta",), kind="foreign"),
    AudioFormat("WavPack", (".wv",), kind="foreign"),
    AudioFormat("MIDI sample dump", (".sds",), kind="foreign"),
)
"""Every format that is known, the first of two that begin alike first."""

BY_SUFFIX = {suffix: row for row in FORMATS for suffix in row.suffixes}
"""Formats by the suffixes of their files."""

READ_SUFFIXES = frozenset(suffix for suffix, row in BY_SUFFIX.items() if row.kind == "read")
"""Suffixes of formats that libsndfile reads."""

FRAME_PAIR = 1 << 14
"""Bytes that hold the first two frames of any AAC or MP3 stream."""

ADTS_HEADER = 7
"""Bytes of the header of an AAC frame, at least."""


def suffix_format(name: str) -> AudioFormat | None:
    """Look up the format that the suffix of a file promises; None where it promises no audio."""
    return BY_SUFFIX.get(PurePath(name).suffix.lower())


def content_format(head: bytes) -> AudioFormat | None:
    """Look up the format that a file begins like; None for those that begin in many ways.

    Args:
        head: the first bytes, 12 or more; AAC is known by the second of its frames.
    """
    if _is_aac(head):
        return BY_SUFFIX[".aac"]
    for row in FORMATS:
        if any(head.startswith(magic, offset) for offset, magic in row.beginnings):
            return row
    return None


def conversion(path: str) -> str:
    """Give the command that converts a recording to a format that is read."""
    form = suffix_format(path)
    coding = "-f s16le -ar 16000 " if form is not None and form.kind == "headerless" else ""
    return f"ffmpeg {coding}-i {path} {path.rpartition('.')[0] or path}.wav"


def _is_aac(head: bytes) -> bool:
    """Look for two AAC frames in ADTS at the beginning (ISO/IEC 13818-7, section 6.2)."""
    if not _is_adts_header(head):
        return False
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size >= ADTS_HEADER and _is_adts_header(head[size:])


def _is_adts_header(head: bytes) -> bool:
    return len(head) >= ADTS_HEADER and head[0] == 0xFF and head[1] & 0xF6 == 0xF0
