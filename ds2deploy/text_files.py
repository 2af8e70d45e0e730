"""Text files as people have them: UTF-8 with or without a byte order mark, UTF-16 with one."""

from __future__ import annotations

import codecs
from pathlib import Path

from ds2deploy.runtimes.errors import ManifestError, system_reason

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, expected: str, names: bool = False) -> str:
    """Read a text file; the byte order mark is not part of the text.

    Args:
        path: UTF-8; or UTF-16 with its mark, as PowerShell writes it.
        expected: content of the file, for errors.
        names: the text holds file names, which may be any bytes: decode them as Python does.

    Raises:
        ManifestError: the file cannot be read, or is no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = system_reason(error)
        raise ManifestError(f"{path}: cannot be read ({reason}); expected {expected}") from None
    try:
        return decode_text(content, names)
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: not UTF-8 text; expected {expected}") from None


def text_lines(text: str) -> list[str]:
    """Split a text at the ends of its lines: LF or CR LF, or CR alone in a text without LF.

    `str.splitlines` also splits at U+2028, U+0085, form feeds and others, which stand inside
    sentences: half of a transcript would become a line of its own.
    """
    return [line.rstrip("\r") for line in text.split("\n" if "\n" in text else "\r")]


def decode_text(content: bytes, names: bool = False) -> str:
    """Decode text, see `read_text`.

    Raises:
        UnicodeDecodeError: it is no text.
    """
    if content.startswith(UTF_16):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        if not names or b"\0" in content:
            raise
        return content.decode("utf-8-sig", "surrogateescape")
