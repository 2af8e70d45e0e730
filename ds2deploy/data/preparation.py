"""Preparation of a data set, from recordings to the manifests of a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from lhotse import CutSet

from ds2deploy.data.corpora.registry import find_layout, read_layout
from ds2deploy.data.cuts import join_utterances, speaker
from ds2deploy.data.deepspeech_manifest import read_deepspeech_pytorch
from ds2deploy.data.manifest import write_manifest
from ds2deploy.data.screening import RejectedUtterance, Screened, Screener, Screening
from ds2deploy.data.splitting import SplitBy, with_validation
from ds2deploy.data.text_normalization import Change, find_labels
from ds2deploy.data.transcript_table import TABLE_SUFFIXES
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import DECODING_ERRORS, ManifestError, MissingFileError
from ds2deploy.runtimes.files import json_text, whole_file
from ds2deploy.version import __version__

REPORT = "report.json"

JOIN_PAUSE_S = (0.05, 0.3)
"""Silence between the recordings of a joined held-out utterance, in seconds."""


class PrepareOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the preparation of a data set.

    Attributes:
        layout: layout of the folder; see `corpora.registry`.
        valid_share: share of the training utterances, or of their speakers, that becomes `valid`
            if the source has no such set, 0 to 0.9.
        split_by: unit of the split; `speaker` keeps all utterances of a speaker in one set.
        join: minimum and maximum number of utterances that are joined into one in `valid-joined`
            and `test-joined`; (1, 1) writes neither.
        join_times: number of times that each utterance is used in the joined sets.
        screening: requirements of an utterance.
        leave_out: leave out unusable utterances; otherwise the first one is an error.
    """

    layout: str = "folder"
    valid_share: float = 0.1
    split_by: SplitBy = "utterance"
    join: tuple[int, int] = (1, 1)
    join_times: int = 1
    screening: Screening = Screening()
    leave_out: bool = False


