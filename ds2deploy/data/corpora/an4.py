"""Reader of CMU AN4: etc/an4_train.transcription and an4_test.transcription, with .fileids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ds2deploy.data.corpora.transcript_list import (
    TEST,
    TRAIN,
    Lines,
    first_file,
    listed_utterance,
    read_lines,
    read_lists,
)
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.errors import ManifestError, MissingFileError


def read_an4(folder: Path) -> Iterator[Utterance]:
    """Read AN4."""
    etc = folder / "etc"
    there = [split for split in (TRAIN, TEST) if (etc / f"an4_{split}.transcription").is_file()]
    transcripts = [etc / f"an4_{split}.transcription" for split in there]
    yield from read_lists(transcripts, _read_set)


def _read_set(transcripts: Path, lines: Lines) -> Iterator[Utterance]:
    ids = transcripts.with_suffix(".fileids")
    if not ids.is_file():
        raise MissingFileError(
            f"{ids}: no such file, although {transcripts.name} exists; unpack the corpus again"
        )
    paths = read_lines(ids)
    if len(lines) != len(paths):
        raise ManifestError(
            f"{transcripts}: {len(lines)} lines, {ids.name} has {len(paths)}; unpack the corpus "
            "again"
        )
    folder, split = transcripts.parent.parent, transcripts.stem.removeprefix("an4_")
    for (place, line), (_, path) in zip(lines, paths, strict=True):
        yield _utterance(place, folder, line, path, split)


def _utterance(place: str, folder: Path, line: str, path: str, split: str) -> Utterance:
    """Join `<s> RUBOUT G M </s> (an253-fash-b)` and `an4_clstk/fash/an253-fash-b`."""
    audio = first_file([folder / "wav" / f"{path}{suffix}" for suffix in (".wav", ".sph")])
    text, _, name = line.rpartition("(")
    name = name.rstrip(") ")
    if name != Path(path).name:
        error = ManifestError(
            f"{place}: the transcript of {name!r}, where the .fileids file has {path!r}; unpack "
            "the corpus again"
        )
        return Utterance(audio, "", error=error)
    text = " ".join(word for word in text.split() if word not in ("<s>", "</s>"))
    return listed_utterance(place, audio, text, Path(path).parent.name, split)
