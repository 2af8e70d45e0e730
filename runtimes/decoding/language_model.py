"""An n-gram language model that scores many hypotheses at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.decoding.language_model_file import (
    END,
    REMAKE,
    SPACE,
    START,
    UNKNOWN,
    Arrays,
    LanguageModelHeader,
    read_file,
)
from ds2deploy.runtimes.errors import ConfigError, ModelFileError
from ds2deploy.runtimes.features import IntArray

MOST_DENSE_BYTES = 256_000_000
"""Maximum size of the tables of `LanguageModel.dense`, in bytes."""

MANY_WORDS = 1000
"""Number of words above which a dictionary is used; for fewer, a binary search is faster."""


def read_language_model(path: Path) -> LanguageModel:
    """Open a `.lm` file; its arrays are mapped, so that processes share their memory.

    Raises:
        MissingFileError: the file does not exist.
        ModelFileError: the file is not a language model, is damaged, or has a newer format.
    """
    return LanguageModel(path, *read_file(path))


class DenseModel(NamedTuple):
    """A character model as tables; row `s` is the state `s` of `LanguageModel.score`.

    Attributes:
        next: (states, labels) int32, state after a label.
        score: (states, labels) float32, natural logarithm of the label's probability.
        end: (states,) float32, natural logarithm of the probability that the text ends.
    """

    next: npt.NDArray[np.int32]
    score: npt.NDArray[np.float32]
    end: npt.NDArray[np.float32]


class LanguageModel:
    """Back-off n-gram model.

    A state stands for the last words of a text, as far as the model uses them: after two texts with
    the same state, all probabilities are equal. State 0 stands for no words.

    Attributes:
        path: file of the model.
        header: facts about the model.
        unknown: id of the word that stands for all unknown words.
        start: state at the start of a sentence.
        empty: state without previous words: 0.
    """

    empty = 0

    def __init__(self, path: Path, header: LanguageModelHeader, arrays: Arrays) -> None:
        self.path, self.header = path, header
        self._keys, self._scores, self._links, self._backoffs, self._offsets, text = arrays
        self._text = text.data
        self._size = header.counts[0]
        self.unknown, start, self._end = self._word_ids([UNKNOWN, START, END])
        if self._size in (self.unknown, start, self._end):
            raise ModelFileError(
                f"{path}: has no {UNKNOWN}, {START} or {END}; {REMAKE} {path.name}"
            )
        self.start = int(self._states(np.array([1 + start]))[0])

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return read_language_model, (self.path,)

    def __len__(self) -> int:
        """Return the number of words in the vocabulary, including the special ones."""
        return self._size

    @property
    def kind(self) -> str:
        """Unit of the n-grams: `words` or `characters`."""
        return self.header.kind

    @cached_property
    def words(self) -> list[str]:
        """Words of the vocabulary, sorted; the index of a word is its id."""
        ends = self._offsets.tolist()
        try:
            return [str(self._text[a:b], "utf-8") for a, b in pairwise(ends)]
        except UnicodeDecodeError:
            raise ModelFileError(
                f"{self.path}: damaged vocabulary; {REMAKE} {self.path.name}"
            ) from None

    def word_ids(self, words: Sequence[str]) -> IntArray:
        """Look up the ids of words; `unknown` for words outside the vocabulary.

        A character model has the characters of the alphabet, and `<space>` for the space.
        """
        ids = np.array(self._word_ids(words), np.int64)
        ids[ids == self._size] = self.unknown
        return ids

    def score(
        self, states: npt.NDArray[np.integer], words: npt.NDArray[np.integer]
    ) -> tuple[IntArray, npt.NDArray[np.float64]]:
        """Score one word after each state.

        Args:
            states: (hypotheses,) states returned by this method, `start` or `empty`.
            words: (hypotheses,) ids of words, below `len(self)`.

        Returns:
            The states after the words, and the natural logarithms of the words' probabilities.
        """
        found = self._find(states, words)
        total = self._scores[found].astype(np.float64)
        missed = np.flatnonzero(found == 0)
        if len(missed):
            found[missed], total[missed] = self._back_off(states[missed], words[missed])
        return self._states(found), total

    def end_score(self, states: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Compute the natural logarithm of the probability that the sentence ends, per state."""
        return self.score(states, np.full(len(states), self._end))[1]

    def check_labels(self, labels: str) -> None:
        """Refuse a language model that was made for other labels.

        Args:
            labels: labels of the acoustic model; the blank may be any character.

        Raises:
            ConfigError: the labels differ.
        """
        if labels[1:] != self.header.labels[1:]:
            raise ConfigError(
                f"{self.path}: was made for the labels {self.header.labels[1:]!r}, but the model "
                f"has {labels[1:]!r}; {REMAKE} {self.path.name} --labels MODEL"
            )

    def dense(self) -> DenseModel:
        """Make tables of a character model, for look-ups without a search.

        Column 0, the blank, is unused. A label that the model does not know scores as `<unk>`.

        Raises:
            ConfigError: this is a word model, or the tables would be larger than 256 MB.
        """
        labels = self.header.labels
        if self.kind != "characters":
            raise ConfigError(f"{self.path}: a language model of words; expected one of characters")
        states = len(self._backoffs)
        if (size := states * len(labels) * 8) > MOST_DENSE_BYTES:
            raise ConfigError(
                f"{self.path}: its table of {states} states and {len(labels)} labels takes "
                f"{size / 1e6:.0f} MB, above the limit of {MOST_DENSE_BYTES / 1e6:.0f} MB; make a "
                "smaller model: ds2deploy lm with a lower --order, or --prune 0,0,1"
            )
        ids = self.word_ids([SPACE if label == " " else label for label in labels])
        ids[0] = self._end  # its scores take the unused column
        unknown = np.flatnonzero(ids == self.unknown)
        columns = np.full(self._size, -1)
        columns[ids] = np.arange(len(labels))  # unknown labels: in the last one's column first
        score = np.zeros((states, len(labels)), np.float32)
        to = np.zeros((states, len(labels)), np.int32)
        for first, end in [(0, 1), *self.header.blocks[:-1]]:
            rows = np.arange(first, end)
            suffixes = self._suffixes(rows)
            if first:
                score[rows] = score[suffixes] + self._backoffs[rows, None]
                to[rows] = to[suffixes]
            # Continuations of an entry follow the order's own entries in the arrays.
            low, high = np.searchsorted(self._keys, [first * self._size, end * self._size])
            parents, words = np.divmod(self._keys[low:high], self._size)
            used = columns[words] >= 0
            entries = np.arange(low, high)[used]
            place = parents[used], columns[words[used]]
            score[place], to[place] = self._scores[entries], self._states(entries)
            if len(unknown):
                score[first:end, unknown] = score[first:end, unknown[-1:]]
                to[first:end, unknown] = to[first:end, unknown[-1:]]
        ends = score[:, 0].copy()
        score[:, 0] = to[:, 0] = 0
        return DenseModel(to, score, ends)

    def _find(
        self, states: npt.NDArray[np.integer], words: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.intp]:
        """Entries of words after states; 0 where there is none."""
        wanted = np.multiply(states, self._size, dtype=np.int64) + words
        entries = self._keys.searchsorted(wanted)
        return np.where(self._keys.take(entries, mode="clip") == wanted, entries, 0)

    def _back_off(
        self, states: npt.NDArray[np.integer], words: npt.NDArray[np.integer]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """Entries and scores of words that do not follow their states."""
        # All suffixes are looked up together, down to the empty one, which every word follows:
        # calling numpy takes longer than searching a few hundred keys.
        chain = np.empty((self.header.order, len(states)), np.int64)
        chain[0] = states
        for n in range(1, len(chain)):
            chain[n] = self._suffixes(chain[n - 1])
        entries = self._find(chain[1:], words)
        first = (entries > 0).argmax(0)
        found = entries[first, np.arange(len(first))]
        passed = np.arange(len(chain))[:, None] <= first
        return found, (self._backoffs[chain] * passed).sum(0, np.float64) + self._scores[found]

    def _states(self, entries: npt.NDArray[np.intp]) -> IntArray:
        """Find the state after each entry: itself, or the one it leads to."""
        to = self._links[entries]
        return np.where(to < 0, ~to, entries)

    def _suffixes(self, entries: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Find the state that each entry backs off to."""
        to = self._links[entries]
        suffixes: npt.NDArray[np.int32] = to ^ (to >> 31)  # the complement of what is below 0
        return suffixes

    def _word_ids(self, words: Sequence[str]) -> list[int]:
        """Ids of words; the size of the vocabulary for one that is not in it."""
        if len(words) > MANY_WORDS:
            return [self._index.get(word, self._size) for word in words]
        found = []
        for word in words:
            sought = word.encode("utf-8", "surrogateescape")
            i = bisect_left(range(self._size), sought, key=self._word)
            found.append(i if i < self._size and self._word(i) == sought else self._size)
        return found

    def _word(self, i: int) -> bytes:
        return bytes(self._text[self._offsets[i] : self._offsets[i + 1]])

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}
