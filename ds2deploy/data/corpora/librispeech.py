"""Reader of LibriSpeech, Mini LibriSpeech, or any tree of PART/SPEAKER/CHAPTER/*.trans.txt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ds2deploy.data.corpora.transcript_list import (
    folder_name,
    in_part,
    listed_utterance,
    locked_folders,
    read_lines,
    reject_unlisted,
)
from ds2deploy.data.listing import list_files
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.errors import ManifestError


def read_librispeech(folder: Path) -> Iterator[Utterance]:
    """Read LibriSpeech.

    The set of a part follows from its name, see `split_of`. A .flac without a line in the list
    beside it is rejected.
    """
    below = list_files(folder)
    yield from locked_folders(below)
    listings = [path for path in below.files if path.name.endswith(".trans.txt")]
    if not listings and not below.errors:
        return  # another layout
    listed = set()
    unread = set()
    for listing in listings:
        part = folder_name(listing.parent / "../..")  # above SPEAKER/CHAPTER
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
            speaker = name.partition("-")[0]
            yield in_part(part, listed_utterance(place, audio, text, speaker))
    for path in below.files:
        if path.suffix == ".flac" and path.parent not in unread:
            yield from reject_unlisted([path], listed, path.parent)
