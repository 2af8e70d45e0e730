"""Common Voice, the folder of one language: train.tsv, dev.tsv, test.tsv and clips/."""

from __future__ import annotations

import csv
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
"""Tables of the clips that somebody has validated."""


def read_commonvoice(folder: Path) -> Iterator[Utterance]:
    """Read a language of Common Voice."""
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if not tables:
        raise ManifestError(
            f"{folder}: holds none of {', '.join(TABLES)}; expected the folder of one language of "
            "Common Voice"
        )
    yield from read_lists(tables, _read_table)


def _read_table(table: Path, lines: Lines) -> Iterator[Utterance]:
    # Quotation marks are part of the sentences, and often stand alone.
    rows = csv.DictReader((line for _, line in lines), delimiter="\t", quoting=csv.QUOTE_NONE)
    if not {"path", "sentence", "client_id"} <= set(rows.fieldnames or ()):
        raise ManifestError(f"{table}: expected the columns client_id, path and sentence")
    for (place, _), row in zip(lines[1:], rows, strict=True):
        audio = table.parent / "clips" / (row["path"] or "")
        text, speaker = row["sentence"] or "", row["client_id"] or ""
        yield listed_utterance(place, audio, text, speaker, TABLES[table.name])
