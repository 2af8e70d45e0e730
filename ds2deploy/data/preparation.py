"""`ds2deploy prepare`: from a source of recordings to the manifests of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
from lhotse import CutSet

from ds2deploy.data.corpora import CORPORA, LHOTSE, read_with_lhotse
from ds2deploy.data.listing import READ_SUFFIXES
from ds2deploy.data.manifest import join_utterances, speaker, write_manifest
from ds2deploy.data.screening import RejectedUtterance, Screened, Screener, Screening
from ds2deploy.data.sources import (
    Utterance,
    read_deepspeech_pytorch,
    read_folder,
    read_fsdd,
)
from ds2deploy.data.splitting import SplitBy, with_validation
from ds2deploy.data.text_normalization import Change, find_labels
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import DECODING_ERRORS, ConfigError, ManifestError, MissingFileError
from ds2deploy.runtimes.files import json_text, whole_file
from ds2deploy.version import __version__

FOLDERS: dict[str, Callable[[Path], Iterator[Utterance]]] = {
    "folder": read_folder,
    "fsdd": read_fsdd,
    **CORPORA,
}
LAYOUTS = (*FOLDERS, f"{LHOTSE}NAME")

REPORT = "report.json"

JOIN_PAUSE_S = (0.05, 0.3)
"""Silence between the recordings of a joined held-out utterance."""


class PrepareOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a data set is made.

    Attributes:
        layout: of a folder, one of `LAYOUTS`.
        valid_share: share of the training utterances, or of their speakers, that becomes `valid`
            where the source has no such set.
        split_by: whether a speaker may be heard in both sets.
        join: fewest and most utterances that are joined into one in `valid-joined` and
            `test-joined`; (1, 1) makes neither.
        join_times: how often each utterance is used for that.
        screening: what is asked of an utterance.
        leave_out: whether those that cannot be used are left out; else the first ends it.
    """

    layout: str = "folder"
    valid_share: float = 0.1
    split_by: SplitBy = "utterance"
    join: tuple[int, int] = (1, 1)
    join_times: int = 1
    screening: Screening = Screening()
    leave_out: bool = False


