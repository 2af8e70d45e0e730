"""One block of frames in the beams of many utterances, and the text that becomes final in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ds2deploy.runtimes.decoding.alignment import align_batch
from ds2deploy.runtimes.decoding.beam_search import Search
from ds2deploy.runtimes.decoding.confidence import posteriors
from ds2deploy.runtimes.decoding.hot_words import HotWords
from ds2deploy.runtimes.decoding.hypotheses import Beam, History, Ints, join
from ds2deploy.runtimes.features import FloatArray

COMMIT_EVERY = 10
"""Number of frames between commits: a fifth of a second at 20 ms per frame. Frames are counted from
the beginning of the stream, so that the length of its blocks does not matter."""

OLD = 200
"""Number of frames after which a committed word is aligned even if no space follows. Otherwise,
minutes of silence would fill the memory."""

LEAST = -1e3
"""Lower limit of log-probabilities. In fp16 a probability may be 0, which could remove all
hypotheses."""


@dataclass
class BeamState:
    """State of one utterance in a beam search.

    Attributes:
        beam: hypotheses; the last row of their states belongs to the hot words.
        history: labels of the hypotheses, without committed ones.
        commit: number of frames after which the best text is committed; None commits at the end.
        hot_words: hot words of this utterance.
        frames: number of frames so far.
        held: log-probabilities of the frames that are not aligned yet.
        held_from: number of the first of those frames.
        committed: (label, frame of its emission) of labels that are committed but not aligned.
        committed_confidence: confidence of each of those labels.
        labels: (label, first frame, last frame) of the aligned labels.
        confidence: confidence of each aligned label.
        told: number of aligned labels that updates have returned.
        stable: words that updates have returned.
    """

    beam: Beam
    history: History
    commit: int | None
    hot_words: HotWords | None
    frames: int = 0
    held: list[FloatArray] = field(default_factory=list)
    held_from: int = 0
    committed: list[tuple[int, int]] = field(default_factory=list)
    committed_confidence: list[float] = field(default_factory=list)
    labels: list[tuple[int, int, int]] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    told: int = 0
    stable: str = ""


class Batch:
    """One call of a search for several utterances, the longest first.

    Args:
        search: search with the scorers of these utterances.
        states: states of the utterances.
        blocks: (frames, labels) float32 for each utterance, none empty, the longest first.
        space: label between words; -1 if there is none.
        scale: factor of scores before they become probabilities.
    """

    def __init__(
        self,
        search: Search,
        states: Sequence[BeamState],
        blocks: Sequence[FloatArray],
        space: int,
        scale: float,
    ) -> None:
        self._search, self._states, self._blocks = search, states, blocks
        self._space, self._scale = space, scale
        self._lengths = np.array([len(block) for block in blocks])
        self._log_probs = np.zeros((len(blocks), self._lengths[0], blocks[0].shape[1]))
        for rows, block in zip(self._log_probs, blocks, strict=True):
            np.maximum(block, LEAST, out=rows[: len(block)])
        self._history, offsets = History.joined([state.history for state in states])
        self._old_roots, self._roots = offsets, offsets.copy()
        self._first = np.array([state.frames for state in states])
        sizes = [len(state.beam) for state in states]
        self._utterances = np.repeat(np.arange(len(states)), sizes)
        self._beam = join([state.beam for state in states])
        self._beam.node = self._beam.node + np.repeat(offsets, sizes)
        # Committed text of each utterance: (node, share of hypotheses that had it, last frame).
        self._commits: list[list[tuple[int, float, int]]] = [[] for _ in states]
        never = np.iinfo(np.int64).max
        self._delay = np.array([never if s.commit is None else s.commit for s in states])

    def run(self) -> None:
        """Process all frames, and update the states."""
        wanted = self._search.extending(self._log_probs)
        busy = np.asarray(wanted.any(axis=2))
        ended: list[tuple[Beam, Ints]] = []
        count = len(self._states)
        for t in range(self._log_probs.shape[1]):
            while self._lengths[count - 1] == t:
                count -= 1
                rest = np.flatnonzero(self._utterances == count)
                ended.append((self._beam.take(rest), self._utterances[rest]))
                others = slice(0, rest[0])
                self._beam, self._utterances = self._beam.take(others), self._utterances[others]
            log_probs = self._log_probs[:count, t]
            if busy[:count, t].any():
                self._beam, self._utterances = self._search.frame(
                    self._beam,
                    self._utterances,
                    log_probs,
                    wanted[:count, t],
                    self._history,
                    self._first[:count] + t,
                )
            else:
                self._beam = self._search.quiet_frame(self._beam, self._utterances, log_probs)
            read = self._first[:count] + t + 1
            due = (read % COMMIT_EVERY == 0) & (self._delay[:count] < read)
            if due.any():
                self._commit(np.flatnonzero(due), self._first[:count] + t - self._delay[:count])
        self._leave(ended)

    def _commit(self, due: Ints, limits: Ints) -> None:
        """Commit the text of the best hypotheses up to a frame; drop hypotheses that differ."""
        rows = np.flatnonzero(np.isin(self._utterances, due))
        owners = self._utterances[rows]
        ancestors = self._history.ancestors(self._beam.node[rows], limits[owners])
        score = self._beam.score[rows]
        keep = np.ones(len(self._utterances), bool)
        for utterance in due.tolist():
            mine = np.flatnonzero(owners == utterance)
            node = ancestors[mine[int(score[mine].argmax())]]
            same = np.asarray(ancestors[mine] == node)
            keep[rows[mine[~same]]] = False
            share = 1.0
            if node != self._roots[utterance]:
                share = float(posteriors(score[mine], self._scale)[same].sum())
                self._roots[utterance] = node
            self._commits[utterance].append((int(node), share, int(limits[utterance])))
        if not keep.all():
            self._beam, self._utterances = self._beam.take(keep), self._utterances[keep]

    def _leave(self, ended: list[tuple[Beam, Ints]]) -> None:
        """Store in each state its hypotheses, its part of the history, and the committed labels."""
        parts = [(self._beam, self._utterances), *reversed(ended)]
        beam = join([part for part, _ in parts])
        owners = np.concatenate([part for _, part in parts])
        before = self._committed_paths()
        trees, beam.node = self._history.split(beam.node, owners, self._roots)
        starts = np.searchsorted(owners, np.arange(len(self._states) + 1))
        for i, state in enumerate(self._states):
            state.held.append(self._blocks[i])
            state.beam = beam.take(slice(starts[i], starts[i + 1]))
            state.history = trees[i]
            state.frames += int(self._lengths[i])

        # The first commit of each state, then the second, so that the block length does not matter.
        for number in range(max(map(len, before))):
            now = [i for i, commits in enumerate(before) if number < len(commits)]
            for i in now:
                path, share, _ = before[i][number]
                self._states[i].committed += path
                self._states[i].committed_confidence += [share] * len(path)
            limits = [before[i][number][2] for i in now]
            _align_words([self._states[i] for i in now], limits, self._space)

    def _committed_paths(self) -> list[list[tuple[list[tuple[int, int]], float, int]]]:
        """(labels with frames, share, last frame) of every commit of each utterance."""
        found = []
        for commits, root in zip(self._commits, self._old_roots.tolist(), strict=True):
            paths = []
            for node, share, limit in commits:
                paths.append((self._history.path(node, root), share, limit))
                root = node
            found.append(paths)
        return found


def through_last_space(labels: Sequence[int], space: int) -> int:
    """Count the labels of complete words: those up to the last space."""
    return len(labels) - labels[::-1].index(space) if space in labels else 0


def _align_words(states: Sequence[BeamState], limits: Sequence[int], space: int) -> None:
    """Align committed labels, complete words or old ones, and drop their frames."""
    ready: list[tuple[BeamState, int, FloatArray]] = []
    for state, limit in zip(states, limits, strict=True):
        labels = [label for label, _ in state.committed]
        if not labels:  # all that may still be heard comes after the limit
            _forget(state, limit + 1)
            continue
        count = through_last_space(labels, space)
        if limit - state.committed[-1][1] > OLD:
            count = len(labels)
        if count:
            held = np.concatenate(state.held)[: limit + 1 - state.held_from]
            ready.append((state, count, held))
    spans = align_batch(
        [held for _, _, held in ready],
        [[label for label, _ in state.committed] for state, _, _ in ready],
        [state.held_from for state, _, _ in ready],
    )
    for (state, count, _), found in zip(ready, spans, strict=True):
        state.labels += found[:count]
        state.confidence += state.committed_confidence[:count]
        del state.committed[:count], state.committed_confidence[:count]
        _forget(state, found[count - 1][2] + 1)


def _forget(state: BeamState, first: int) -> None:
    """Drop the log-probabilities of the frames before this one."""
    if first > state.held_from:
        state.held = [np.concatenate(state.held)[first - state.held_from :].copy()]
        state.held_from = first
