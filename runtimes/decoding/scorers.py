"""Scorers of a beam search: the protocol, a character model, a closed list of phrases."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.language_model import LanguageModel
from ds2deploy.runtimes.decoding.trie import OUTSIDE, ROOT, build_trie
from ds2deploy.runtimes.errors import AlphabetError

States = npt.NDArray[np.int64]
"""States of hypotheses, (columns, hypotheses)."""
Columns = tuple[npt.NDArray[np.int64], ...]
"""Columns of states, (hypotheses,) each."""
Ints = npt.NDArray[np.int64]
Gains = npt.NDArray[np.float64]
"""Gains (hypotheses,) in nats; -inf forbids a hypothesis."""


class Weights(NamedTuple):
    """Weights of the language models, relative to the network.

    Attributes:
        words: factor of the log-probabilities of a word model.
        characters: factor of the log-probabilities of a character model.
        word_score: score added for each word, in nats.
    """

    words: float
    characters: float
    word_score: float


class Scorer(Protocol):
    """Scores hypotheses label by label; its state of a hypothesis consists of integers.

    Attributes:
        start: state of the empty hypothesis.
        most: maximum gain of one label, in nats.
    """

    start: tuple[int, ...]
    most: float

    def step(
        self, states: States, labels: npt.NDArray[np.int64], utterances: npt.NDArray[np.int64]
    ) -> tuple[Columns, Gains | None]:
        """Extend each hypothesis by one label.

        Args:
            states: (columns, n) states before the label.
            labels: (n,) labels, without blanks.
            utterances: (n,) index of each hypothesis' utterance.

        Returns:
            The states after the label, and the gains; None for no gains.
        """

    def end(self, states: States, utterances: npt.NDArray[np.int64]) -> Gains:
        """Score the end of the utterance."""


class WeightedScorer(Scorer, Protocol):
    """Scorer that is the same for all utterances, with weights that can be changed."""

    def weighted(self, weights: Weights) -> WeightedScorer:
        """Make a scorer with other weights that shares its tables with this one."""


class CharacterScorer:
    """Scorer of a character n-gram model; see `Scorer`.

    Args:
        model: character model.
        weights: weights, of which only `characters` is used.
    """

    most = 0.0

    def __init__(self, model: LanguageModel, weights: Weights) -> None:
        tables = model.dense()
        self._next, self._weight = tables.next, weights.characters
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

    def weighted(self, weights: Weights) -> CharacterScorer:
        """See `Scorer`."""
        other = copy(self)
        other._weight = weights.characters
        return other


class PhraseScorer:
    """Scorer of a closed list, of which each utterance is one phrase; see `Scorer`.

    Args:
        phrases: phrases, at least one.
        alphabet: labels of the model.
    """

    start: tuple[int, ...] = (ROOT,)
    most = 0.0

    def __init__(self, phrases: Sequence[str], alphabet: Alphabet) -> None:
        # Spaces may stand before, between and after the words, and count as one.
        entries = [spelled(phrase, alphabet, "closed list") for phrase in phrases]
        space = space_label(alphabet)
        if space is None:
            trie = build_trie(entries, len(alphabet))
        else:
            trie = build_trie([*entries, *([*entry, space] for entry in entries)], len(alphabet))
            trie.child[ROOT, space] = ROOT
            after = np.unique(trie.child[:, space])
            after = after[after != OUTSIDE]
            repeated = trie.child[after, space] == OUTSIDE
            trie.child[after[repeated], space] = after[repeated]
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

    def weighted(self, weights: Weights) -> PhraseScorer:
        """See `Scorer`; a list has no weights."""
        return self


def spelled(entry: str, alphabet: Alphabet, what: str) -> list[int]:
    """Spell a word or a phrase in labels.

    Args:
        entry: word or phrase; the alphabet's normalisation is applied.
        alphabet: labels of the model.
        what: name of the list that contains the entry, for the error.

    Raises:
        AlphabetError: a character has no label.
    """
    if unknown := alphabet.unknown(entry):
        raise AlphabetError(
            f"{what}: no label for {', '.join(map(repr, unknown))} in {entry!r}; write it with the "
            f"labels of the model: {alphabet.labels[1:]!r}"
        )
    return alphabet.encode(entry)


def space_label(alphabet: Alphabet) -> int | None:
    """Find the label of the space; None if there is none."""
    return alphabet.labels.find(" ") if " " in alphabet.labels else None
