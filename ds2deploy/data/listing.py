"""Files below a folder: links are followed, loops of them end, and every sound file is found."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from pathlib import Path
from typing import NamedTuple

from ds2deploy.runtimes.audio.formats import content_format, conversion, suffix_format
from ds2deploy.runtimes.errors import AudioError, Ds2Error, MissingFileError, system_reason

KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


class Listing(NamedTuple):
    """Everything below a folder.

    Attributes:
        files: paths of everything but folders, sorted.
        errors: one for each folder that cannot be listed.
    """

    files: list[Path]
    errors: list[Ds2Error]


def list_files(folder: Path) -> Listing:
    """Find all files at any depth, through links too; each folder is listed once."""
    files: list[Path] = []
    errors: list[Ds2Error] = []
    seen: set[tuple[int, int]] = set()
    waiting, links = [folder], deque[Path]()
    while waiting or links:
        # Links last, so that a folder goes by the name that it has without them.
        place = waiting.pop() if waiting else links.popleft()
        try:
            about = place.stat()
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(place) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = place / entry.name
                    if entry.is_symlink():
                        links.append(path) if _is_folder(path) else files.append(path)
                    else:
                        waiting.append(path) if entry.is_dir() else files.append(path)
        except OSError as error:
            reason = system_reason(error)
            errors.append(
                MissingFileError(
                    f"{place}: a folder that cannot be listed ({reason}); make it readable, or "
                    "take it out"
                )
            )
    return Listing(sorted(files), errors)


def sound_error(path: Path) -> Ds2Error | None:
    """Reject a file that looks like sound but is none that libsndfile reads.

    Args:
        path: file for which `looks_like_sound` is true.

    Returns:
        The error; None if only the header of the file can tell.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENOENT:
            return MissingFileError(
                f"{path}: links to a file that is not there; mend the link, or take it out"
            )
        reason = system_reason(error)
        return AudioError(f"{path}: cannot be read ({reason}); make it readable, or take it out")
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "no file")
        return AudioError(f"{path}: {kind}, not a recording; take it out")
    promised = suffix_format(path.name)
    if promised is None or promised.kind == "read" or _begins_like_sound(path):
        return None
    if promised.kind == "headerless":
        what = "audio without a header; give it one"
    else:
        what = f"{promised.name}, a format that libsndfile does not read; convert it"
    return AudioError(f"{path}: {what}, such as: {conversion(path.name)}")


def looks_like_sound(path: Path) -> bool:
    """Decide by the name of a file, or by how it begins, whether it should be a recording."""
    promised = suffix_format(path.name)
    if promised is None:
        return path.suffix.lower() != ".txt" and _begins_like_sound(path)
    return promised.kind == "read" or not _is_converted(path)


def _is_converted(path: Path) -> bool:
    """Find the same recording beside it, in a format that libsndfile reads."""
    return any(is_file(path.with_suffix(suffix)) for suffix in (".wav", ".flac", ".ogg", ".mp3"))


def is_file(path: Path) -> bool:
    """Look whether there is a file; in a folder that is locked, nobody can see one."""
    try:
        return path.is_file()
    except OSError:
        return False


def _begins_like_sound(path: Path) -> bool:
    try:
        if not is_file(path):  # opening a pipe would wait for whoever writes into it
            return False
        with path.open("rb") as file:
            found = content_format(file.read(16))
    except OSError:
        return False
    return found is not None and found.kind == "read"


def _is_folder(path: Path) -> bool:
    """Follow a link; one that leads to itself leads to no folder."""
    try:
        return path.is_dir()
    except OSError:
        return False
