"""Analysis of errors: confidence intervals, groups, confused words, and model comparison."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jiwer
import msgspec
import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.errors import (
    DECODING_ERRORS,
    ConfigError,
    MissingFileError,
    one_line,
    system_reason,
)
from ds2deploy.training.scoring import ErrorCounts, Hypothesis, count_each

RESAMPLES = 2000
CONFUSIONS = 20
MOST_VALUES = 100
"""Maximum number of different values of a tag that is grouped by default."""

DURATIONS_S = (2.0, 5.0, 10.0, 20.0)
"""Edges of the groups by duration (seconds)."""

DURATION = "duration"
UNKNOWN = "unknown"
NOTHING = ""
"""Placeholder in a confusion for the missing word of an insertion or deletion."""

Counts = npt.NDArray[np.int64]
"""(utterances,)"""

Verdict = Literal["better", "worse", "cannot be told"]


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Group of utterances with the same value of a tag.

    Attributes:
        by: name of the tag: `speaker`, `duration`, or another tag of the manifest.
        value: value of the tag.
        utterances: number of utterances.
        errors: error counts of the utterances.
        wer: word error rate.
        interval: 95 % interval of the word error rate, see `wer_interval`.
        cer: character error rate.
    """

    by: str
    value: str
    utterances: int
    errors: ErrorCounts
    wer: float
    interval: tuple[float, float]
    cer: float