class SetReport(msgspec.Struct, frozen=True):
    """Size of one manifest."""

    manifest: str
    utterances: int
    hours: float
    speakers: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Report of a preparation: source, manifests, and changed or rejected utterances.

    Attributes:
        source: folder or manifest.
        options: options of the preparation.
        created_by: name and version of the program.
        labels: labels of the transcripts.
        listed: number of utterances of the source, and of files that look like sound.
        used: number of utterances in the manifests, before any are joined.
        unreadable: number of recordings and folders among `left_out` that cannot be read.
        sets: sizes of the manifests.
        characters: characters without a label, with their replacements.
        left_out: error of each rejected utterance, in the order of the source.
        unknown_parts: number of utterances in each part of a corpus whose name contains no set;
            they are in the training set.
    """

    source: str
    options: PrepareOptions
    created_by: str
    labels: str
    listed: int
    used: int
    unreadable: int
    sets: list[SetReport]
    characters: list[Change]
    left_out: list[str]
    unknown_parts: dict[str, int]


def prepare(
    source: Path,
    out: Path,
    alphabet: Alphabet | None,
    options: PrepareOptions,
) -> tuple[dict[str, CutSet], Report]:
    """Write the manifests of a data set, and a report.

    Args:
        source: folder of recordings, manifest of deepspeech.pytorch, or CSV or TSV file with a
            recording and its transcript in each line.
        out: folder for the manifests.
        alphabet: labels for the transcripts; None collects the letters of the transcripts.
        options: options of the preparation.

    Returns:
        The manifests by name, each written to `out/NAME.jsonl.gz`; and the report, written to
        `out/report.json`.

    Raises:
        MissingFileError, ManifestError, AudioError, AlphabetError: an utterance is rejected; with
            `options.leave_out`, only if all are.
        ConfigError: there is no such layout, or speakers cannot be separated.
    """
    if out.exists() and not out.is_dir():
        raise MissingFileError(f"{out}: is a file; expected a folder")
    utterances = _listed(source, options.layout)
    labels_found = alphabet is None
    if alphabet is None:
        alphabet = Alphabet(find_labels(_usable_texts(utterances)))
    screener = Screener(source, alphabet, options.screening, labels_found)
    found = list(screener.screen(utterances))
    rejected = [item for item in found if isinstance(item, RejectedUtterance)]
    screened = [item for item in found if isinstance(item, Screened)]
    if rejected and not (options.leave_out and screened):
        raise _first_error(rejected, len(found), options.leave_out)
    split = with_validation(screened, source, options.valid_share, options.split_by)
    manifests = _sets(split, options)
    earlier = _earlier_sets(out)
    report = Report(
        source=str(source),
        options=options,
        created_by=f"ds2deploy {__version__}",
        labels=alphabet.labels,
        listed=len(found),
        used=len(screened),
        unreadable=sum(item.unreadable for item in rejected),
        sets=[_set_report(out / f"{name}.jsonl.gz", cuts) for name, cuts in manifests.items()],
        characters=screener.normalizer.changes,
        left_out=[str(item.error) for item in rejected],
        unknown_parts=dict(
            Counter(x.unknown_part for x in utterances if x.unknown_part and x.error is None)
        ),
    )
    for name, cuts in manifests.items():
        write_manifest(cuts, out / f"{name}.jsonl.gz")
    for name in earlier - {f"{name}.jsonl.gz" for name in manifests}:
        (out / name).unlink(missing_ok=True)  # an old set may share utterances with the new ones
    with whole_file(out / REPORT) as temporary:
        text = msgspec.json.format(json_text(report), indent=1)
        temporary.write_text(f"{text}\n", encoding="utf-8")
    return manifests, report


def _earlier_sets(out: Path) -> set[str]:
    """List the names of the manifests that an earlier preparation wrote to a folder."""
    try:
        document = msgspec.json.decode((out / REPORT).read_bytes())
        names = {Path(made["manifest"]).name for made in document["sets"]}
    except (OSError, KeyError, TypeError, *DECODING_ERRORS):
        return set()
    return {name for name in names if name.endswith(".jsonl.gz")}


def _listed(source: Path, layout: str) -> list[Utterance]:
    """List the utterances of a source, rejected ones included."""
    utterances = list(_read(source, layout))
    if not utterances and source.is_file():
        raise ManifestError(f"{source}: contains no utterances; add some, or give another file")
    if not utterances:
        content = "recordings" if layout == "folder" else "utterances"
        raise ManifestError(
            f"{source}: contains no {content}; --layout {layout} expects "
            f"{find_layout(layout).expected}"
        )
    return utterances


def _usable_texts(utterances: Sequence[Utterance]) -> list[str]:
    """Collect the transcripts of the utterances that are not rejected.

    Raises:
        Ds2Error: the first error, if all are rejected.
    """
    found = [utterance.text for utterance in utterances if utterance.error is None]
    if not found and (error := utterances[0].error) is not None:
        raise error
    return found


def _read(source: Path, layout: str) -> Iterator[Utterance]:
    known = find_layout(layout)
    if source.is_dir():
        return read_layout(layout, source)
    if source.is_file() and source.suffix.lower() in (".json", *TABLE_SUFFIXES):
        return read_deepspeech_pytorch(source)
    if source.is_file():
        raise ManifestError(
            f"{source}: not a list of recordings; expected a folder, a table of recordings and "
            "transcripts (.csv, .tsv), or a manifest of deepspeech.pytorch (.json, .csv)"
        )
    origin = f" ({known.origin})" if known.origin else ""
    raise MissingFileError(f"{source}: no such file or directory; expected {known.content}{origin}")


def _first_error(rejected: Sequence[RejectedUtterance], listed: int, leave_out: bool) -> Exception:
    """Make one error from all: the first message, and the number of the others."""
    first = rejected[0].error
    if leave_out:
        return type(first)(f"{first} (none of {listed} utterances can be used)")
    if not rejected[1:]:
        return first
    return type(first)(
        f"{first} (and {len(rejected) - 1} more of {listed} utterances cannot be used; --leave-out "
        "lists them and continues without them)"
    )


def _sets(screened: Sequence[Screened], options: PrepareOptions) -> dict[str, CutSet]:
    """Make the sets of cuts, by the names of their manifests."""
    manifests = {
        split: CutSet.from_cuts(item.cut for item in screened if item.split == split)
        for split in sorted({item.split for item in screened})
    }
    for name in ("valid", "test"):
        if options.join != (1, 1) and name in manifests:
            joined = _joined(manifests[name], options.join, options.join_times)
            manifests[f"{name}-joined"] = joined
    return manifests


def _joined(cuts: CutSet, counts: tuple[int, int], times: int) -> CutSet:
    rounds = (join_utterances(cuts, counts, JOIN_PAUSE_S, seed) for seed in range(times))
    return CutSet.from_cuts(cut for joined in rounds for cut in joined)


def _set_report(path: Path, cuts: CutSet) -> SetReport:
    hours = round(sum(cut.duration for cut in cuts) / 3600, 4)
    return SetReport(str(path), len(cuts), hours, len({speaker(cut) for cut in cuts} - {""}))
