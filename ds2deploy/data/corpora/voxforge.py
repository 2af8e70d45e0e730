"""Reader of VoxForge: a folder for each speaker and visit, with wav/ or flac/ and etc/PROMPTS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ds2deploy.data.corpora.transcript_list import (
    Lines,
    first_file,
    folder_name,
    listed_utterance,
    locked_folders,
    read_lists,
    reject_unlisted,
)
from ds2deploy.data.listing import list_files
from ds2deploy.data.utterance import Utterance

KINDS = ("wav", "flac")
"""Audio folders of a visit, with their suffixes; the first existing one is used."""


def read_voxforge(folder: Path) -> Iterator[Utterance]:
    """Read VoxForge; a recording without a line in the PROMPTS of its visit is rejected."""
    below = list_files(folder)
    yield from locked_folders(below)
    listings = [path for path in below.files if path.parts[-2:] == ("etc", "PROMPTS")]
    if not listings and not below.errors:
        return  # another layout
    recordings = defaultdict(list)
    for path in below.files:
        if path.parent.name in KINDS and path.suffix == f".{path.parent.name}":
            recordings[path.parent.parent].append(path)
    yield from read_lists(listings, lambda path, lines: _read_visit(path, lines, recordings))
    for visit in sorted(recordings.keys() - {listing.parent.parent for listing in listings}):
        yield from reject_unlisted(recordings[visit], (), visit / "etc" / "PROMPTS")


def _read_visit(
    listing: Path, lines: Lines, recordings: dict[Path, list[Path]]
) -> Iterator[Utterance]:
    visit = listing.parent.parent
    visit_name = folder_name(visit)
    speaker = visit_name.partition("-")[0]
    if speaker == "anonymous":  # every anonymous visit counts as another speaker
        speaker = visit_name
    listed = set()
    for place, line in lines:
        name, _, text = line.partition(" ")
        stem = Path(name).name
        named = [visit / kind / f"{stem}.{kind}" for kind in KINDS]
        listed.update(named)
        yield listed_utterance(place, first_file(named), text, speaker)
    yield from reject_unlisted(recordings.get(visit, ()), listed, listing)