class SetReport(msgspec.Struct, frozen=True):
    """One manifest."""

    manifest: str
    utterances: int
    hours: float
    speakers: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Where manifests came from, and what became of everything that the source lists.

    Attributes:
        source: folder or manifest.
        choices: that were made.
        created_by: name and version of the program.
        labels: of the transcripts.
        listed: number of utterances of the source, and of files that look like sound.
        used: number of utterances in the manifests, before any are joined.
        unreadable: number of recordings and folders among `left_out` that cannot be read.
        sets: the manifests.
        characters: that had no label, and what became of each.
        left_out: what is wrong with each utterance that cannot be used, in the source's order.
    """

    source: str
    choices: PrepareOptions
    created_by: str
    labels: str
    listed: int
    used: int
    unreadable: int
    sets: list[SetReport]
    characters: list[Change]
    left_out: list[str]


def prepare(
    source: Path,
    out: Path,
    alphabet: Alphabet | None,
    choices: PrepareOptions,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, CutSet], Report]:
    """Write the manifests of a data set, and a report beside them.

    Args:
        source: a folder, or a deepspeech.pytorch manifest.
        out: folder for the manifests.
        alphabet: that the transcripts must be spelled with; None takes the letters that they have.
        choices: how.
        progress: told how many utterances were looked at.

    Returns:
        The manifests by their names, each is `out/NAME.jsonl.gz`; and the report, which is
        `out/report.json`.

    Raises:
        MissingFileError, ManifestError, AudioError, AlphabetError: what is wrong with which file;
            with `choices.leave_out`, only where nothing is left.
        ConfigError: a layout that there is not, or speakers that cannot be parted.
    """
    if out.exists() and not out.is_dir():
        raise MissingFileError(f"{out}: is a file; expected a folder for the manifests")
    utterances = _listed(source, choices)
    if alphabet is None:
        alphabet = Alphabet(find_labels(_usable_texts(utterances)))
    screener = Screener(source, alphabet, choices.screening, progress)
    found = list(screener.screen(utterances))
    faults = [item for item in found if isinstance(item, RejectedUtterance)]
    screened = [item for item in found if isinstance(item, Screened)]
    if faults and not (choices.leave_out and screened):
        raise _summary(faults, len(found), choices.leave_out)
    parted = with_validation(screened, source, choices.valid_share, choices.split_by)
    manifests = _sets(parted, choices)
    earlier = _earlier_sets(out)
    report = Report(
        source=str(source),
        choices=choices,
        created_by=f"ds2deploy {__version__}",
        labels=alphabet.labels,
        listed=len(found),
        used=len(screened),
        unreadable=sum(fault.unreadable for fault in faults),
        sets=[_set_report(out / f"{name}.jsonl.gz", cuts) for name, cuts in manifests.items()],
        characters=screener.spelling.changes,
        left_out=[str(fault.error) for fault in faults],
    )
    for name, cuts in manifests.items():
        write_manifest(cuts, out / f"{name}.jsonl.gz")
    for name in earlier - {f"{name}.jsonl.gz" for name in manifests}:
        (out / name).unlink(missing_ok=True)  # else it may share utterances with the new sets
    with whole_file(out / REPORT) as temporary:
        text = msgspec.json.format(json_text(report), indent=1)
        temporary.write_text(f"{text}\n", encoding="utf-8")
    return manifests, report


def _earlier_sets(out: Path) -> set[str]:
    """Names of the manifests that the preparation before this one wrote into a folder."""
    try:
        document = msgspec.json.decode((out / REPORT).read_bytes())
        names = {Path(made["manifest"]).name for made in document["sets"]}
    except (OSError, KeyError, TypeError, *DECODING_ERRORS):
        return set()
    return {name for name in names if name.endswith(".jsonl.gz")}


def _listed(source: Path, choices: PrepareOptions) -> list[Utterance]:
    """All that a source lists, damaged or not."""
    utterances = list(_reader(source, choices.layout)(source))
    if not utterances and source.is_file():
        raise ManifestError(f"{source}: lists no utterances; expected at least one")
    if not utterances:
        raise ManifestError(
            f"{source}: holds no audio ({', '.join(sorted(READ_SUFFIXES))}); "
            "expected recordings with a .txt transcript beside each"
        )
    return utterances


def _usable_texts(utterances: Sequence[Utterance]) -> list[str]:
    """What labels can be found in; the first fault where there is nothing else.

    Raises:
        Ds2Error: that fault.
    """
    found = [utterance.text for utterance in utterances if utterance.fault is None]
    if not found and (fault := utterances[0].fault) is not None:
        raise fault
    return found


def _reader(source: Path, layout: str) -> Callable[[Path], Iterator[Utterance]]:
    if layout not in FOLDERS and not layout.startswith(LHOTSE):
        raise ConfigError(f"--layout {layout}: expected one of {', '.join(LAYOUTS)}")
    if source.is_dir():
        if layout.startswith(LHOTSE):
            return partial(read_with_lhotse, layout.removeprefix(LHOTSE))
        return FOLDERS[layout]
    if source.is_file() and source.suffix.lower() in (".json", ".csv"):
        return read_deepspeech_pytorch
    if source.is_file():
        raise ManifestError(
            f"{source}: expected a folder, or a manifest of deepspeech.pytorch (.json, .csv)"
        )
    raise MissingFileError(f"{source}: no such file or directory")


def _summary(faults: Sequence[RejectedUtterance], listed: int, leave_out: bool) -> Exception:
    """The first error; others are counted, for a line that nobody reads to its end helps nobody."""
    first = faults[0].error
    if leave_out:
        return type(first)(f"{first} (none of {listed} utterances can be used)")
    if not faults[1:]:
        return first
    return type(first)(
        f"{first} (and {len(faults) - 1} more of {listed} utterances cannot be used; --leave-out "
        "names each, and goes on without them)"
    )


def _sets(screened: Sequence[Screened], choices: PrepareOptions) -> dict[str, CutSet]:
    """The manifests by their names."""
    manifests = {
        split: CutSet.from_cuts(item.cut for item in screened if item.split == split)
        for split in sorted({item.split for item in screened})
    }
    for name in ("valid", "test"):
        if choices.join != (1, 1) and name in manifests:
            joined = _joined(manifests[name], choices.join, choices.join_times)
            manifests[f"{name}-joined"] = joined
    return manifests


def _joined(cuts: CutSet, counts: tuple[int, int], times: int) -> CutSet:
    rounds = (join_utterances(cuts, counts, JOIN_PAUSE_S, seed) for seed in range(times))
    return CutSet.from_cuts(cut for joined in rounds for cut in joined)


def _set_report(path: Path, cuts: CutSet) -> SetReport:
    hours = round(sum(cut.duration for cut in cuts) / 3600, 4)
    return SetReport(str(path), len(cuts), hours, len({speaker(cut) for cut in cuts} - {""}))
