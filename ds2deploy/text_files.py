"""Reading of text files: UTF-8 with or without a byte order mark, or UTF-16 with one."""

from __future__ import annotations

import codecs
from pathlib import Path

from ds2deploy.runtimes.errors import ManifestError, system_reason

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, expected: str, names: bool = False) -> str:
    """Read a text file, without its byte order mark.

    Args:
        path: path of a file in UTF-8, or in UTF-16 with a byte order mark, as PowerShell writes.
        expected: description of the expected content, for errors.
        names: True if the text contains file names, which may be any bytes and are decoded as
            Python decodes file names.

    Raises:
        ManifestError: the file cannot be read, or is not text.
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
    """Split a text into lines at LF or CR LF, or at CR in a text without LF.

    `str.splitlines` also splits at U+2028, U+0085, form feeds and others, which occur inside
    sentences; it would split some transcripts in two.
    """
    return [line.rstrip("\r") for line in text.split("\n" if "\n" in text else "\r")]


def decode_text(content: bytes, names: bool = False) -> str:
    """Decode text, see `read_text`.

    Raises:
        UnicodeDecodeError: the content is not text.
    """
    if content.startswith(UTF_16):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        if not names or b"\0" in content:
            raise
        return content.decode("utf-8-sig", "surrogateescape")
