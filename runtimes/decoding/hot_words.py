"""Hot words: phrases whose letters add to the score of the hypotheses that spell them.

An Aho-Corasick automaton over labels (Aho and Corasick, 1975) in dense tables: a step costs two
look-ups, whatever the number of phrases. If a match fails, its bonus is subtracted again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.scorers import Columns, Gains, States, spelled
from ds2deploy.runtimes.decoding.trie import OUTSIDE, ROOT, Trie, build_trie
from ds2deploy.runtimes.errors import AlphabetError, ConfigError

LONGEST = 200
"""Maximum number of characters in a phrase."""


class HotWords:
    """Phrases with weights, and an automaton that finds them.

    A phrase counts as whole words only.

    Args:
        phrases: phrases with their weights (nats per letter).
        alphabet: labels of the model.

    Attributes:
        phrases: phrases, spelled with the labels.
        start: state at the beginning of an utterance, or after a space.
        lost: state in the middle of a word that belongs to no phrase.
        next: (states, labels) int32, next state.
        enter: (states,) float64, score added on entering a state: the advance for the letters of
            an incomplete phrase, or the bonus of a complete one.
        leave: (states,) float64, score added on leaving a state: the advance, taken back.
        refund: (states,) float64, score added at the end of the utterance.

    Raises:
        AlphabetError: a character of a phrase has no label.
        ConfigError: a phrase is empty or too long, or the labels have no space.
    """

    def __init__(self, phrases: Mapping[str, float], alphabet: Alphabet) -> None:
        self.phrases = [_checked(phrase, alphabet) for phrase in phrases]
        space = alphabet.labels.index(" ")
        entries = [[space, *alphabet.encode(phrase), space] for phrase in self.phrases]
        weights = np.array(list(phrases.values()), np.float64)
        trie = build_trie(entries, len(alphabet))
        paid = _paid(trie, entries, weights)
        self.lost = ROOT
        self.next = trie.child.copy()
        self.next[ROOT, self.next[ROOT] == OUTSIDE] = ROOT
        self.start = int(self.next[ROOT, space])
        nodes = len(trie.entry)
        fail = np.full(nodes, ROOT)
        earned, total, ahead = np.zeros(nodes), np.zeros(nodes), np.zeros(nodes)
        # Nodes are numbered by depth: what a node fails to is done before it.
        for node in range(ROOT + 1, nodes):
            parent = int(trie.parent[node])
            if parent != ROOT:
                label = trie.child[parent].tolist().index(node)
                fail[node] = self.next[fail[parent], label]
            missing = self.next[node] == OUTSIDE
            self.next[node, missing] = self.next[fail[node], missing]
            suffix = node
            while suffix != ROOT:  # phrases that end here
                if (entry := int(trie.entry[suffix])) >= 0:
                    value = weights[entry] * (len(entries[entry]) - 2)
                    inside = total[parent] - total[_ancestor(trie, node, len(entries[entry]))]
                    earned[node] = max(earned[node], value - inside)
                suffix = int(fail[suffix])
            total[node] = total[parent] + earned[node]
            ahead[node] = max(0.0, paid[node] - total[node], ahead[fail[node]])
        self.enter, self.leave = ahead + earned, ahead
        self.refund = earned[self.next[:, space]] - ahead

    def step(
        self, states: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], Gains]:
        """Follow labels: from states and labels (n,) to new states and gains (n,)."""
        following = self.next[states, labels]
        return following.astype(np.int64), self.enter[following] - self.leave[states]

    def found(self, text: str) -> tuple[str, ...]:
        """Find the phrases that occur in a text."""
        padded = f" {text} "
        return tuple(phrase for phrase in self.phrases if f" {phrase} " in padded)


class HotWordScorer:
    """Scorer of hot words, which may differ between utterances; see `Scorer`.

    Args:
        lists: hot words of each utterance; None for an utterance without any.
    """

    start: tuple[int, ...] = (0,)

    def __init__(self, lists: Sequence[HotWords | None]) -> None:
        self._distinct = list({id(words): words for words in lists if words is not None}.values())
        numbers = {id(words): number for number, words in enumerate(self._distinct)}
        self._of = np.array([numbers.get(id(words), -1) for words in lists], np.int64)
        self.most = max((float(words.enter.max()) for words in self._distinct), default=0.0)

    def step(
        self, states: States, labels: npt.NDArray[np.int64], utterances: npt.NDArray[np.int64]
    ) -> tuple[Columns, Gains | None]:
        """See `Scorer`."""
        state = states[0]
        if not self._distinct:
            return (state,), None
        if len(self._distinct) == 1 and (self._of == 0).all():
            following, gains = self._distinct[0].step(state, labels)
            return (following,), gains
        following, gains = np.zeros(len(state), np.int64), np.zeros(len(state))
        of = self._of[utterances]
        for number, words in enumerate(self._distinct):
            mine = np.flatnonzero(of == number)
            following[mine], gains[mine] = words.step(state[mine], labels[mine])
        return (following,), gains

    def end(self, states: States, utterances: npt.NDArray[np.int64]) -> Gains:
        """See `Scorer`."""
        gains = np.zeros(states.shape[1])
        of = self._of[utterances]
        for number, words in enumerate(self._distinct):
            mine = np.flatnonzero(of == number)
            gains[mine] = words.refund[states[0, mine]]
        return gains


def _checked(phrase: str, alphabet: Alphabet) -> str:
    written = alphabet.normalize(phrase)
    if not written or len(written) > LONGEST:
        raise ConfigError(
            f"hot words: {phrase[:40]!r} has {len(written)} characters; expected 1 to {LONGEST}"
        )
    if ":" in alphabet.unknown(phrase):
        raise AlphabetError(
            f"hot words: {phrase[:40]!r}: no label for ':'; to set a weight, write PHRASE:WEIGHT "
            "with a number from 0 to 100"
        )
    spelled(phrase, alphabet, "hot words")
    return written


def _paid(trie: Trie, entries: Sequence[Sequence[int]], weights: Gains) -> Gains:
    """Compute the nats for the letters up to each node, by the highest weight of its phrases."""
    paid = np.zeros(len(trie.depth))
    for entry, weight in zip(entries, weights, strict=True):
        node = ROOT
        for letters, label in enumerate(entry):
            node = int(trie.child[node, label])
            paid[node] = max(paid[node], weight * min(letters, len(entry) - 2))
    return paid


def _ancestor(trie: Trie, node: int, steps: int) -> int:
    for _ in range(steps):
        node = int(trie.parent[node])
    return node
