"""CTC prefix beam search in numpy, over the beams of many utterances at a time.

A hypothesis is a text without blanks and repeats; its probability is the sum over all paths that
collapse to it (Graves, 2012; Hannun et al., 2014). Each numpy call takes the hypotheses of all
utterances together, so that 64 streams cost little more than a few.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.alphabet import BLANK
from ds2deploy.runtimes.decoding.hypotheses import Beam, Floats, History, Ints
from ds2deploy.runtimes.decoding.scorers import Scorer

_ODD = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


class Limits(NamedTuple):
    """Sizes and thresholds of a search.

    Attributes:
        beam: maximum number of hypotheses of an utterance.
        labels: maximum number of labels of a frame that extend hypotheses, besides the blank.
        log_prob: lowest log-probability of a label that extends hypotheses.
        threshold: maximum distance of a hypothesis from the best one, in nats.
    """

    beam: int
    labels: int
    log_prob: float
    threshold: float


class Search:
    """Extends beams frame by frame.

    Args:
        limits: limits of the search.
        scorers: scorers of hypotheses, besides the network.
        labels: size of the alphabet.
    """

    def __init__(self, limits: Limits, scorers: Sequence[Scorer], labels: int) -> None:
        self._limits, self._scorers = limits, tuple(scorers)
        widths = [len(scorer.start) for scorer in scorers]
        ends = np.cumsum(widths).tolist()
        self._headroom = limits.threshold + sum(scorer.most for scorer in scorers)
        self._columns = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
        self._salt = _salt(labels)

    def begin(self) -> Beam:
        """Make the beam of a new utterance, which holds the empty text."""
        start = [column for scorer in self._scorers for column in scorer.start]
        return Beam(
            hash=np.ones(1, np.uint64),
            last=np.array([BLANK]),
            blank=np.zeros(1),
            label=np.full(1, -np.inf),
            bonus=np.zeros(1),
            states=np.array(start, np.int64).reshape(len(start), 1),
            node=np.zeros(1, np.int64),
        )

    def frame(
        self,
        beam: Beam,
        utterances: Ints,
        log_probs: Floats,
        wanted: npt.NDArray[np.bool_],
        history: History,
        frames: Ints,
    ) -> tuple[Beam, Ints]:
        """Read one frame of all utterances.

        Args:
            beam: hypotheses, grouped by utterance; each utterance has at least one.
            utterances: (n,) index of each hypothesis' utterance.
            log_probs: (utterances, labels) float64.
            wanted: (utterances, labels) labels that extend hypotheses, see `extending`.
            history: nodes of the hypotheses; new ones are added.
            frames: (utterances,) numbers of the frame.

        Returns:
            The hypotheses after the frame, and their utterances.
        """
        # `take` is twice as fast as an index for arrays of this size.
        total = np.logaddexp(beam.blank, beam.label)
        row = log_probs.ravel()
        offset = utterances * log_probs.shape[1]
        blank = total + row.take(offset + BLANK)
        label = beam.label + row.take(offset + beam.last)
        starts = _starts(utterances)
        stay = np.logaddexp(blank, label) + beam.bonus
        # A hypothesis below this cannot be kept, whatever the scorers add.
        floor = np.maximum.reduceat(stay, starts) - self._headroom
        at, labels = wanted.take(utterances, axis=0).nonzero()
        path = np.where(labels == beam.last.take(at), beam.blank.take(at), total.take(at))
        path += row.take(offset.take(at) + labels)
        owners = utterances.take(at)
        likely = (path + beam.bonus.take(at) > floor.take(owners)).nonzero()[0]
        if not len(likely):
            return beam.with_paths(blank, label), utterances
        if len(likely) < len(at):
            at, labels, path = at.take(likely), labels.take(likely), path.take(likely)
            owners = owners.take(likely)
        states, gains = self._score(beam.states.take(at, axis=1), labels, owners)
        hashes = self._extend(beam.hash.take(at), labels)
        new = self._merge(beam, utterances, hashes, owners, path, label)
        if len(new) < len(at):
            at, labels, owners = at.take(new), labels.take(new), owners.take(new)
            path, gains, hashes = path.take(new), gains.take(new), hashes.take(new)
            states = states.take(new, axis=1)
            stay = np.logaddexp(blank, label) + beam.bonus
        bonus = beam.bonus.take(at) + gains
        everyone = np.concatenate([utterances, owners])
        kept = self._best(np.concatenate([stay, path + bonus]), everyone, len(starts))
        is_new = kept >= len(beam)
        added = kept[is_new] - len(beam)
        node = beam.node.take(kept, mode="clip")
        node[is_new] = history.add(
            beam.node.take(at.take(added)), labels.take(added), frames.take(owners.take(added))
        )
        return Beam(
            hash=np.concatenate([beam.hash, hashes]).take(kept),
            last=np.concatenate([beam.last, labels]).take(kept),
            blank=np.concatenate([blank, np.full(len(at), -np.inf)]).take(kept),
            label=np.concatenate([label, path]).take(kept),
            bonus=np.concatenate([beam.bonus, bonus]).take(kept),
            states=np.concatenate([beam.states, states], axis=1).take(kept, axis=1),
            node=node,
        ), everyone.take(kept)

    def quiet_frame(self, beam: Beam, utterances: Ints, log_probs: Floats) -> Beam:
        """Read a frame in which no label extends a hypothesis; see `frame`."""
        blank = np.logaddexp(beam.blank, beam.label) + log_probs[utterances, BLANK]
        label = beam.label + log_probs[utterances, beam.last]
        return beam.with_paths(blank, label)

    def extending(self, log_probs: Floats) -> npt.NDArray[np.bool_]:
        """Choose the labels that extend hypotheses: the most likely ones of every frame.

        Args:
            log_probs: (..., labels)
        """
        wanted = log_probs > self._limits.log_prob
        most = self._limits.labels
        others = log_probs[..., 1:]
        if others.shape[-1] > most:
            wanted[..., 1:] &= others >= np.partition(others, -most, axis=-1)[..., -most, None]
        wanted[..., BLANK] = False
        return wanted

    def end(self, beam: Beam, utterances: Ints) -> Floats:
        """Score hypotheses as whole utterances.

        Returns:
            Scores (n,); -inf for texts that cannot end here, such as half a word of a lexicon.
        """
        score = beam.score
        for scorer, columns in zip(self._scorers, self._columns, strict=True):
            score = score + scorer.end(beam.states[columns], utterances)
        return score

    def _score(self, states: Ints, labels: Ints, utterances: Ints) -> tuple[Ints, Floats]:
        gains = np.zeros(len(labels))
        following = np.empty_like(states)
        for scorer, columns in zip(self._scorers, self._columns, strict=True):
            new, gain = scorer.step(states[columns], labels, utterances)
            for row, values in zip(following[columns], new, strict=True):
                row[:] = values
            if gain is not None:
                gains += gain
        return following, gains

    def _extend(self, hashes: npt.NDArray[np.uint64], labels: Ints) -> npt.NDArray[np.uint64]:
        mixed = (hashes ^ self._salt.take(labels)) * _ODD
        mixed ^= mixed >> _SHIFT
        return mixed

    @staticmethod
    def _merge(
        beam: Beam,
        utterances: Ints,
        hashes: npt.NDArray[np.uint64],
        owners: Ints,
        path: Floats,
        label: Floats,
    ) -> Ints:
        """Merge extensions with equal hypotheses of the beam, and return the index of the others.

        One that a scorer forbids is not in the beam.
        """
        known, wanted = beam.hash, hashes
        if utterances[-1]:  # hypotheses of two utterances may have one text
            known = known ^ (utterances.astype(np.uint64) * _ODD)
            wanted = wanted ^ (owners.astype(np.uint64) * _ODD)
        order = np.argsort(known)
        at = np.searchsorted(known, wanted, sorter=order)
        at = order.take(at, mode="clip")
        same = known.take(at) == wanted
        into = at[same]
        if len(into):
            label[into] = np.logaddexp(label[into], path[same])
        return np.asarray((~same).nonzero()[0])

    def _best(self, score: Floats, owners: Ints, utterances: int) -> Ints:
        """Select hypotheses to keep: index by utterance, the best first; ties keep their order."""
        if utterances == 1:
            near = (score >= score.max() - self._limits.threshold).nonzero()[0]
            return np.asarray(near[np.argsort(-score[near], kind="stable")[: self._limits.beam]])
        best = np.full(utterances, -np.inf)
        np.maximum.at(best, owners, score)
        near = (score >= best[owners] - self._limits.threshold).nonzero()[0]
        order = near[np.lexsort((-score[near], owners[near]))]
        starts = _starts(owners[order])
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        return np.asarray(order[rank < self._limits.beam])


@cache
def _salt(labels: int) -> npt.NDArray[np.uint64]:
    """Draw an odd random number for each label, from which the hashes of texts are made."""
    random = np.random.default_rng(1)
    return random.integers(1, 2**63, labels, np.uint64) * np.uint64(2) + np.uint64(1)


def _starts(groups: Ints) -> Ints:
    """Find where each group begins, of numbers from 0 that are grouped."""
    if not groups[-1]:
        return np.zeros(1, np.int64)
    return (np.concatenate([[True], groups[1:] != groups[:-1]])).nonzero()[0]
