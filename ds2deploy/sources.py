"""Where utterances come from: folders of recordings, and deepspeech.pytorch's manifests."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ds2deploy.digits import DIGITS
from ds2deploy.runtimes.errors import Ds2Error, ManifestError, MissingFileError

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64"}

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
    """

    audio: Path
    text: str
    speaker: str = ""
    split: str = "train"
    start_s: float = 0.0
    duration_s: float | None = None
    fault: Ds2Error | None = None


def read_folder(folder: Path) -> Iterator[Utterance]:
    """Recordings at any depth, each with its transcript in a .txt beside it."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES:
            yield with_transcript(path, path.with_suffix(".txt"), path.parent.name)


def read_fsdd(folder: Path) -> Iterator[Utterance]:
    """The Free Spoken Digit Dataset: everything is in the names of the files."""
    for path in sorted(folder.glob("*.wav")):
        match = re.fullmatch(r"(\d)_([a-z]+)_(\d+)", path.stem)
        if match is None:
            raise ManifestError(f"{path}: expected a name such as 7_jackson_32.wav")
        digit, speaker_name, index = match.groups()
        split = "test" if int(index) in FSDD_TEST_INDICES else "train"
        split = "valid" if int(index) in FSDD_VALID_INDICES else split
        yield Utterance(path, DIGITS[int(digit)], speaker_name, split)


def read_deepspeech_pytorch(manifest: Path) -> Iterator[Utterance]:
    """deepspeech.pytorch's manifests: JSON of its version 3, CSV of its version 2."""
    pairs = _json_pairs(manifest) if manifest.suffix == ".json" else _csv_pairs(manifest)
    for audio, text in pairs:
        if audio.is_file():
            yield with_transcript(audio, text)
        else:
            error = MissingFileError(f"{audio}: no such file, but {manifest} lists it")
            yield Utterance(audio, "", fault=error)


def _json_pairs(manifest: Path) -> Iterator[tuple[Path, Path]]:
    """deepspeech.pytorch 3: a root and, relative to it, audio and transcript of each sample."""
    try:
        document: Any = msgspec.json.decode(manifest.read_bytes())
        root = manifest.parent / document["root_path"]
        samples = [(root / s["wav_path"], root / s["transcript_path"]) for s in document["samples"]]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise ManifestError(
            f"{manifest}: expected JSON with root_path and samples, each with wav_path and "
            f"transcript_path ({type(error).__name__}: {error})"
        ) from None
    yield from samples


def _csv_pairs(manifest: Path) -> Iterator[tuple[Path, Path]]:
    """deepspeech.pytorch 2: a line per utterance, audio path and transcript path."""
    try:
        rows = list(csv.reader(manifest.read_text(encoding="utf-8").splitlines()))
    except (UnicodeDecodeError, csv.Error):
        raise ManifestError(
            f"{manifest}: not a text file; expected audio,transcript lines"
        ) from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise ManifestError(
                f"{manifest}: line {number} has {len(row)} fields; expected audio,transcript paths"
            )
        yield manifest.parent / row[0].strip(), manifest.parent / row[1].strip()


def with_transcript(audio: Path, text: Path, speaker: str = "") -> Utterance:
    """A recording whose transcript is a file of its own; what is wrong with that is its fault."""
    try:
        return Utterance(audio, _read_transcript(text, audio), speaker)
    except (MissingFileError, ManifestError) as error:
        return Utterance(audio, "", speaker, fault=error)


def _read_transcript(path: Path, audio: Path) -> str:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected the transcript of {audio}")
    try:
        text = " ".join(path.read_text(encoding="utf-8").split())
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: not UTF-8 text; expected the transcript of {audio}") from None
    if not text:
        raise ManifestError(f"{path}: empty; expected the transcript of {audio}")
    return text
