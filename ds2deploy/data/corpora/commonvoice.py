"""Reader of one language of Common Voice: train.tsv, dev.tsv, test.tsv and clips/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ds2deploy.data.corpora.transcript_list import (
    TEST,
    TRAIN,
    VALID,
    Lines,
    listed_utterance,
    read_lists,
)
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.errors import ManifestError

TABLES = {"train.tsv": TRAIN, "dev.tsv": VALID, "test.tsv": TEST}
"""Tables of validated clips."""

COLUMNS = ("client_id", "path", "sentence")
"""Required columns; there may be others, which differ between releases."""

MOST_CHARACTERS = 10_000
"""Maximum number of characters of a field; a clip lasts some seconds."""


def read_commonvoice(folder: Path) -> Iterator[Utterance]:
    """Read one language of Common Voice."""
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    yield from read_lists(tables, _read_table)


def _read_table(table: Path, lines: Lines) -> Iterator[Utterance]:
    # Fields are not quoted: quotation marks are part of the sentences, and often unmatched.
    header = lines[0][1].split("\t") if lines else []
    if not set(COLUMNS) <= set(header):
        raise ManifestError(
            f"{table}: expected the columns {', '.join(COLUMNS)}, with tabs between them; unpack "
            "it again"
        )
    for place, line in lines[1:]:
        fields = line.split("\t")
        row = dict(zip(header, fields, strict=False))
        speaker, name, text = (row.get(column, "") for column in COLUMNS)
        if (
            error := _row_error(place, len(header), len(fields), max(len(name), len(text)))
        ) is None:
            audio = table.parent / "clips" / name
            yield listed_utterance(place, audio, text, speaker, TABLES[table.name])
        else:
            yield Utterance(table, "", error=error)


def _row_error(place: str, columns: int, fields: int, longest: int) -> ManifestError | None:
    """Reject a row with a wrong number of fields or an overlong field."""
    if fields != columns:
        found = f"{fields} fields, but the header has {columns}"
    elif longest > MOST_CHARACTERS:
        found = f"a field of {longest:,} characters, too many for a clip"
    else:
        return None
    return ManifestError(f"{place}: {found}; correct it, or unpack the table again")
