"""Beam search behind the `Decoder` protocol: transcripts, alternatives, confidence, streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy

import msgspec
import numpy as np

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.alignment import align
from ds2deploy.runtimes.decoding.beam_batch import Batch, BeamState, through_last_space
from ds2deploy.runtimes.decoding.beam_search import Limits, Search
from ds2deploy.runtimes.decoding.confidence import Path, label_confidence, posteriors
from ds2deploy.runtimes.decoding.hot_words import HotWords, HotWordScorer
from ds2deploy.runtimes.decoding.hypotheses import Floats, History
from ds2deploy.runtimes.decoding.scorers import PhraseScorer, Scorer, WeightedScorer, Weights
from ds2deploy.runtimes.decoding.transcript import (
    Alternative,
    Transcript,
    Update,
    Word,
    make_transcript,
    words_of,
)
from ds2deploy.runtimes.errors import NotFiniteError
from ds2deploy.runtimes.features import FloatArray

NEGLIGIBLE = 1e-4
"""Total probability of the hypotheses that are left out when confidence is computed."""


class BeamDecoder:
    """Decodes with a beam search; see `HotWordDecoder` for its methods.

    Args:
        alphabet: labels of the model.
        frame_s: seconds from one output frame to the next.
        limits: limits of the search.
        scorers: scorers of the language models, the lexicon and the closed list.
        hot_words: hot words of utterances that have none of their own.
        nbest: number of texts in a transcript, the best included.
        commit_s: time after which the text of a stream is final, in seconds; None makes it final at
            the end.
        confidence_scale: factor of the scores before they become probabilities.
    """

    def __init__(
        self,
        alphabet: Alphabet,
        frame_s: float,
        limits: Limits,
        scorers: Sequence[WeightedScorer] = (),
        hot_words: HotWords | None = None,
        nbest: int = 1,
        commit_s: float | None = 1.0,
        confidence_scale: float = 1.0,
    ) -> None:
        self._alphabet, self._frame_s = alphabet, frame_s
        self._space = alphabet.labels.find(" ")
        self._limits, self._scorers, self._hot_words = limits, tuple(scorers), hot_words
        self._nbest, self._scale = nbest, confidence_scale
        self._commit = None if commit_s is None else max(1, round(commit_s / frame_s))

    def start(self, live: bool = False) -> BeamState:
        """See `Decoder`; the text of a live utterance is committed after `commit_s`."""
        words = self._hot_words
        beam = self._search([None]).begin()
        beam.states[-1] = 0 if words is None else words.start
        return BeamState(beam, History.root(), self._commit if live else None, words)

    def with_hot_words(self, phrases: Mapping[str, float]) -> BeamDecoder:
        """See `HotWordDecoder`.

        Raises:
            AlphabetError, ConfigError: see `HotWords`.
        """
        other = copy(self)
        other._hot_words = HotWords(phrases, self._alphabet) if phrases else None
        return other

    def with_weights(self, weights: Weights, confidence_scale: float) -> BeamDecoder:
        """Make a decoder with other weights that shares its tables with this one.

        Args:
            weights: weights of the language models.
            confidence_scale: factor of the scores before they become probabilities.
        """
        other = copy(self)
        other._scorers = tuple(scorer.weighted(weights) for scorer in self._scorers)
        other._scale = confidence_scale
        return other

    def take_hot_words(self, state: BeamState) -> None:
        """See `HotWordDecoder`."""
        hot_words = self._hot_words
        beam = state.beam
        if state.hot_words is not None:
            beam.bonus = beam.bonus - state.hot_words.leave[beam.states[-1]]
        if hot_words is not None:
            begins = (beam.last == self._space) | (beam.node == 0)
            beam.states[-1] = np.where(begins, hot_words.start, hot_words.lost)
        state.hot_words = hot_words

    def advance(self, states: Sequence[BeamState], blocks: Sequence[FloatArray]) -> None:
        """See `Decoder`.

        Raises:
            NotFiniteError: the log-probabilities contain NaN.
        """
        some = [i for i in range(len(states)) if len(blocks[i])]
        if not some:
            return
        if any(np.isnan(blocks[i]).any() for i in some):
            raise NotFiniteError(
                "the model computed log-probabilities that are NaN; compare it with its "
                "checkpoint: ds2deploy verify"
            )
        # Longest first: an utterance that ends leaves the others in their places.
        some.sort(key=lambda i: -len(blocks[i]))
        chosen = [states[i] for i in some]
        search = self._search([state.hot_words for state in chosen])
        Batch(search, chosen, [blocks[i] for i in some], self._space, self._scale).run()

    def update(self, state: BeamState, duration_s: float = float("inf")) -> Update:
        """See `Decoder`; the tail is the part of the best hypothesis that is not final yet."""
        new: tuple[Word, ...] = ()
        if (end := self._end_of_words(state)) > state.told:
            told, confidence = state.labels[state.told : end], state.confidence[state.told : end]
            new = self._words(told, duration_s, confidence)
            state.told = end
            state.stable = " ".join([state.stable, *(word.text for word in new)]).lstrip()
        best = int(state.beam.score.argmax())
        path = [*state.committed, *state.history.path(int(state.beam.node[best]))]
        rest = [*state.labels[end:], *((label, frame, frame) for label, frame in path)]
        sure = [*state.confidence[end:], *state.committed_confidence]
        tail = self._words(rest, duration_s, [*sure, *[1.0] * (len(rest) - len(sure))])
        return Update(state.stable, " ".join(word.text for word in tail), new, tail)

    def finish(self, state: BeamState, duration_s: float) -> Transcript:
        """See `Decoder`; the score is that of the search, divided by the number of frames."""
        search = self._search([state.hot_words])
        scores = search.end(state.beam, np.zeros(len(state.beam), np.int64))
        order = np.argsort(-scores, kind="stable")
        order = order[np.isfinite(scores[order])]
        if not len(order):
            return self._unended(state, duration_s)
        shares = posteriors(scores[order], self._scale)
        # The last ones, which together are nearly impossible, change no confidence.
        likely = 1 + int(np.searchsorted(np.cumsum(shares), 1 - NEGLIGIBLE))
        order = order[: max(likely, self._nbest)]
        scores, shares = scores[order], shares[: len(order)]
        paths = [state.history.path(int(node)) for node in state.beam.node[order]]
        text = [label for label, _ in (*state.committed, *paths[0])]
        labels = [*state.labels]
        if text:
            labels += align(np.concatenate(state.held), text, state.held_from)
        confidence = [
            *state.confidence,
            *state.committed_confidence,
            *label_confidence(paths, shares, self._space),
        ]
        alternatives = self._alternatives(state, paths, scores, shares)
        found = make_transcript(
            labels,
            self._alphabet,
            self._frame_s,
            duration_s,
            float(scores[0]) / max(state.frames, 1),
            confidence,
        )
        committed = min([*state.confidence, *state.committed_confidence], default=1.0)
        return msgspec.structs.replace(
            found,
            confidence=min(committed, alternatives[0].confidence),
            alternatives=tuple(alternatives[: self._nbest]) if self._nbest > 1 else (),
            hot_words=state.hot_words.found(found.text) if state.hot_words else (),
        )

    def _unended(self, state: BeamState, duration_s: float) -> Transcript:
        """Keep what can be kept where no hypothesis may end: whole words; of a closed list nothing.

        What was told as stable stays. The confidence is 0.
        """
        if any(isinstance(scorer, PhraseScorer) for scorer in self._scorers):
            labels = state.labels[: state.told]
        else:
            best = int(state.beam.score.argmax())
            path = (*state.committed, *state.history.path(int(state.beam.node[best])))
            text = [label for label, _ in path]
            count = through_last_space(text, self._space)
            labels = state.labels[: None if count else self._end_of_words(state)]
            if count:
                held = np.concatenate(state.held)
                labels = labels + align(held, text, state.held_from)[:count]
        found = make_transcript(labels, self._alphabet, self._frame_s, duration_s, 0.0)
        return msgspec.structs.replace(found, confidence=0.0)

    def _alternatives(
        self, state: BeamState, paths: Sequence[Path], scores: Floats, shares: Floats
    ) -> list[Alternative]:
        """Texts of the hypotheses, the best first; one text may be spelled with other spaces."""
        begun = [label for label, _, _ in state.labels] + [label for label, _ in state.committed]
        found: dict[str, Alternative] = {}
        for path, score, share in zip(paths, scores.tolist(), shares.tolist(), strict=True):
            spelled = self._alphabet.decode([*begun, *(label for label, _ in path)])
            text = " ".join(spelled.split())
            if (known := found.get(text)) is not None:
                score, share = known.score, known.confidence + share
            found[text] = Alternative(text, score, min(share, 1.0))
        return list(found.values())

    def _words(
        self,
        labels: Sequence[tuple[int, int, int]],
        duration_s: float,
        confidence: Sequence[float],
    ) -> tuple[Word, ...]:
        return words_of(labels, self._alphabet, self._frame_s, duration_s, confidence)

    def _end_of_words(self, state: BeamState) -> int:
        """Find the end of the last whole word of the aligned labels: after its space."""
        new = [label for label, _, _ in state.labels[state.told :]]
        return state.told + through_last_space(new, self._space)

    def _search(self, hot_words: Sequence[HotWords | None]) -> Search:
        """Make a search with the hot words of these utterances; their column is always there."""
        scorers: list[Scorer] = [*self._scorers, HotWordScorer(hot_words)]
        return Search(self._limits, scorers, len(self._alphabet))
