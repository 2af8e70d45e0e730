"""Reader of TED-LIUM 3 (legacy/PART/stm/*.stm, with talks in sph/), 2 (PART/stm/), or one PART."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ds2deploy.data.corpora.transcript_list import (
    Lines,
    folder_name,
    in_part,
    listed_utterance,
    read_lists,
    reject_unlisted,
)
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.errors import ManifestError

# The folder `data` next to `legacy` contains the same talks again.
PLACES = (
    "legacy/*/stm/*.stm",
    "*/stm/*.stm",
    "*/legacy/*/stm/*.stm",
    "*/*/stm/*.stm",
    "stm/*.stm",  # one part alone
)


def read_tedlium(folder: Path) -> Iterator[Utterance]:
    """Read TED-LIUM, or one part of it; a talk without a list is rejected."""
    listings = next(filter(None, (sorted(folder.glob(place)) for place in PLACES)), [])
    yield from read_lists(listings, _read_talk)
    for part in sorted({listing.parent.parent for listing in listings}):
        listed = {part / "sph" / f"{x.stem}.sph" for x in listings if x.parent.parent == part}
        talks = sorted(part.glob("sph/*.sph"))
        yield from reject_unlisted(talks, listed, part / "stm")


def _read_talk(listing: Path, lines: Lines) -> Iterator[Utterance]:
    part = folder_name(listing.parent.parent)
    audio = listing.parent.parent / "sph" / f"{listing.stem}.sph"
    for place, line in lines:
        fields = line.split(maxsplit=6)
        if len(fields) < 6 or not _is_number(fields[3]) or not _is_number(fields[4]):
            error = ManifestError(f"{place}: expected TALK CHANNEL SPEAKER START END LABEL TEXT")
            yield Utterance(audio, "", error=error)
            continue
        text = _without_marks(fields[6] if len(fields) > 6 else "")
        if text != "ignore_time_segment_in_scoring":  # a marker of the format, not an utterance
            start, end = float(fields[3]), float(fields[4])
            utterance = listed_utterance(
                place, audio, text, fields[2], start_s=start, duration_s=end - start
            )
            yield in_part(part, utterance)


def _without_marks(text: str) -> str:
    """Remove TED-LIUM's markup: `<unk>`, `{NOISE}`, `first(2)` and `it 's`."""
    text = re.sub(r"<[^>]*>|\{[^}]*\}|\([0-9]+\)", " ", text)
    return " ".join(re.sub(r" '(?=\w)", "'", text).split())


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]*)?", text) is not None
