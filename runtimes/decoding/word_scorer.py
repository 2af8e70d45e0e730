"""Scorer of a lexicon and a word model in a beam search."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.language_model import LanguageModel
from ds2deploy.runtimes.decoding.scorers import (
    Columns,
    Gains,
    Ints,
    States,
    Weights,
    space_label,
    spelled,
)
from ds2deploy.runtimes.decoding.trie import OUTSIDE, ROOT, build_trie


class WordScorer:
    """Scorer of a lexicon and a word n-gram model; see `Scorer`.

    A word is scored when it ends. Until then, its beginning has the score of the most frequent word
    that begins so (language model look-ahead). This keeps the beam from filling up with the
    beginnings of rare words.

    Args:
        words: the lexicon.
        alphabet: labels of the model; with a space.
        model: word model; None makes all words equally likely.
        weights: weights, of which `words` and `word_score` are used.
        unknown_letter: score added for each letter of a word outside the lexicon, in nats, at most
            0; None allows no such words.
    """

    def __init__(
        self,
        words: Sequence[str],
        alphabet: Alphabet,
        model: LanguageModel | None,
        weights: Weights,
        unknown_letter: float | None,
    ) -> None:
        space = space_label(alphabet)
        assert space is not None
        self._trie = build_trie(
            [spelled(word, alphabet, "lexicon") for word in words], len(alphabet)
        )
        self._child, self._labels = self._trie.child.ravel(), len(alphabet)
        self._space = space
        self._unknown = -np.inf if unknown_letter is None else unknown_letter
        self._model = model
        self._best = np.zeros(len(self._trie.entry))
        self.start: tuple[int, ...] = (ROOT, 0)
        if model is not None:
            self.start = (ROOT, model.start)
            # One more for what is not in the lexicon, which entry -1 gives.
            self._ids = np.append(model.word_ids(list(words)), model.unknown)
            self._best = self._best_below(model)
        self._weigh(weights)

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

    def weighted(self, weights: Weights) -> WordScorer:
        """See `Scorer`."""
        other = copy(self)
        other._weigh(weights)
        return other

    def _weigh(self, weights: Weights) -> None:
        self._weight, self._word_score = weights.words, weights.word_score
        self._look_ahead = self._weight * self._best
        # Where a word ends, the look-ahead is taken back; a word is never likelier than 1.
        self.most = max(0.0, self._word_score) - float(self._look_ahead.min())

    def _end_word(self, node: Ints, history: Ints) -> tuple[Ints, Gains]:
        """Score the words that end at these nodes; no word ends at the root."""
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
        """Compute the log-probability of the most frequent word below each node."""
        trie = self._trie
        _, scores = model.score(np.full(len(self._ids), model.empty), self._ids)
        best = np.where(trie.entry >= 0, scores[trie.entry], -np.inf)
        for depth in range(int(trie.depth.max()), 1, -1):
            nodes = np.flatnonzero(trie.depth == depth)
            np.maximum.at(best, trie.parent[nodes], best[nodes])
        best[[OUTSIDE, ROOT]] = 0.0
        return np.asarray(best)
