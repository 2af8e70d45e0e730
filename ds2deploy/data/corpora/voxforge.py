"""VoxForge: a folder for each speaker and visit, with wav/ or flac/ and etc/PROMPTS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ds2deploy.data.corpora.transcript_list import (
    Lines,
    first_file,
    listed_utterance,
    locked_folders,
    read_lists,
)
from ds2deploy.data.listing import list_files
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.errors import ManifestError


def read_voxforge(folder: Path) -> Iterator[Utterance]:
    """Read VoxForge."""
    below = list_files(folder)
    yield from locked_folders(below)
    listings = [path for path in below.files if path.parts[-2:] == ("etc", "PROMPTS")]
    if not listings and not below.errors:
        raise ManifestError(
            f"{folder}: holds no etc/PROMPTS; expected VoxForge as it is unpacked, a folder for "
            "each speaker"
        )
    yield from read_lists(listings, _read_visit)


def _read_visit(listing: Path, lines: Lines) -> Iterator[Utterance]:
    visit = listing.parent.parent
    speaker = visit.name.partition("-")[0]
    if speaker == "anonymous":  # each visit is somebody else
        speaker = visit.name
    for place, line in lines:
        name, _, text = line.partition(" ")
        stem = Path(name).name
        audio = first_file([visit / kind / f"{stem}.{kind}" for kind in ("wav", "flac")])
        yield listed_utterance(place, audio, text, speaker)
