"""Split of a validation set from a corpus that has none."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
from lhotse.cut import Cut

from ds2deploy.data.cuts import speaker
from ds2deploy.data.screening import Screened
from ds2deploy.runtimes.errors import ConfigError

SplitBy = Literal["utterance", "speaker"]


def with_validation(
    screened: Sequence[Screened], source: Path, share: float, split_by: SplitBy
) -> list[Screened]:
    """Move some of the training utterances to `valid`, unless the source has such a set.

    The choice depends on a hash of the speaker or the path, so that added utterances do not change
    it for the others.

    Args:
        screened: utterances of all sets.
        source: folder or manifest that lists them.
        share: share of the training utterances, or of their speakers, to move.
        split_by: unit of the split; `speaker` keeps all utterances of a speaker in one set.

    Raises:
        ConfigError: `split_by` is `speaker`, but some speakers are unnamed or there is only one.
    """
    chosen = [item for item in screened if item.split == "train"]
    if share == 0 or not chosen or any(item.split == "valid" for item in screened):
        return list(screened)
    base = source if source.is_dir() else source.parent
    key = speaker if split_by == "speaker" else partial(_path_in, base.resolve())
    names = {key(item.cut) for item in chosen}
    if split_by == "speaker":
        _check_speakers(names, source)
    if len(names) < 2:
        return list(screened)
    ordered = sorted(names, key=_hash)
    # Keep both sets of a small corpus from being empty.
    valid = {name for name in ordered if _hash(name) < share} | {ordered[0]}
    valid.discard(ordered[-1])
    return [
        msgspec.structs.replace(item, split="valid")
        if item.split == "train" and key(item.cut) in valid
        else item
        for item in screened
    ]


def _check_speakers(names: set[str], source: Path) -> None:
    if "" in names:
        raise ConfigError(
            f"--split-by speaker: {source} does not name every speaker; use --split-by utterance"
        )
    if len(names) < 2:
        raise ConfigError(
            f"--split-by speaker: {source} has only one speaker, {min(names)!r}; use --split-by "
            "utterance, or --valid 0"
        )


def _path_in(base: Path, cut: Cut) -> str:
    """Make the path of a recording relative to the source, with the start time of a part."""
    path = Path(cut.recording.sources[0].source)
    name = path.relative_to(base) if path.is_relative_to(base) else path
    return name.as_posix() + (f"@{cut.start:g}" if cut.start else "")


def _hash(name: str) -> float:
    """Hash a name to a number from 0 to 1."""
    return zlib.crc32(name.encode("utf-8", "surrogateescape")) / 2**32
