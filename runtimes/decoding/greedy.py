"""Greedy CTC decoding, with the time of every character and word.

Text of a stream never changes, but its last word may grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.alphabet import BLANK, Alphabet
from ds2deploy.runtimes.decoding.transcript import (
    Transcript,
    Update,
    Word,
    make_transcript,
    words_of,
)
from ds2deploy.runtimes.features import FloatArray


def greedy_labels(log_probs: npt.NDArray[np.floating[Any]]) -> list[tuple[int, int, int]]:
    """Collapse the best path: merge repeats, remove blanks (Graves et al., 2006).

    Args:
        log_probs: (time, labels) float32 or float64, valid frames only.

    Returns:
        (label, first frame, last frame) of every label that remains.
    """
    return [run for run in _runs(log_probs.argmax(axis=1))[0] if run[0] != BLANK]


def greedy_text(log_probs: npt.NDArray[np.floating[Any]], alphabet: Alphabet) -> str:
    """Decode the words alone, without leading, trailing or repeated spaces.

    Args:
        log_probs: (time, labels) float32 or float64, valid frames only.
        alphabet: labels of the model.
    """
    return " ".join(alphabet.decode(label for label, _, _ in greedy_labels(log_probs)).split())


@dataclass
class GreedyState:
    """State of one utterance in greedy decoding.

    Attributes:
        frames: number of frames so far.
        score: sum of the log-probabilities of the best labels.
        last: best label of the last frame.
        labels: (label, first frame, last frame) of every character.
        confidence: highest probability of each of those labels.
        word_start: index of the first character after the last space.
        stable: words before that character.
        new: stable words that no update has returned yet.
    """

    frames: int = 0
    score: float = 0.0
    last: int = BLANK
    labels: list[tuple[int, int, int]] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    word_start: int = 0
    stable: str = ""
    new: list[Word] = field(default_factory=list)


class GreedyDecoder:
    """Decodes the best label of every frame; see `Decoder` for its methods.

    Args:
        alphabet: labels of the model.
        frame_s: seconds from one output frame to the next.
    """

    def __init__(self, alphabet: Alphabet, frame_s: float) -> None:
        self._alphabet, self._frame_s = alphabet, frame_s

    def start(self, live: bool = False) -> GreedyState:
        """See `Decoder`."""
        return GreedyState()

    def advance(self, states: Sequence[GreedyState], blocks: Sequence[FloatArray]) -> None:
        """See `Decoder`."""
        for state, block in zip(states, blocks, strict=True):
            if len(block):
                self._read(state, block)

    def update(self, state: GreedyState, duration_s: float = float("inf")) -> Update:
        """See `Decoder`; the tail is the beginning of the current word."""
        new, state.new = tuple(state.new), []
        tail = self._last_words(state, duration_s)
        return Update(
            stable=state.stable,
            tail=" ".join(word.text for word in tail),
            words=new,
            tail_words=tail,
        )

    def finish(self, state: GreedyState, duration_s: float) -> Transcript:
        """See `Decoder`; the score is the mean log-probability of the best labels."""
        score = state.score / state.frames if state.frames else 0.0
        return make_transcript(
            state.labels, self._alphabet, self._frame_s, duration_s, score, state.confidence
        )

    def _read(self, state: GreedyState, block: FloatArray) -> None:
        best, probabilities = block.argmax(axis=1), np.exp(block.max(axis=1))
        state.score += float(block.max(axis=1).sum(dtype=np.float64))
        runs, starts = _runs(best, state.frames)
        peaks = np.maximum.reduceat(probabilities, starts).tolist()
        for (label, first, last), peak in zip(runs, peaks, strict=True):
            if label == BLANK:
                continue
            if first == state.frames and label == state.last:  # the letter of the block before
                state.labels[-1] = (label, state.labels[-1][1], last)
                state.confidence[-1] = max(state.confidence[-1], peak)
                continue
            state.labels.append((label, first, last))
            state.confidence.append(peak)
            if self._alphabet.labels[label] == " ":
                self._close_word(state)
        state.last = int(best[-1])
        state.frames += len(block)

    def _close_word(self, state: GreedyState) -> None:
        words = self._last_words(state, float("inf"))
        state.new += words
        state.stable = " ".join([state.stable, *(word.text for word in words)]).lstrip()
        state.word_start = len(state.labels)

    def _last_words(self, state: GreedyState, duration_s: float) -> tuple[Word, ...]:
        """Return the words that no space ended yet."""
        start = state.word_start
        labels, confidence = state.labels[start:], state.confidence[start:]
        return words_of(labels, self._alphabet, self._frame_s, duration_s, confidence)


def _runs(
    best: npt.NDArray[np.intp], frame: int = 0
) -> tuple[list[tuple[int, int, int]], npt.NDArray[np.intp]]:
    """(label, first frame, last frame) of every run of one label, and where each begins.

    Args:
        best: (time,) at least one.
        frame: number of the first frame.
    """
    starts = np.flatnonzero(np.concatenate([[True], best[1:] != best[:-1]]))
    ends = np.append(starts[1:], len(best)) - 1
    labels = best[starts].tolist()
    first, last = (starts + frame).tolist(), (ends + frame).tolist()
    return list(zip(labels, first, last, strict=True)), starts
