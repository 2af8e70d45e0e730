"""Reader of a folder of recordings at any depth, each with a .txt transcript beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ds2deploy.data.corpora.transcript_list import folder_name, locked_folders
from ds2deploy.data.listing import is_file, list_files, looks_like_sound, sound_error
from ds2deploy.data.utterance import Utterance, with_transcript


def read_folder(folder: Path) -> Iterator[Utterance]:
    """Read the recordings of a folder; the parent folder of a recording names its speaker.

    All files that libsndfile can read are used, whatever their names. Sound files that it cannot
    read, and folders that cannot be listed, are rejected.
    """
    listing = list_files(folder)
    yield from locked_folders(listing)
    for path in filter(looks_like_sound, listing.files):
        speaker = folder_name(path.parent)
        if (error := sound_error(path)) is not None:
            yield Utterance(path, "", speaker, error=error, unreadable=True)
        else:
            yield with_transcript(path, _text_beside(path), speaker)


def _text_beside(audio: Path) -> Path:
    """Find the transcript of a recording; its name may be upper case, as cameras write it."""
    path, capitals = audio.with_suffix(".txt"), audio.with_suffix(".TXT")
    return capitals if not is_file(path) and is_file(capitals) else path
