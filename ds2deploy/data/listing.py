"""Listing of files below a folder, with links followed, and detection of sound files."""

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
    """Files below a folder.

    Attributes:
        files: sorted paths of everything except folders.
        errors: one error for each folder that cannot be listed.
    """

    files: list[Path]
    errors: list[Ds2Error]


def list_files(folder: Path) -> Listing:
    """Find all files at any depth, also through links; each folder is listed once."""
    files: list[Path] = []
    errors: list[Ds2Error] = []
    seen: set[tuple[int, int]] = set()
    waiting, links = [folder], deque[Path]()
    while waiting or links:
        # Follow links last, so that folders are listed by their real paths.
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
                    f"{place}: this folder cannot be listed ({reason}); make it readable, or "
                    "remove it"
                )
            )
    return Listing(sorted(files), errors)


def missing_recording(path: Path | str, source: Path | str, hint: str = "") -> MissingFileError:
    """Make the error of a recording that does not exist.

    Args:
        path: path of the recording.
        source: manifest or folder that lists it.
        hint: text at the end of the message.
    """
    return MissingFileError(
        f"{path}: no such file; copy it, or remove its entry from {source}{hint}"
    )


def unreadable(path: Path, error: OSError) -> AudioError:
    """Make the error of a recording that the system does not let this process read."""
    reason = system_reason(error)
    return AudioError(f"{path}: cannot be read ({reason}); make it readable, or remove it")


def sound_error(path: Path) -> Ds2Error | None:
    """Reject a sound file that libsndfile cannot read.

    Args:
        path: file for which `looks_like_sound` is true.

    Returns:
        The error; None if the file may be readable, which only its header shows.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENOENT:
            return MissingFileError(f"{path}: a link to a missing file; correct or remove it")
        return unreadable(path, error)
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "not a file")
        return AudioError(f"{path}: {kind}, not a recording; remove it")
    promised = suffix_format(path.name)
    if promised is None or promised.kind == "read" or _begins_like_sound(path):
        return None
    if promised.kind == "headerless":
        what = "audio without a header; give it one"
    else:
        what = f"{promised.name}, a format that libsndfile does not read; convert it"
    return AudioError(f"{path}: {what}, such as: {conversion(path.name)}")


def looks_like_sound(path: Path) -> bool:
    """Check the name and the first bytes of a file for signs of a recording."""
    promised = suffix_format(path.name)
    if promised is None:
        return path.suffix.lower() != ".txt" and _begins_like_sound(path)
    return promised.kind == "read" or not _is_converted(path)


def _is_converted(path: Path) -> bool:
    """Check for the same recording in the same folder, in a format that libsndfile reads."""
    return any(is_file(path.with_suffix(suffix)) for suffix in (".wav", ".flac", ".ogg", ".mp3"))


def is_file(path: Path) -> bool:
    """Check that a file exists; False if its folder may not be searched."""
    try:
        return path.is_file()
    except OSError:
        return False


def _begins_like_sound(path: Path) -> bool:
    try:
        if not is_file(path):  # opening a pipe would wait for a writer
            return False
        with path.open("rb") as file:
            found = content_format(file.read(16))
    except OSError:
        return False
    return found is not None and found.kind == "read"


def _is_folder(path: Path) -> bool:
    """Check that a path is a folder or a link to one; False for a link to itself."""
    try:
        return path.is_dir()
    except OSError:
        return False
