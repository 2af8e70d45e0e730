"""Tuning of language model weights on validation data, with one pass of the network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jiwer
import msgspec
import numpy as np

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.beam import BeamDecoder
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.decoding.language_model import read_language_model
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import ManifestError
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.training.error_analysis import wer_interval, word_errors
from ds2deploy.training.kept_log_probs import Utterance, decode_kept
from ds2deploy.training.scoring import Hypothesis, count_errors

LM_WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3)
WORD_SCORES = (-2.0, -1.0, 0.0, 1.0, 2.0)
PAIR_WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Weights that are tried for each of two models; 0 shows whether one of them helps at all."""
PAIR_WORD_SCORES = (-1.0, 0.0, 1.0)
CONFIDENCE_SCALES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0)
FEWEST = 20
"""Minimum number of utterances for tuning."""


class Trial(msgspec.Struct, frozen=True):
    """Weights that were tried, with their error rate.

    Attributes:
        lm_weight: factor of the language model, or of the word model if there are two.
        character_lm_weight: factor of the character model if there are two models; else None.
        word_score: score that is added for every word.
        wer: word error rate on the utterances that are used to choose the weights.
    """

    lm_weight: float
    character_lm_weight: float | None
    word_score: float
    wer: float


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a tuning.

    All error rates except those in `tried` are measured on utterances that were not used to choose
    the weights.

    Attributes:
        settings: best settings.
        greedy_wer: word error rate of greedy decoding.
        wer: word error rate of the best settings.
        gain: `greedy_wer` minus `wer`.
        interval: 95 % bootstrap interval of the gain.
        utterances: number of utterances on which the gain is measured.
        tried: all weights that were tried.
    """

    settings: DecoderConfig
    greedy_wer: float
    wer: float
    gain: float
    interval: tuple[float, float]
    utterances: int
    tried: tuple[Trial, ...]

    @property
    def better(self) -> bool:
        """True if the settings are significantly better than greedy decoding."""
        return self.interval[0] > 0

    @property
    def all_equal(self) -> bool:
        """True if all weights that were tried have the same word error rate."""
        return len({trial.wer for trial in self.tried}) == 1


def tune(
    utterances: Sequence[Utterance],
    alphabet: Alphabet,
    frame_s: float,
    settings: DecoderConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tuning:
    """Choose weights on one half of the utterances, and measure them on the other half.

    Args:
        utterances: validation data from `keep_log_probs`.
        alphabet: labels of the model.
        frame_s: interval between output frames, in seconds.
        settings: settings with one or two language models, whose weights are replaced.
        progress: function that is called with the number of tried settings and of all settings.

    Raises:
        ManifestError: there are too few utterances.
        MissingFileError, ModelFileError, AlphabetError, ConfigError: see `DecoderConfig`.
    """
    if len(utterances) < FEWEST:
        raise ManifestError(
            f"{len(utterances)} usable utterances; tuning needs at least {FEWEST}: add some to the "
            "manifest"
        )
    chooses, measures = utterances[::2], utterances[1::2]
    decoder = settings(alphabet, frame_s)
    grid = _grid(settings)
    tried: list[Trial] = []
    for weights in grid:
        texts = _texts(chooses, _weighted(decoder, _with_weights(settings, *weights)))
        tried.append(Trial(*weights, word_error_rate(chooses, texts)))
        progress(len(tried), len(grid))
    chosen = _steadiest(tried)
    best = _with_weights(settings, chosen.lm_weight, chosen.character_lm_weight, chosen.word_score)
    scale = _confidence_scale(chooses, decoder, best)
    best = msgspec.structs.replace(best, confidence_scale=scale)
    found = _texts(measures, _weighted(decoder, best))
    greedy = [one.greedy for one in measures]
    gain, interval = _saved(measures, greedy, found)
    return Tuning(
        settings=best,
        greedy_wer=word_error_rate(measures, greedy),
        wer=word_error_rate(measures, found),
        gain=gain,
        interval=interval,
        utterances=len(measures),
        tried=tuple(tried),
    )


def _grid(settings: DecoderConfig) -> list[tuple[float, float | None, float]]:
    """List the settings to try: model weight, character model weight, and word score."""
    assert settings.lm_paths
    kinds = {read_language_model(path).kind for path in settings.lm_paths}
    if len(kinds) > 1:
        return list(itertools.product(PAIR_WEIGHTS, PAIR_WEIGHTS, PAIR_WORD_SCORES))
    return list(itertools.product(LM_WEIGHTS, (None,), WORD_SCORES if "words" in kinds else (0.0,)))


def _with_weights(
    settings: DecoderConfig, lm_weight: float, character_lm_weight: float | None, word_score: float
) -> DecoderConfig:
    return msgspec.structs.replace(
        settings,
        lm_weight=lm_weight,
        character_lm_weight=character_lm_weight,
        word_score=word_score,
    )


def _weighted(decoder: BeamDecoder, settings: DecoderConfig) -> BeamDecoder:
    return decoder.with_weights(settings.weights, settings.confidence_scale)


def _steadiest(tried: Sequence[Trial]) -> Trial:
    """Choose the weights whose neighbours in the grid are good too, and the middle of equal ones.

    On few utterances, the best settings are often one of many equal ones, or best by chance.
    """
    points = [(one.lm_weight, one.character_lm_weight or 0.0, one.word_score) for one in tried]
    axes = [sorted(set(axis)) for axis in zip(*points, strict=True)]
    at = [
        tuple(axis.index(value) for axis, value in zip(axes, point, strict=True))
        for point in points
    ]
    trials = dict(zip(at, tried, strict=True))

    def around(place: tuple[int, ...]) -> float:
        near = itertools.product(*(range(i - 1, i + 2) for i in place))
        wers = [trials[other].wer for other in near if other in trials]
        return round((trials[place].wer + sum(wers) / len(wers)) / 2, 9)

    least = min(map(around, trials))
    best = [place for place in sorted(trials) if around(place) == least]
    plain = min(abs(trials[place].word_score) for place in best)
    best = [place for place in best if abs(trials[place].word_score) == plain]
    off = np.abs(np.array(best) - np.median(best, axis=0)).sum(axis=1)
    return trials[best[np.flatnonzero(off == off.min())[-1]]]


def _texts(utterances: Sequence[Utterance], decoder: BeamDecoder) -> list[str]:
    return [one.text for one in decode_kept(utterances, decoder)]


def hypotheses_of(utterances: Sequence[Utterance], texts: Sequence[str]) -> list[Hypothesis]:
    """Pair recognised texts with their utterances."""
    return [
        Hypothesis("", one.reference, text) for one, text in zip(utterances, texts, strict=True)
    ]


def word_error_rate(utterances: Sequence[Utterance], texts: Sequence[str]) -> float:
    """Compute the word error rate of recognised texts."""
    return count_errors([one.reference for one in utterances], texts).wer


def _saved(
    utterances: Sequence[Utterance], before: Sequence[str], after: Sequence[str]
) -> tuple[float, tuple[float, float]]:
    """Compute the gain in word error rate, and its 95 % bootstrap interval over utterances."""
    old, words = word_errors(hypotheses_of(utterances, before))
    new, _ = word_errors(hypotheses_of(utterances, after))
    return float((old - new).sum() / max(words.sum(), 1)), wer_interval(old - new, words)


def _confidence_scale(
    utterances: Sequence[Utterance], decoder: BeamDecoder, settings: DecoderConfig
) -> float:
    """Choose the scale whose confidences best predict correct words (Brier score)."""
    losses = []
    for scale in CONFIDENCE_SCALES:
        scaled = decoder.with_weights(settings.weights, scale)
        sure, right = word_confidences(utterances, decode_kept(utterances, scaled))
        losses.append(float(np.mean((sure - right) ** 2)) if len(sure) else 0.0)
    return CONFIDENCE_SCALES[int(np.argmin(losses))]


def word_confidences(
    utterances: Sequence[Utterance], found: Sequence[Transcript]
) -> tuple[FloatArray, FloatArray]:
    """Collect the confidence of every recognised word, and 1 if it is correct, else 0."""
    sure: list[float] = []
    right: list[float] = []
    for one, text in zip(utterances, found, strict=True):
        flags = [0.0] * len(text.words)
        if one.reference and text.text:
            for chunk in jiwer.process_words(one.reference, text.text).alignments[0]:
                if chunk.type == "equal":
                    count = chunk.hyp_end_idx - chunk.hyp_start_idx
                    flags[chunk.hyp_start_idx : chunk.hyp_end_idx] = [1.0] * count
        sure += [word.confidence for word in text.words]
        right += flags
    return np.array(sure, np.float32), np.array(right, np.float32)
