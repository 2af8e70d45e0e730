"""Settings of decoding, as users write them; from them, the decoder of a model."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.beam import BeamDecoder
from ds2deploy.runtimes.decoding.beam_search import Limits
from ds2deploy.runtimes.decoding.hot_words import HotWords
from ds2deploy.runtimes.decoding.language_model import LanguageModel, read_language_model
from ds2deploy.runtimes.decoding.scorers import (
    CharacterScorer,
    PhraseScorer,
    Scorer,
    WordScorer,
)
from ds2deploy.runtimes.errors import ConfigError


class DecoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of a beam search; `load(..., decoder=DecoderConfig(...))` takes it.

    Attributes:
        beam: hypotheses that are kept.
        labels_per_frame: labels of a frame that extend hypotheses.
        least_log_prob: log-probability below which a label extends none.
        threshold: nats that a hypothesis may be behind the best.
        lm: path of a language model, see `ds2deploy lm`.
        lm_weight: factor of its log-probabilities.
        word_score: added for every word, for models of words.
        lexicon: words that are known; by default those of the language model.
        unknown_letter: added for every letter of an unknown word, negative; None allows none.
        phrases: the whole utterance is one of these; empty for no such list.
        hot_words: phrases that are looked for, each with nats for every letter.
        nbest: texts in a transcript, the best included.
        commit_s: seconds after which the text of a live stream is final; None waits for its end.
        confidence_scale: factor of scores before they become probabilities; `ds2deploy tune`
            finds it.
    """

    beam: int = 64
    labels_per_frame: int = 12
    least_log_prob: float = -7.0
    threshold: float = 12.0
    lm: str | None = None
    lm_weight: float = 0.5
    word_score: float = 0.0
    lexicon: tuple[str, ...] = ()
    unknown_letter: float | None = -2.0
    phrases: tuple[str, ...] = ()
    hot_words: dict[str, float] = {}
    nbest: int = 1
    commit_s: float | None = 1.0
    confidence_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("beam", 1), ("labels_per_frame", 1), ("nbest", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"decoder: {name} = {getattr(self, name)}; expected 1 or more")
        for name, fine in (
            ("threshold", self.threshold > 0),
            ("lm_weight", 0 <= self.lm_weight < 100),
            ("commit_s", self.commit_s is None or self.commit_s > 0),
            ("confidence_scale", 0 < self.confidence_scale < 100),
            ("unknown_letter", self.unknown_letter is None or self.unknown_letter <= 0),
        ):
            if not fine:
                raise ConfigError(f"decoder: {name} = {getattr(self, name)} cannot be")

    def __call__(self, alphabet: Alphabet, frame_s: float) -> BeamDecoder:
        """Make the decoder of a model.

        Args:
            alphabet: labels of the model.
            frame_s: seconds from one output frame to the next.

        Raises:
            MissingFileError, ModelFileError: no language model, or a damaged one.
            AlphabetError, ConfigError: words that the labels cannot spell, or a language model of
                other labels.
        """
        limits = Limits(self.beam, self.labels_per_frame, self.least_log_prob, self.threshold)
        hot_words = HotWords(self.hot_words, alphabet) if self.hot_words else None
        return BeamDecoder(
            alphabet,
            frame_s,
            limits,
            self._scorers(alphabet),
            hot_words,
            self.nbest,
            self.commit_s,
            self.confidence_scale,
        )

    def _scorers(self, alphabet: Alphabet) -> list[Scorer]:
        scorers: list[Scorer] = []
        model = None if self.lm is None else read_language_model(Path(self.lm))
        if model is not None:
            model.check_labels(alphabet.labels)
        if model is not None and model.kind == "characters":
            scorers.append(CharacterScorer(model, self.lm_weight))
            model = None
        if model is not None or self.lexicon:
            scorers.append(self._words(alphabet, model))
        if self.phrases:
            scorers.append(PhraseScorer(self.phrases, alphabet))
        return scorers

    def _words(self, alphabet: Alphabet, model: LanguageModel | None) -> WordScorer:
        words = self.lexicon
        if not words:
            assert model is not None
            words = tuple(word for word in model.words if not alphabet.unknown(word))
        return WordScorer(
            words, alphabet, model, self.lm_weight, self.word_score, self.unknown_letter
        )
