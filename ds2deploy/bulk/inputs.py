"""Inputs of a bulk transcription: recordings from a folder, a list or a manifest, read lazily."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from ds2deploy.data.listing import list_files
from ds2deploy.runtimes.audio.formats import READ_SUFFIXES
from ds2deploy.runtimes.audio.loading import load_part, read_blocks
from ds2deploy.runtimes.audio.samples import convert_audio
from ds2deploy.runtimes.errors import (
    DECODING_ERRORS,
    AudioError,
    ManifestError,
    MissingFileError,
    require,
    system_reason,
)
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.preparation import AudioInput

PIECE = 1 << 20
"""Number of bytes that are hashed or copied at a time."""


class Input(msgspec.Struct, frozen=True, array_like=True):
    """A recording, or a part of one.

    Attributes:
        audio: path as written in the source, or a URL that fsspec can open.
        start_s: start of the part, in seconds.
        duration_s: duration of the part, in seconds; None extends it to the end.
    """

    audio: str
    start_s: float = 0.0
    duration_s: float | None = None


def read_inputs(source: Path) -> Iterator[Input]:
    """List the inputs of a source in its order, without opening recordings.

    Args:
        source: folder of recordings; text file with a path or URL on each line; or a manifest
            (`.jsonl`, `.jsonl.gz`) of lhotse's cuts or recordings, or of objects with `audio` or
            `audio_filepath`, and `start` or `offset`, and `duration`.

    Raises:
        MissingFileError: the file or folder does not exist.
        ManifestError: a line is invalid; the message names it.
    """
    if source.is_dir():
        found = (path for path in list_files(source).files if path.suffix.lower() in READ_SUFFIXES)
        yield from (Input(os.fspath(path)) for path in found)
    elif not source.exists():
        raise MissingFileError(
            f"{source}: no such file; expected a folder, a list of paths, or a manifest"
        )
    else:
        is_manifest = source.name.lower().endswith((".jsonl", ".jsonl.gz"))
        for number, line in _lines(source):
            yield _of_manifest(line, source, number) if is_manifest else Input(line)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    opened: Any = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rb") as file:
            text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="\n")
            for number, line in enumerate(text, 1):
                if line.strip():
                    yield number, line.strip()
    except (OSError, EOFError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else "truncated"
        raise ManifestError(f"{path}: cannot be read ({reason}); copy it again") from None


def _of_manifest(line: str, source: Path, number: int) -> Input:
    try:
        entry = msgspec.json.decode(line)
        if "recording" in entry:  # a cut of lhotse
            audio = entry["recording"]["sources"][0]["source"]
            whole = entry["recording"].get("duration")
            start_s, part_s = float(entry.get("start", 0)), float(entry["duration"])
            is_whole = start_s == 0 and part_s == whole
            return Input(str(audio), start_s, None if is_whole else part_s)
        if "sources" in entry:  # a recording of lhotse
            return Input(str(entry["sources"][0]["source"]))
        audio = entry.get("audio") or entry["audio_filepath"]
        start_s = float(entry.get("start", entry.get("offset", 0.0)))
        is_part = ("offset" in entry or "start" in entry) and entry.get("duration") is not None
        return Input(str(audio), start_s, float(entry["duration"]) if is_part else None)
    except (*DECODING_ERRORS, LookupError, TypeError, AttributeError) as error:
        raise ManifestError(
            f"{source}: line {number}: not a recording ({type(error).__name__}); expected a cut or "
            "recording of lhotse, or an object with audio and, for a part, start and duration"
        ) from None


class Opened:
    """Input that is being read.

    Args:
        item: the input.
        sample_rate: sample rate of the model, in Hz.

    Attributes:
        sha256: hash of the file; empty until the file is opened.
    """

    def __init__(self, item: Input, sample_rate: int) -> None:
        self._item, self._rate = item, sample_rate
        self.sha256 = ""

    def source(self) -> AudioInput:
        """Return the audio, which is opened and hashed on first use."""
        return AudioInput(self._item.audio, self._pieces())

    def _pieces(self) -> Iterator[FloatArray]:
        with _local(self._item.audio) as (file, self.sha256):
            if self._item.start_s == 0 and self._item.duration_s is None:
                yield from read_blocks(file, self._rate)
                return
            duration_s = 1e9 if self._item.duration_s is None else self._item.duration_s
            samples, rate = load_part(file, self._item.start_s, duration_s)
            if not np.size(samples):
                raise AudioError(
                    f"{self._item.audio}: ends before {self._item.start_s:g} s, where its part "
                    "starts; correct the manifest"
                )
            yield convert_audio(samples, rate, self._rate, self._item.audio)


@contextmanager
def _local(audio: str) -> Iterator[tuple[Any, str]]:
    """Open and hash a recording; the content of a URL is copied to a temporary file.

    Raises:
        MissingFileError: the recording does not exist.
        AudioError: it cannot be read.
    """
    digest = hashlib.sha256()
    if "://" not in audio:
        path = Path(audio)
        if not path.is_file():
            raise MissingFileError(f"{audio}: no such file; copy it, or correct the list")
        with path.open("rb") as file:
            _copy(file, digest, None)
        yield path, digest.hexdigest()
        return
    require("fsspec", "bulk")
    import fsspec

    with tempfile.TemporaryFile() as local:
        try:
            with fsspec.open(audio, "rb") as remote:
                _copy(remote, digest, local)
        except FileNotFoundError:
            raise MissingFileError(f"{audio}: no such file; copy it, or correct the list") from None
        except Exception as error:  # each file system of fsspec raises its own classes
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise AudioError(f"{audio}: cannot be read ({reason}); retry: --retry-errors") from None
        local.seek(0)
        yield local, digest.hexdigest()


def _copy(file: BinaryIO, digest: Any, to: BinaryIO | None) -> None:
    while piece := file.read(PIECE):
        digest.update(piece)
        if to is not None:
            to.write(piece)


def file_facts(audio: str) -> tuple[int, int]:
    """Read the size and modification time of a local file, to detect changes.

    Returns:
        Size in bytes and time in nanoseconds; (-1, 0) for a missing file, (-2, 0) for a URL.
    """
    if "://" in audio:
        return -2, 0
    try:
        facts = Path(audio).stat()
    except OSError:
        return -1, 0
    return facts.st_size, facts.st_mtime_ns
