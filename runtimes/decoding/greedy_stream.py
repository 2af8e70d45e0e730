"""Greedy CTC decoding of a stream: what is read never changes, but its last word may grow."""

from __future__ import annotations

import msgspec
import numpy as np

from ds2deploy.runtimes.alphabet import BLANK, Alphabet
from ds2deploy.runtimes.decoding.greedy import Span, Transcript, make_transcript, words_of
from ds2deploy.runtimes.features import FloatArray


class Update(msgspec.Struct, frozen=True):
    """What a stream has come to.

    Attributes:
        stable: all words so far that nothing can change any more.
        tail: the last word as far as it was heard; more of it may follow.
        words: the stable words that are new since the last update, with their times.
        tail_words: the tail, with its time; empty or one word.
    """

    stable: str
    tail: str
    words: tuple[Span, ...]
    tail_words: tuple[Span, ...]

    @property
    def text(self) -> str:
        """All that was heard so far."""
        return " ".join(part for part in (self.stable, self.tail) if part)


class StreamDecoder:
    """Collapses the best path as its frames come.

    Args:
        alphabet: the model's labels.
        frame_s: seconds from one output frame to the next.
    """

    def __init__(self, alphabet: Alphabet, frame_s: float) -> None:
        self._alphabet, self._frame_s = alphabet, frame_s
        self._frames = 0
        self._score = 0.0
        self._last = BLANK
        self._labels: list[tuple[int, int, int]] = []
        self._word_start = 0
        self._stable = ""
        self._new: list[Span] = []

    def take(self, log_probs: FloatArray) -> None:
        """Read more frames.

        Args:
            log_probs: (frames, labels) float32; there may be none.
        """
        best = log_probs.argmax(axis=1)
        self._score += float(log_probs.max(axis=1, initial=-np.inf).sum(dtype=np.float64))
        for label in best.tolist():
            if label == self._last and label != BLANK:
                self._labels[-1] = (label, self._labels[-1][1], self._frames)
            elif label != BLANK:
                self._labels.append((label, self._frames, self._frames))
                if self._alphabet.labels[label] == " ":
                    self._close_word()
            self._last = label
            self._frames += 1

    def update(self, duration_s: float = float("inf")) -> Update:
        """What is new.

        Args:
            duration_s: of the stream, if it has ended; no time goes past it.
        """
        new, self._new = tuple(self._new), []
        tail = self._words(self._labels[self._word_start :], duration_s)
        return Update(
            stable=self._stable,
            tail=" ".join(word.text for word in tail),
            words=new,
            tail_words=tail,
        )

    def finish(self, duration_s: float) -> Transcript:
        """The whole utterance, as `decode_greedy` gives it.

        Args:
            duration_s: of the stream.
        """
        score = self._score / self._frames if self._frames else 0.0
        return make_transcript(self._labels, self._alphabet, self._frame_s, duration_s, score)

    def _close_word(self) -> None:
        words = self._words(self._labels[self._word_start :], float("inf"))
        self._new += words
        self._stable = " ".join([self._stable, *(word.text for word in words)]).lstrip()
        self._word_start = len(self._labels)

    def _words(self, labels: list[tuple[int, int, int]], duration_s: float) -> tuple[Span, ...]:
        return words_of(labels, self._alphabet, self._frame_s, duration_s)
