r"""File names that are not UTF-8.

A file name on Linux is bytes. Python holds those that are no UTF-8 as lone surrogates
(`surrogateescape`), which neither UTF-8 nor JSON can hold. Three spellings, one for each use:

- text on standard output: the bytes themselves, as `ls` writes them into a pipe;
- JSON and descriptions: `\xe9` for each such byte, which every parser reads;
- manifests: Python's own surrogate as a JSON escape, `"\udce9"`, so that the file is found again.
"""

from __future__ import annotations

import json
import re
from typing import Any

FOREIGN_BYTE = re.compile("[\udc80-\udcff]")
"""A byte of a file name that is not UTF-8, as Python holds it."""


LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""A character that no encoding can hold: such a byte, or half of a pair from a damaged list."""


def marked(text: str) -> str:
    r"""Write each byte that is not UTF-8 as `\xe9`, so that the text can be encoded."""
    return LONE_SURROGATE.sub(lambda match: _mark(match.group()), text)


def _mark(surrogate: str) -> str:
    number = ord(surrogate)
    byte = FOREIGN_BYTE.match(surrogate)
    return f"\\x{number - 0xDC00:02x}" if byte else f"\\u{number:04x}"


def json_text(document: Any) -> str:
    """Encode a document in one line of JSON that every parser reads.

    Args:
        document: structs, lists, dictionaries, strings and numbers.
    """
    import msgspec  # not at the top: `ds2deploy --help` has no need of it

    try:
        return msgspec.json.encode(document).decode()
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(document)
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
        return LONE_SURROGATE.sub(lambda match: "\\" + _mark(match.group()), text)


def manifest_line(document: Any) -> str:
    """Encode a document in one line of JSON that keeps the bytes of names for Python's `json`."""
    text = json.dumps(document, ensure_ascii=False)
    return FOREIGN_BYTE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
