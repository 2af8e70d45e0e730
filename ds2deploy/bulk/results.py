"""Folder of results: JSON lines in shards that stay valid when the process is killed."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from ds2deploy.bulk.done import DoneInputs
from ds2deploy.bulk.inputs import Input, file_facts
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import DECODING_ERRORS, ConfigError, Ds2Error
from ds2deploy.runtimes.files import whole_file
from ds2deploy.runtimes.session import Closing

SHARD_LINES = 10_000
"""Number of lines in a shard."""

HEADER = "bulk.json"
"""File with the facts that all lines share."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that all lines of a folder share.

    Attributes:
        format_version: version of this format.
        model_sha256: hash of the model file.
        decoder_sha256: hash of the decoder settings.
    """

    format_version: int
    model_sha256: str
    decoder_sha256: str


class Results(Closing):
    """Writer of one line per input, which also knows the inputs that already have a line.

    Each line is written by a single call, so that a killed process leaves a complete line or none.
    An incomplete last line (full disk, power cut) is removed when the folder is opened again.

    Args:
        folder: folder of the results; created if it does not exist.
        header: model and decoder.
        retry: also recompute inputs that failed.

    Raises:
        ConfigError: the folder contains transcripts of another model or decoder.
    """

    def __init__(self, folder: Path, header: Header, retry: bool = False) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        _check_header(folder / HEADER, header)
        self._done = DoneInputs()
        self._number, self._lines, self._file = 0, 0, -1
        self.errors: Counter[str] = Counter()
        for path in sorted(folder.glob("part-*.jsonl")):
            self._number = int(path.stem.removeprefix("part-"))
            self._lines = self._repair(path, retry)

    def missing(self, inputs: Iterable[Input]) -> Iterator[tuple[Input, bool]]:
        """Yield each input with True if it has no line yet; each line counts for one input."""
        for item in inputs:
            yield item, not self._done.take(item)

    def write(self, line: bytes) -> None:
        """Append one line made by `result_line`."""
        if self._lines >= SHARD_LINES:
            self._number, self._lines = self._number + 1, 0
            self.close()
        if self._file < 0:
            path = self._folder / f"part-{self._number:05}.jsonl"
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if os.write(self._file, line) != len(line):
            raise OSError(28, "the disk is full", str(self._folder))
        self._lines += 1

    def close(self) -> None:
        """Close the current shard; a later `write` opens it again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _repair(self, path: Path, retry: bool) -> int:
        """Drop broken lines and those whose file has changed; return the number of lines left."""
        kept, dropped = 0, False
        with path.open("rb") as file:
            for line in file:
                if (entry := _current(line, retry)) is not None:
                    kept += 1
                    self._done.add(_input_of(entry))
                    self.errors.update([entry["kind"]] if "error" in entry else [])
                else:
                    dropped = True
        if dropped:
            with (
                whole_file(path) as temporary,
                path.open("rb") as file,
                temporary.open("wb") as out,
            ):
                out.writelines(line for line in file if _current(line, retry) is not None)
        return kept


def _current(line: bytes, retry: bool) -> dict[str, Any] | None:
    """Decode a line; None for one that is broken, or to be made again."""
    try:
        entry: dict[str, Any] = msgspec.json.decode(line)
        item = _input_of(entry)
        facts = (entry["size"], entry["mtime_ns"])
        is_error = "error" in entry and bool(entry["kind"])
    except (*DECODING_ERRORS, LookupError, TypeError, AttributeError):
        return None
    if not line.endswith(b"\n") or (retry and is_error):
        return None
    return entry if facts == file_facts(item.audio) else None


def _input_of(entry: dict[str, Any]) -> Input:
    return Input(entry["audio"], entry.get("offset", 0.0), entry.get("length"))


def result_line(item: Input, result: Transcript | Ds2Error, sha256: str, header: Header) -> bytes:
    """Make the line of one input, with its transcript or its error.

    Args:
        item: the input.
        result: transcript or error of the input.
        sha256: hash of the input's file; empty if it could not be read.
        header: model and decoder.
    """
    size, mtime_ns = file_facts(item.audio)
    line: dict[str, Any] = {"audio": item.audio}
    if item.start_s or item.duration_s is not None:
        line |= {"offset": item.start_s, "length": item.duration_s}
    if isinstance(result, Transcript):
        line |= msgspec.to_builtins(result)
        line["score"] = round(result.score, 4)
    else:
        line |= {"error": str(result), "kind": type(result).__name__}
    if sha256:
        line["key"] = result_key(sha256, header)
    line |= {"size": size, "mtime_ns": mtime_ns}
    return _json(line) + b"\n"


def result_key(audio_sha256: str, header: Header) -> str:
    """Hash everything that a transcript depends on: audio, model and decoder."""
    parts = (audio_sha256, header.model_sha256, header.decoder_sha256)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _json(value: object) -> bytes:
    """Encode JSON, with the lone surrogates of names that are not UTF-8 escaped."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        import json

        return json.dumps(value, separators=(",", ":")).encode()


def _check_header(path: Path, header: Header) -> None:
    if not path.exists():
        with whole_file(path) as temporary:
            temporary.write_bytes(msgspec.json.encode(header) + b"\n")
        return
    try:
        known = msgspec.json.decode(path.read_bytes(), type=Header)
    except DECODING_ERRORS:
        raise ConfigError(f"{path}: damaged; choose another --out") from None
    if known != header:
        differs = "model" if known.model_sha256 != header.model_sha256 else "decoder"
        raise ConfigError(
            f"{path.parent}: contains transcripts of another {differs}; choose another --out"
        )
