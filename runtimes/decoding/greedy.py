"""Greedy CTC decoding, with the time of every character and word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.alphabet import BLANK, Alphabet
from ds2deploy.runtimes.features import FloatArray, IntArray


class Span(msgspec.Struct, frozen=True):
    """A character or a word and when it was spoken.

    Attributes:
        text: the character or word.
        start: in seconds from the beginning of the audio.
        end: in seconds.
    """

    text: str
    start: float
    end: float


class Transcript(msgspec.Struct, frozen=True):
    """What was recognised in one utterance.

    Attributes:
        text: the words.
        words: each word with its time.
        chars: each character, spaces included, with its time.
        score: mean log-probability of the best label of each frame; 0 is certain.
        duration: of the audio, in seconds.
    """

    text: str
    words: tuple[Span, ...]
    chars: tuple[Span, ...]
    score: float
    duration: float


def greedy_labels(log_probs: npt.NDArray[np.floating[Any]]) -> list[tuple[int, int, int]]:
    """Collapse the best path: repeats become one label, blanks go (Graves et al., 2006).

    Args:
        log_probs: (time, labels) float32 or float64, valid frames only.

    Returns:
        (label, first frame, last frame) of every label that remains.
    """
    best = log_probs.argmax(axis=1)
    edges = np.flatnonzero(np.diff(best)) + 1
    starts = [0, *edges.tolist()]
    ends = [*(edges - 1).tolist(), len(best) - 1]
    return [
        (int(best[start]), start, end)
        for start, end in zip(starts, ends, strict=True)
        if best[start] != BLANK
    ]


def greedy_text(log_probs: npt.NDArray[np.floating[Any]], alphabet: Alphabet) -> str:
    """The words alone, without leading, trailing or repeated spaces.

    Args:
        log_probs: (time, labels) float32 or float64, valid frames only.
        alphabet: the model's labels.
    """
    return " ".join(alphabet.decode(label for label, _, _ in greedy_labels(log_probs)).split())


def decode_greedy(
    log_probs: FloatArray, alphabet: Alphabet, frame_s: float, duration_s: float
) -> Transcript:
    """Decode one utterance.

    Args:
        log_probs: (time, labels) float32, valid frames only.
        alphabet: the model's labels.
        frame_s: seconds from one output frame to the next.
        duration_s: of the utterance; no time goes past it.

    Returns:
        The transcript. Leading, trailing and repeated spaces are not part of its text.
    """
    score = float(log_probs.max(axis=1).mean())
    return make_transcript(greedy_labels(log_probs), alphabet, frame_s, duration_s, score)


def decode_batch(
    log_probs: FloatArray,
    output_lengths: IntArray,
    durations_s: Sequence[float],
    alphabet: Alphabet,
    frame_s: float,
) -> list[Transcript]:
    """Decode what a session gives for a batch.

    Args:
        log_probs: (batch, time, labels) float32, meaningless past output_lengths.
        output_lengths: (batch,) int64.
        durations_s: of each utterance.
        alphabet: the model's labels.
        frame_s: seconds from one output frame to the next.
    """
    return [
        decode_greedy(rows[:length], alphabet, frame_s, duration_s)
        for rows, length, duration_s in zip(log_probs, output_lengths, durations_s, strict=True)
    ]


Labels = Sequence[tuple[int, int, int]]
"""(label, first frame, last frame), without blanks and repeats."""


def make_transcript(
    labels: Labels, alphabet: Alphabet, frame_s: float, duration_s: float, score: float
) -> Transcript:
    """The transcript of a collapsed path; the arguments are those of `decode_greedy`."""
    chars = _chars(labels, alphabet, frame_s, duration_s)
    words = _words(chars)
    return Transcript(
        text=" ".join(word.text for word in words),
        words=tuple(words),
        chars=tuple(chars),
        score=score,
        duration=round(duration_s, 3),
    )


def words_of(
    labels: Labels, alphabet: Alphabet, frame_s: float, duration_s: float
) -> tuple[Span, ...]:
    """The words of a part of a collapsed path."""
    return tuple(_words(_chars(labels, alphabet, frame_s, duration_s)))


def _chars(labels: Labels, alphabet: Alphabet, frame_s: float, duration_s: float) -> list[Span]:
    return [
        Span(
            alphabet.labels[label],
            round(min(first * frame_s, duration_s), 3),
            round(min((last + 1) * frame_s, duration_s), 3),
        )
        for label, first, last in labels
    ]


def _words(chars: list[Span]) -> list[Span]:
    words: list[Span] = []
    letters: list[Span] = []
    for char in [*chars, Span(" ", 0.0, 0.0)]:
        if char.text != " ":
            letters.append(char)
        elif letters:
            text = "".join(letter.text for letter in letters)
            words.append(Span(text, letters[0].start, letters[-1].end))
            letters = []
    return words
