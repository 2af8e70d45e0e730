"""Utterance of a source: recording, transcript, and the error that rejects it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ds2deploy.runtimes.errors import Ds2Error, ManifestError, MissingFileError
from ds2deploy.text_files import read_text


class Utterance(NamedTuple):
    """Recording, or a part of one, with its transcript.

    Attributes:
        audio: file of the recording.
        text: transcript.
        speaker: name of the speaker; empty if unknown.
        split: set that the utterance belongs to.
        start_s: start in the file, in seconds.
        duration_s: duration, in seconds; None means the rest of the file.
        error: error that rejects the utterance, such as a missing transcript; None if usable.
        unreadable: True if the error is caused by the recording or its folder, not the transcript.
        unknown_part: part of the corpus whose name contains no set, so that `split` is `train`;
            empty otherwise.
    """

    audio: Path
    text: str
    speaker: str = ""
    split: str = "train"
    start_s: float = 0.0
    duration_s: float | None = None
    error: Ds2Error | None = None
    unreadable: bool = False
    unknown_part: str = ""


def with_transcript(audio: Path, text: Path, speaker: str = "", form: str = "") -> Utterance:
    """Make the utterance of a recording whose transcript is in a separate file.

    Args:
        audio: file of the recording.
        text: file of the transcript.
        speaker: name of the speaker; empty if unknown.
        form: form of the list that names both, added to the error of a missing transcript.
    """
    try:
        return Utterance(audio, _read_transcript(text, audio, form), speaker)
    except (MissingFileError, ManifestError) as error:
        return Utterance(audio, "", speaker, error=error)


def _read_transcript(path: Path, audio: Path, form: str) -> str:
    expected = f"the transcript of {audio}"
    try:
        there = path.is_file()
    except OSError:  # `read_text` gives the reason
        there = True
    if not there:
        raise MissingFileError(f"{path}: no such file; expected {expected}{form}")
    text = " ".join(read_text(path, expected).split())
    if not text:
        raise ManifestError(f"{path}: empty; expected {expected}")
    return text
