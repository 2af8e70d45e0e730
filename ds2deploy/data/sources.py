"""Where utterances come from: folders of recordings, and deepspeech.pytorch's manifests."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ds2deploy.data.listing import is_file, list_files, looks_like_sound, sound_fault
from ds2deploy.runtimes.errors import (
    AudioError,
    Ds2Error,
    ManifestError,
    MissingFileError,
    system_reason,
)
from ds2deploy.text_files import read_text

FSDD_TEST_INDICES = range(5)
"""Recordings 0 to 4 of every digit and speaker are that data set's own test set."""

FSDD_VALID_INDICES = range(45, 50)
"""Recordings that training does not see either, for choosing the best checkpoint."""


class Utterance(NamedTuple):
    """A recording, or a part of one, and what is said in it.

    Attributes:
        audio: its file.
        text: what is said.
        speaker: who says it; empty where nobody knows.
        split: the set that it belongs to.
        start_s: where in the file it begins, in seconds.
        duration_s: how long it is; None for all that follows.
        fault: what is wrong with it already, such as a transcript that is not there.
        unreadable: whether the fault is in the recording or its folder, not in the transcript.
    """

    audio: Path
    text: str
    speaker: str = ""
    split: str = "train"
    start_s: float = 0.0
    duration_s: float | None = None
    fault: Ds2Error | None = None
    unreadable: bool = False


def read_folder(folder: Path) -> Iterator[Utterance]:
    """Recordings at any depth, each with its transcript in a .txt beside it.

    Everything that libsndfile reads, whatever its name; what looks like sound and is not, and
    folders that cannot be listed, come with a fault.
    """
    listing = list_files(folder)
    for error in listing.faults:
        yield Utterance(folder, "", fault=error, unreadable=True)
    for path in filter(looks_like_sound, listing.files):
        if (fault := sound_fault(path)) is not None:
            yield Utterance(path, "", path.parent.name, fault=fault, unreadable=True)
        else:
            yield with_transcript(path, _text_beside(path), path.parent.name)


def _text_beside(audio: Path) -> Path:
    """The transcript of a recording; cameras and recorders write upper-case names."""
    path = audio.with_suffix(".txt")
    capitals = audio.with_suffix(".TXT")
    return capitals if not is_file(path) and is_file(capitals) else path


def read_fsdd(folder: Path) -> Iterator[Utterance]:
    """The Free Spoken Digit Dataset: everything is in the names of the files."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".wav":
            continue
        match = re.fullmatch(r"([0-9])_([a-z]+)_([0-9]+)", path.stem)
        if match is None:
            error = ManifestError(f"{path}: expected a name such as 7_jackson_32.wav")
            yield Utterance(path, "", fault=error)
            continue
        digit, speaker_name, index = match.groups()
        split = "test" if int(index) in FSDD_TEST_INDICES else "train"
        split = "valid" if int(index) in FSDD_VALID_INDICES else split
        yield Utterance(path, DIGITS[int(digit)], speaker_name, split)


def read_deepspeech_pytorch(manifest: Path) -> Iterator[Utterance]:
    """deepspeech.pytorch's manifests: JSON of its version 3, CSV of its version 2."""
    is_json = manifest.suffix.lower() == ".json"
    for pair in _json_pairs(manifest) if is_json else _csv_pairs(manifest):
        if isinstance(pair, Ds2Error):
            yield Utterance(manifest, "", fault=pair)
            continue
        audio, text = pair
        try:
            there = audio.is_file()
        except OSError as error:  # in a folder that is locked, or a name too long to be one
            reason = system_reason(error)
            fault: Ds2Error = AudioError(
                f"{audio}: cannot be read ({reason}), but {manifest} lists it; make it readable"
            )
            yield Utterance(audio, "", fault=fault, unreadable=True)
            continue
        if there:
            yield with_transcript(audio, text)
        else:
            fault = MissingFileError(f"{audio}: no such file, but {manifest} lists it")
            yield Utterance(audio, "", fault=fault, unreadable=True)


def _json_pairs(manifest: Path) -> Iterator[tuple[Path, Path] | Ds2Error]:
    """deepspeech.pytorch 3: a root and, relative to it, audio and transcript of each sample."""
    expected = "expected JSON with root_path and samples, each with wav_path and transcript_path"
    text = read_text(manifest, expected.removeprefix("expected "), names=True)
    try:
        document: Any = json.loads(text)
        root, samples = manifest.parent / document["root_path"], list(document["samples"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:120]
        raise ManifestError(f"{manifest}: {expected} ({reason})") from None
    for number, sample in enumerate(samples, start=1):
        try:
            yield root / sample["wav_path"], root / sample["transcript_path"]
        except (KeyError, TypeError):
            yield ManifestError(f"{manifest}: sample {number}: {expected}")


def _csv_pairs(manifest: Path) -> Iterator[tuple[Path, Path] | Ds2Error]:
    """deepspeech.pytorch 2: a line per utterance, audio path and transcript path."""
    lines = read_text(manifest, "audio,transcript lines", names=True)
    rows = csv.reader(io.StringIO(lines, newline=""))
    try:
        for row in rows:
            if not any(field.strip() for field in row):
                continue
            if len(row) == 2:
                yield manifest.parent / row[0].strip(), manifest.parent / row[1].strip()
                continue
            yield ManifestError(
                f"{manifest}: line {rows.line_num} has {len(row)} fields; expected "
                "audio,transcript paths"
            )
    except csv.Error as error:
        raise ManifestError(
            f"{manifest}: line {rows.line_num} is no CSV ({error}); expected audio,transcript lines"
        ) from None


def with_transcript(audio: Path, text: Path, speaker: str = "") -> Utterance:
    """A recording whose transcript is a file of its own; what is wrong with that is its fault."""
    try:
        return Utterance(audio, _read_transcript(text, audio), speaker)
    except (MissingFileError, ManifestError) as error:
        return Utterance(audio, "", speaker, fault=error)


def _read_transcript(path: Path, audio: Path) -> str:
    expected = f"the transcript of {audio}"
    try:
        there = path.is_file()
    except OSError:  # `read_text` says what is wrong with it
        there = True
    if not there:
        raise MissingFileError(f"{path}: no such file; expected {expected}")
    text = " ".join(read_text(path, expected).split())
    if not text:
        raise ManifestError(f"{path}: empty; expected {expected}")
    return text


DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
