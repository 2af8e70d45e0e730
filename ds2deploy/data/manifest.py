"""Reading and writing of manifests: lhotse cut manifests and those of deepspeech.pytorch."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.cut import Cut

from ds2deploy.data.cuts import audio_path, make_cut, transcript
from ds2deploy.data.deepspeech_manifest import read_deepspeech_pytorch
from ds2deploy.data.manifest_checks import Unusable, check_values, find_unusable
from ds2deploy.data.transcript_table import TABLE_SUFFIXES
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import FILE_ERRORS, ManifestError, missing_file
from ds2deploy.runtimes.files import manifest_line, whole_file
from ds2deploy.text_files import UTF_16


def read_manifest(path: str | Path) -> CutSet:
    """Open a manifest in which every utterance must be usable, such as that of a training.

    Args:
        path: lhotse cut manifest (`.jsonl`, `.jsonl.gz`), deepspeech.pytorch's JSON or CSV,
            or a table of recordings and transcripts (`.csv`, `.tsv`).

    Raises:
        MissingFileError: the manifest or a recording does not exist.
        AudioError: a recording is not audio.
        ManifestError: the file is not a manifest or is empty, or a transcript is missing.
    """
    cuts, unusable = read_usable(path)
    if unusable:
        raise unusable[0].error
    return cuts


def read_usable(path: str | Path) -> tuple[CutSet, list[Unusable]]:
    """Open a manifest, and separate usable from unusable utterances.

    Args:
        path: manifest in a format of `read_manifest`.

    Raises:
        MissingFileError: the manifest does not exist.
        ManifestError: the file is not a manifest, or is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file(path, "a manifest; make one: ds2deploy prepare SOURCE OUT")
    name = path.name.lower()
    usable: list[Cut] = []
    unusable: list[Unusable] = []
    if name.endswith((".jsonl", ".jsonl.gz")):
        usable = list(_read_cuts(path))
    elif name.endswith((".json", *TABLE_SUFFIXES)):
        for utterance in read_deepspeech_pytorch(path):
            try:
                usable.append(make_cut(utterance, path))
            except (*FILE_ERRORS, ManifestError) as error:
                unusable.append(Unusable(str(utterance.audio), error))
    else:
        raise ManifestError(
            f"{path}: not a manifest; expected .jsonl or .jsonl.gz (lhotse cuts), .json "
            "(deepspeech.pytorch), .csv or .tsv"
        )
    if not usable and not unusable:
        raise ManifestError(f"{path}: contains no utterances; add some, or give another file")
    found = [find_unusable(cut, path) for cut in usable]
    unusable += [item for item in found if item is not None]
    good = (cut for cut, item in zip(usable, found, strict=True) if item is None)
    return CutSet.from_cuts(good), unusable


def check_transcripts(cuts: Iterable[Cut], alphabet: Alphabet, manifest: str | Path) -> None:
    """Check that transcripts only contain characters with a label.

    Raises:
        AlphabetError: a character has no label; the message names the file and the characters.
    """
    for cut in cuts:
        check_transcript(cut, alphabet, manifest)


def check_transcript(cut: Cut, alphabet: Alphabet, manifest: str | Path) -> None:
    """Check that a transcript only contains characters with a label; see `check_transcripts`."""
    alphabet.encode(transcript(cut), source=f"{manifest}: {audio_path(cut)}")


def write_manifest(cuts: CutSet, path: Path) -> None:
    """Write a cut manifest (`.jsonl.gz`) atomically."""
    with (
        whole_file(path) as temporary,
        gzip.open(temporary, "wt", encoding="utf-8") as file,
    ):
        for cut in cuts:
            file.write(manifest_line(cut.to_dict()) + "\n")


def _read_cuts(path: Path) -> CutSet:
    try:
        cuts = CutSet.from_dicts(_json_lines(path)).to_eager()
        for cut in cuts:
            check_values(cut)
    except PermissionError:  # its message names the file
        raise
    except Exception as error:  # lhotse raises any class for a damaged line
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise ManifestError(
            f"{path}: not a manifest of lhotse cuts, or damaged ({reason}); "
            "make it again: ds2deploy prepare"
        ) from None
    return cuts


def _json_lines(path: Path) -> Iterator[Any]:
    """Read a file with one JSON document per line, with or without a byte order mark.

    lhotse's own reader would run a path that begins with "pipe:" as a command.
    """
    is_gzip = path.suffix.lower() == ".gz"
    with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
        begun = file.read(2)
        file.seek(0)
        encoding = "utf-16" if begun in UTF_16 else "utf-8-sig"
        text = io.TextIOWrapper(file, encoding, newline="\n")
        yield from (json.loads(line) for line in text if line.strip())