class Confusion(msgspec.Struct, frozen=True):
    """Pair of a spoken word and the word that was recognised instead.

    Attributes:
        said: word of the transcript; empty for an insertion.
        heard: recognised word; empty for a deletion.
        count: number of occurrences.
    """

    said: str
    heard: str
    count: int


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Comparison of two evaluations of the same utterances.

    Attributes:
        against: name of the other evaluation.
        utterances: number of utterances that both evaluations recognised.
        wer: word error rate of this evaluation on these utterances.
        against_wer: word error rate of the other evaluation on these utterances.
        saved: `against_wer` minus `wer`.
        interval: 95 % interval of `saved`, from a paired bootstrap over utterances.
        verdict: `better` or `worse` if the whole interval is on one side of 0.
    """

    against: str
    utterances: int
    wer: float
    against_wer: float
    saved: float
    interval: tuple[float, float]
    verdict: Verdict


def word_errors(hypotheses: Sequence[Hypothesis]) -> tuple[Counts, Counts]:
    """Count word errors and words of each utterance."""
    return columns(count_each(hypotheses))


def columns(counts: Sequence[ErrorCounts]) -> tuple[Counts, Counts]:
    """Collect the counts of the utterances in two arrays: word errors, and words."""
    return np.array([one.word_errors for one in counts]), np.array([one.words for one in counts])


def wer_interval(errors: Counts, words: Counts) -> tuple[float, float]:
    """Compute the 95 % bootstrap interval of the word error rate (Bisani and Ney, 2004).

    Utterances are drawn with replacement, so that errors of one utterance stay together.

    Args:
        errors: number of word errors of each utterance; for the interval of a difference of two
            word error rates, the differences of the errors.
        words: number of words of each utterance.
    """
    random = np.random.default_rng(1)
    rates = []
    for _ in range(RESAMPLES):
        drawn = random.integers(0, len(words), len(words))
        rates.append(errors[drawn].sum() / max(int(words[drawn].sum()), 1))
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def groups(hypotheses: Sequence[Hypothesis], by: Sequence[str]) -> list[Group]:
    """Count errors by speaker, duration, or tags of the manifest.

    Args:
        hypotheses: utterances with their tags.
        by: names of tags, or `duration`.

    Raises:
        ConfigError: no utterance has one of the tags.
    """
    known = sorted({tag for one in hypotheses for tag in one.tags})
    found: list[Group] = []
    for name in by:
        if name != DURATION and name not in known:
            raise ConfigError(
                f"--by {name}: no utterance has this tag; the manifest has "
                f"{', '.join([DURATION, *known])}"
            )
        members: defaultdict[str, list[Hypothesis]] = defaultdict(list)
        for one in hypotheses:
            value = one.tags.get(name, UNKNOWN)
            members[_duration_group(one.duration_s) if name == DURATION else value].append(one)
        order = sorted(members, key=_as_number) if name == DURATION else sorted(members)
        found += [_group(name, value, members[value]) for value in order]
    return found


def common_tags(hypotheses: Sequence[Hypothesis]) -> list[str]:
    """List `duration` and the tags with few different values, by which to group."""
    values: defaultdict[str, set[str]] = defaultdict(set)
    for one in hypotheses:
        for name, value in one.tags.items():
            values[name].add(value)
    return [DURATION, *sorted(name for name in values if len(values[name]) <= MOST_VALUES)]


def confusions(hypotheses: Sequence[Hypothesis], most: int = CONFUSIONS) -> list[Confusion]:
    """Count the word confusions, most frequent first."""
    counted: Counter[tuple[str, str]] = Counter()
    for one in hypotheses:
        said, heard = one.reference.split(), one.hypothesis.split()
        if not said:
            counted.update((NOTHING, word) for word in heard)
            continue
        for chunk in jiwer.process_words(one.reference, one.hypothesis).alignments[0]:
            if chunk.type == "equal":
                continue
            left = said[chunk.ref_start_idx : chunk.ref_end_idx] or [NOTHING] * len(heard)
            right = heard[chunk.hyp_start_idx : chunk.hyp_end_idx] or [NOTHING] * len(said)
            counted.update(zip(left, right, strict=False))
    ranked = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return [Confusion(*words, count) for words, count in ranked[:most]]


def compare(
    hypotheses: Sequence[Hypothesis], others: Sequence[Hypothesis], against: str
) -> Comparison:
    """Compare two evaluations of one manifest, utterance by utterance.

    Args:
        hypotheses: hypotheses of this evaluation.
        others: hypotheses of the other evaluation.
        against: name of the other evaluation.

    Raises:
        ConfigError: no utterance is in both.
    """
    theirs = dict(zip(_keys(others), others, strict=True))
    pairs = [
        (one, theirs[key])
        for key, one in zip(_keys(hypotheses), hypotheses, strict=True)
        if key in theirs
    ]
    if not pairs:
        raise ConfigError(
            f"--against {against}: contains no utterance of this manifest; evaluate both models "
            "on the same one"
        )
    errors, words = word_errors([one for one, _ in pairs])
    other_errors, _ = word_errors([other for _, other in pairs])
    total = max(int(words.sum()), 1)
    low, high = wer_interval(other_errors - errors, words)
    verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "cannot be told"
    return Comparison(
        against=against,
        utterances=len(pairs),
        wer=float(errors.sum() / total),
        against_wer=float(other_errors.sum() / total),
        saved=float((other_errors - errors).sum() / total),
        interval=(low, high),
        verdict=verdict,
    )


class _Saved(msgspec.Struct):
    """Part of an evaluation's JSON that a comparison needs."""

    hypotheses: list[Hypothesis]


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """Read the utterances from the output of `ds2deploy evaluate --json`.

    Raises:
        MissingFileError: the file does not exist.
        ConfigError: the file is not such an output.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingFileError(
            f"--against {path}: {system_reason(error)}; expected a model, or the output of "
            "ds2deploy evaluate --json"
        ) from None
    try:
        return msgspec.json.decode(content, type=_Saved).hypotheses
    except DECODING_ERRORS as error:
        raise ConfigError(
            f"--against {path}: not the output of ds2deploy evaluate --json ({one_line(error)}); "
            "make it again"
        ) from None


def _group(by: str, value: str, members: Sequence[Hypothesis]) -> Group:
    counts = count_each(members)
    errors = sum(counts, ErrorCounts())
    return Group(
        by=by,
        value=value,
        utterances=len(members),
        errors=errors,
        wer=errors.wer,
        interval=wer_interval(*columns(counts)),
        cer=errors.cer,
    )


def _duration_group(seconds: float) -> str:
    for low, high in zip((0.0, *DURATIONS_S), DURATIONS_S, strict=False):
        if seconds < high:
            return f"{low:g} to {high:g} s"
    return f"{DURATIONS_S[-1]:g} s or more"


def _as_number(group: str) -> float:
    return float(group.split()[0])


def _keys(hypotheses: Sequence[Hypothesis]) -> list[tuple[str, str, int]]:
    """Make the keys of utterances: file name, transcript, and a number that makes keys unique."""
    seen: Counter[tuple[str, str]] = Counter()
    keys = []
    for one in hypotheses:
        key = (one.audio, one.reference)
        keys.append((*key, seen[key]))
        seen[key] += 1
    return keys
