"""What a search knows beside the network: language models, a lexicon, a closed list of phrases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.language_model import LanguageModel
from ds2deploy.runtimes.decoding.trie import OUTSIDE, ROOT, build_trie
from ds2deploy.runtimes.errors import AlphabetError

States = npt.NDArray[np.int64]
"""(columns, hypotheses)"""
Columns = tuple[npt.NDArray[np.int64], ...]
"""Columns of states, (hypotheses,) each."""
Ints = npt.NDArray[np.int64]
Gains = npt.NDArray[np.float64]
"""(hypotheses,) natural logarithms; -inf forbids."""


class Scorer(Protocol):
    """Judges hypotheses label by label; what it remembers of one are some integers.

    Attributes:
        start: state of the empty hypothesis.
        most: nats that one label may add at most.
    """

    start: tuple[int, ...]
    most: float

    def step(
        self, states: States, labels: npt.NDArray[np.int64], utterances: npt.NDArray[np.int64]
    ) -> tuple[Columns, Gains | None]:
        """Extend hypotheses by a label each.

        Args:
            states: (columns, n) before the label.
            labels: (n,), none of them the blank.
            utterances: (n,) index of the utterance that the hypothesis is of.

        Returns:
            The states after it, and what it adds to the scores; None adds nothing.
        """

    def end(self, states: States, utterances: npt.NDArray[np.int64]) -> Gains:
        """Judge the end of the utterance."""


class CharacterScorer:
    """A character n-gram model; see `Scorer`.

    Args:
        model: of characters.
        weight: factor of its log-probabilities.
    """

    most = 0.0

    def __init__(self, model: LanguageModel, weight: float) -> None:
        tables = model.dense()
        self._next, self._weight = tables.next, weight
        self._scores, self._ends = tables.score, tables.end
        self.start: tuple[int, ...] = (model.start,)

    def step(
        self, states: States, labels: npt.NDArray[np.int64], utterances: npt.NDArray[np.int64]
    ) -> tuple[Columns, Gains]:
        """See `Scorer`."""
        state = states[0]
        gains = self._weight * self._scores[state, labels].astype(np.float64)
        return (self._next[state, labels].astype(np.int64),), gains

    def end(self, states: States, utterances: npt.NDArray[np.int64]) -> Gains:
        """See `Scorer`."""
        return np.asarray(self._weight * self._ends[states[0]].astype(np.float64))


class PhraseScorer:
    """A closed list: the whole utterance is one of these phrases; see `Scorer`.

    Args:
        phrases: at least one.
        alphabet: labels of the model.
    """

    start: tuple[int, ...] = (ROOT,)
    most = 0.0

    def __init__(self, phrases: Sequence[str], alphabet: Alphabet) -> None:
        # A space may follow a phrase, and one may stand before it.
        entries = [spelled(phrase, alphabet, "closed list") for phrase in phrases]
        space = _space(alphabet)
        if space is None:
            trie = build_trie(entries, len(alphabet))
        else:
            trie = build_trie([*entries, *([*entry, space] for entry in entries)], len(alphabet))
            trie.child[ROOT, space] = ROOT
        self._child = trie.child
        self._ends = np.where(trie.entry >= 0, 0.0, -np.inf)

    def step(
        self, states: States, labels: npt.NDArray[np.int64], utterances: npt.NDArray[np.int64]
    ) -> tuple[Columns, Gains]:
        """See `Scorer`."""
        following = self._child[states[0], labels].astype(np.int64)
        return (following,), np.where(following == OUTSIDE, -np.inf, 0.0)

    def end(self, states: States, utterances: npt.NDArray[np.int64]) -> Gains:
        """See `Scorer`."""
        return np.asarray(self._ends[states[0]])


class WordScorer:
    """Words of a lexicon, and a word n-gram model of them; see `Scorer`.

    A word is scored when it ends. Before that, its beginning is scored with the most frequent word
    that it may become (language model look-ahead), so that the beam does not fill with beginnings
    of rare words.

    Args:
        words: the lexicon.
        alphabet: labels of the model; with a space.
        model: of words; None where all words are equally likely.
        weight: factor of its log-probabilities.
        word_score: added for every word.
        unknown_letter: added for every letter of a word that is not in the lexicon, negative;
            None allows no such word.
    """

    def __init__(
        self,
        words: Sequence[str],
        alphabet: Alphabet,
        model: LanguageModel | None,
        weight: float,
        word_score: float,
        unknown_letter: float | None,
    ) -> None:
        space = _space(alphabet)
        assert space is not None
        self._trie = build_trie(
            [spelled(word, alphabet, "lexicon") for word in words], len(alphabet)
        )
        self._child, self._labels = self._trie.child.ravel(), len(alphabet)
        self._space, self._word_score, self._weight = space, word_score, weight
        self._unknown = -np.inf if unknown_letter is None else unknown_letter
        self._model = model
        self._look_ahead = np.zeros(len(self._trie.entry))
        self.start: tuple[int, ...] = (ROOT, 0)
        if model is not None:
            self.start = (ROOT, model.start)
            # One more for what is not in the lexicon, which entry -1 gives.
            self._ids = np.append(model.word_ids(list(words)), model.unknown)
            self._look_ahead = self._best_below(model)
        # Where a word ends, the look-ahead is taken back; a word is never likelier than 1.
        self.most = max(0.0, word_score) - float(self._look_ahead.min())

    def step(
        self, states: States, labels: npt.NDArray[np.int64], utterances: npt.NDArray[np.int64]
    ) -> tuple[Columns, Gains]:
        """See `Scorer`."""
        node, history = states
        following = self._child.take(node * self._labels + labels).astype(np.int64)
        gains = self._look_ahead.take(following) - self._look_ahead.take(node)
        spaces = labels == self._space
        outside = following == OUTSIDE
        outside &= ~spaces
        if outside.any():
            # The first letter that leaves the lexicon pays for those before it too.
            gains[outside] += self._unknown * (self._trie.depth[node[outside]] + 1)
        if spaces.any():
            following[spaces] = ROOT
            history = history.copy()
            history[spaces], gains[spaces] = self._end_word(node[spaces], history[spaces])
        return (following, history), gains

    def end(self, states: States, utterances: npt.NDArray[np.int64]) -> Gains:
        """See `Scorer`; the last word ends too."""
        history, gains = self._end_word(*states)
        if self._model is not None:
            gains += self._weight * self._model.end_score(history)
        return gains

    def _end_word(self, node: Ints, history: Ints) -> tuple[Ints, Gains]:
        """End the words that end at these nodes; of the root, there is none."""
        gains = -self._look_ahead[node]
        entry = self._trie.entry[node]
        unknown = (entry < 0) & (node != OUTSIDE) & (node != ROOT)  # a beginning of known words
        gains[unknown] += self._unknown * self._trie.depth[node[unknown]]
        words = node != ROOT
        gains[words] += self._word_score
        if self._model is not None and words.any():
            history = history.copy()
            history[words], scores = self._model.score(history[words], self._ids[entry[words]])
            gains[words] += self._weight * scores
        return history, gains

    def _best_below(self, model: LanguageModel) -> Gains:
        """Weighted log-probability of the most frequent word below every node."""
        trie = self._trie
        _, scores = model.score(np.full(len(self._ids), model.empty), self._ids)
        best = np.where(trie.entry >= 0, scores[trie.entry], -np.inf)
        for depth in range(int(trie.depth.max()), 1, -1):
            nodes = np.flatnonzero(trie.depth == depth)
            np.maximum.at(best, trie.parent[nodes], best[nodes])
        best[[OUTSIDE, ROOT]] = 0.0
        return self._weight * best


def spelled(entry: str, alphabet: Alphabet, what: str) -> list[int]:
    """Spell a word or a phrase in labels.

    Args:
        entry: word or phrase; the alphabet's normalisation is applied.
        alphabet: labels of the model.
        what: what it is an entry of, for the error.

    Raises:
        AlphabetError: a character has no label.
    """
    if unknown := alphabet.unknown(entry):
        raise AlphabetError(
            f"{what}: no label for {', '.join(map(repr, unknown))} in {entry!r}; write it with the "
            f"labels of the model, {alphabet.labels[1:]!r}"
        )
    return alphabet.encode(entry)


def _space(alphabet: Alphabet) -> int | None:
    return alphabet.labels.find(" ") if " " in alphabet.labels else None
