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


def marked(text: str) -> str:
    r"""Write each byte that is not UTF-8 as `\xe9`, so that the text can be encoded."""
    return FOREIGN_BYTE.sub(lambda match: f"\\x{ord(match.group()) - 0xDC00:02x}", text)


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
        return FOREIGN_BYTE.sub(lambda match: f"\\\\x{ord(match.group()) - 0xDC00:02x}", text)


def manifest_line(document: Any) -> str:
    """Encode a document in one line of JSON that keeps the bytes of names for Python's `json`."""
    text = json.dumps(document, ensure_ascii=False)
    return FOREIGN_BYTE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
