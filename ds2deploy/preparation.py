"""`ds2deploy prepare`: from a source of recordings to the manifests of a training."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from lhotse import CutSet

from ds2deploy.manifest import check_transcripts, join_utterances, make_cuts, write_manifest
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import ManifestError, MissingFileError
from ds2deploy.sources import (
    AUDIO_SUFFIXES,
    Utterance,
    read_deepspeech_pytorch,
    read_folder,
    read_fsdd,
)

Layout = Literal["folder", "fsdd"]
LAYOUTS: tuple[Layout, ...] = ("folder", "fsdd")

JOIN_PAUSE_S = (0.05, 0.3)
"""Silence between the recordings of a joined held-out utterance."""


def prepare(
    source: Path,
    out: Path,
    layout: Layout,
    alphabet: Alphabet,
    valid_share: float,
    join: tuple[int, int],
    join_times: int,
) -> dict[str, CutSet]:
    """Write the manifests of a data set.

    Args:
        source: a folder, or a deepspeech.pytorch manifest.
        out: folder for the manifests.
        layout: of a folder: audio with a .txt beside each, or the Free Spoken Digit Dataset.
        alphabet: that the transcripts must be spelled with.
        valid_share: share of a folder's or manifest's utterances that becomes `valid`.
        join: fewest and most utterances that are joined into one in `valid-joined` and
            `test-joined`; (1, 1) makes neither.
        join_times: how often each utterance is used for that.

    Returns:
        The manifests by their names; each is `out/NAME.jsonl.gz`.

    Raises:
        MissingFileError, ManifestError, AudioError, AlphabetError: what is wrong with which file.
    """
    if out.exists() and not out.is_dir():
        raise MissingFileError(f"{out}: is a file; expected a folder for the manifests")
    utterances = _utterances(source, layout, valid_share)
    if not utterances and source.is_file():
        raise ManifestError(f"{source}: lists no utterances; expected at least one")
    if not utterances:
        raise ManifestError(
            f"{source}: holds no audio ({', '.join(sorted(AUDIO_SUFFIXES))}); "
            "expected recordings with a .txt transcript beside each"
        )
    splits = sorted({utterance.split for utterance in utterances})
    manifests = {
        split: make_cuts((u for u in utterances if u.split == split), source) for split in splits
    }
    for cuts in manifests.values():
        check_transcripts(cuts, alphabet, source)
    for name in ("valid", "test"):
        if join != (1, 1) and name in manifests:
            manifests[f"{name}-joined"] = _joined(manifests[name], join, join_times)
    for name, cuts in manifests.items():
        write_manifest(cuts, out / f"{name}.jsonl.gz")
    return manifests


def _joined(cuts: CutSet, counts: tuple[int, int], times: int) -> CutSet:
    rounds = (join_utterances(cuts, counts, JOIN_PAUSE_S, seed) for seed in range(times))
    return CutSet.from_cuts(cut for joined in rounds for cut in joined)


def _utterances(source: Path, layout: Layout, valid_share: float) -> list[Utterance]:
    if source.is_dir():
        read: Callable[[Path], Iterator[Utterance]] = read_fsdd if layout == "fsdd" else read_folder
    elif source.is_file() and source.suffix in (".json", ".csv"):
        read = read_deepspeech_pytorch
    elif source.is_file():
        raise ManifestError(
            f"{source}: expected a folder, or a manifest of deepspeech.pytorch (.json, .csv)"
        )
    else:
        raise MissingFileError(f"{source}: no such file or directory")
    utterances = list(read(source))
    return utterances if read is read_fsdd else _split(utterances, source, valid_share)


def _split(utterances: list[Utterance], source: Path, valid_share: float) -> list[Utterance]:
    """Part of them to `valid`: by a hash of the path, so that none moves when others come."""
    base = source if source.is_dir() else source.parent

    def place(utterance: Utterance) -> float:
        path = utterance.audio
        name = path.relative_to(base) if path.is_relative_to(base) else path
        return zlib.crc32(name.as_posix().encode()) / 2**32

    if len(utterances) < 2 or valid_share == 0:
        return utterances
    chosen = {u.audio for u in utterances if place(u) < valid_share}
    # Neither side of a small corpus stays empty.
    chosen.add(min(utterances, key=place).audio)
    chosen.discard(max(utterances, key=place).audio)
    return [u._replace(split="valid") if u.audio in chosen else u for u in utterances]
