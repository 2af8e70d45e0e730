"""Digests of files, and files that appear whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ds2deploy.runtimes.whole_file import WholeFiles as WholeFiles
from ds2deploy.runtimes.whole_file import whole_file as whole_file


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
