"""LibriSpeech, Mini LibriSpeech, or any tree of PART/SPEAKER/CHAPTER/*.trans.txt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ds2deploy.data.corpora.transcript_list import (
    listed_utterance,
    locked_folders,
    read_lines,
    split_of,
)
from ds2deploy.data.listing import list_files
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.errors import ManifestError, MissingFileError


def read_librispeech(folder: Path) -> Iterator[Utterance]:
    """Read LibriSpeech.

    Parts that begin with `dev` become `valid`, with `test`, `test`; all others `train`.
    """
    below = list_files(folder)
    yield from locked_folders(below)
    listings = [path for path in below.files if path.name.endswith(".trans.txt")]
    if not listings and not below.errors:
        raise ManifestError(
            f"{folder}: holds no *.trans.txt; expected LibriSpeech as it is unpacked, such as "
            "train-clean-100/19/198/19-198.trans.txt"
        )
    listed = set()
    unread = set()
    for listing in listings:
        split = split_of(listing.absolute().parts[-4])
        try:
            lines = read_lines(listing)
        except ManifestError as error:
            unread.add(listing.parent)
            yield Utterance(listing, "", error=error)
            continue
        for place, line in lines:
            name, _, text = line.partition(" ")
            audio = listing.parent / f"{name}.flac"
            listed.add(audio)
            yield listed_utterance(place, audio, text, name.partition("-")[0], split)
    for audio in below.files:
        if audio.suffix == ".flac" and audio not in listed and audio.parent not in unread:
            unlisted = MissingFileError(f"{audio}: no transcript of it in {audio.parent}")
            yield Utterance(audio, "", error=unlisted)
