"""Weights of a language model for a network, from one pass of it over validation data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jiwer
import msgspec
import numpy as np
from lhotse import CutSet

from ds2deploy.data.cuts import transcript
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.decoding.decoder import decode_batch
from ds2deploy.runtimes.decoding.greedy import GreedyDecoder, GreedyState
from ds2deploy.runtimes.decoding.language_model import read_language_model
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import Ds2Error, ManifestError
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.training.error_analysis import wer_interval, word_errors
from ds2deploy.training.evaluation import recognize, transcript_error
from ds2deploy.training.scoring import Hypothesis, count_errors

LM_WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3)
WORD_SCORES = (-2.0, -1.0, 0.0, 1.0, 2.0)
CONFIDENCE_SCALES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0)
FEWEST = 20
"""Utterances that a tuning needs."""

TOGETHER = 64
"""Utterances that are decoded in a call."""


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a tuning; all error rates but `tried` are of utterances that chose nothing.

    Attributes:
        settings: the best settings.
        greedy_wer: word error rate of greedy decoding.
        wer: word error rate of the settings.
        gain: word error rate that they save.
        interval: 95 % bootstrap interval of that gain.
        utterances: utterances that it is measured on.
        tried: word error rate of all settings that were tried, on the utterances that chose.
        better: whether the whole interval is above 0.
    """

    settings: DecoderConfig
    greedy_wer: float
    wer: float
    gain: float
    interval: tuple[float, float]
    utterances: int
    tried: tuple[tuple[float, float, float], ...]

    @property
    def better(self) -> bool:
        """True where the settings are better than greedy decoding, beyond chance."""
        return self.interval[0] > 0


class Utterance(msgspec.Struct, frozen=True):
    """Log-probabilities of an utterance, and what was said.

    Attributes:
        log_probs: (time, labels) float32
        duration_s: duration in seconds.
        reference: transcript.
        greedy: text of greedy decoding.
    """

    log_probs: Any
    duration_s: float
    reference: str
    greedy: str


def keep_log_probs(
    recognizer: Recognizer,
    cuts: CutSet,
    manifest: str,
    progress: Callable[[int, float], None] = lambda done, audio_s: None,
) -> tuple[list[Utterance], list[Ds2Error]]:
    """Run the network once.

    Args:
        recognizer: model whose decoder is `KeepingDecoder`.
        cuts: utterances with transcripts.
        manifest: name of the manifest, for errors.
        progress: told how many are done, and how many seconds of audio.

    Returns:
        The utterances, in the order of the manifest, and the errors of those that cannot be used.
    """
    alphabet = Alphabet(recognizer.description.labels)
    checked = [(cut, transcript_error(cut, alphabet, manifest)) for cut in cuts]
    errors = [error for _, error in checked if error is not None]
    usable = [cut for cut, error in checked if error is None]
    kept: list[Utterance] = []
    for cut, item in zip(usable, recognize(recognizer, usable, progress), strict=True):
        if isinstance(item.result, Ds2Error):
            errors.append(item.result)
        else:
            found = item.result
            assert isinstance(found, KeptTranscript)
            said = alphabet.normalize(transcript(cut))
            kept.append(Utterance(found.log_probs, found.duration, said, found.text))
    return kept, errors


def tune(
    utterances: Sequence[Utterance],
    alphabet: Alphabet,
    frame_s: float,
    settings: DecoderConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tuning:
    """Choose weights on one half of the utterances, and measure them on the other.

    Args:
        utterances: validation data, see `keep_log_probs`.
        alphabet: labels of the model.
        frame_s: seconds from one output frame to the next.
        settings: settings with a language model, whose weights are replaced.
        progress: told how many settings of how many were tried.

    Raises:
        ManifestError: too few utterances.
    """
    if len(utterances) < FEWEST:
        raise ManifestError(
            f"{len(utterances)} utterances to tune with; expected at least {FEWEST}"
        )
    chooses, measures = utterances[::2], utterances[1::2]
    assert settings.lm is not None
    of_words = read_language_model(Path(settings.lm)).kind == "words"
    grid = list(itertools.product(LM_WEIGHTS, WORD_SCORES if of_words else (0.0,)))
    tried: list[tuple[float, float, float]] = []
    for weight, score in grid:
        one = msgspec.structs.replace(settings, lm_weight=weight, word_score=score)
        tried.append(
            (weight, score, word_error_rate(chooses, _texts(chooses, alphabet, frame_s, one)))
        )
        progress(len(tried), len(grid))
    weight, score = _steadiest(tried)
    best = msgspec.structs.replace(settings, lm_weight=weight, word_score=score)
    best = msgspec.structs.replace(
        best, confidence_scale=_confidence_scale(chooses, alphabet, frame_s, best)
    )
    found = _texts(measures, alphabet, frame_s, best)
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


def _steadiest(tried: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The weight and word score whose neighbours are good too; of equal ones, one amid them.

    The best of few utterances is often one of many equal settings, or best by chance.
    """
    weights = sorted({weight for weight, _, _ in tried})
    scores = sorted({score for _, score, _ in tried})
    wers = {(weights.index(weight), scores.index(score)): wer for weight, score, wer in tried}

    def around(i: int, j: int) -> float:
        near = [wers[at] for at in itertools.product(range(i - 1, i + 2), range(j - 1, j + 2))
                if at in wers]  # fmt: skip
        return round((wers[i, j] + sum(near) / len(near)) / 2, 9)

    least = min(around(*at) for at in wers)
    best = [(i, j) for i, j in sorted(wers) if around(i, j) == least]
    plain = min(abs(scores[j]) for _, j in best)
    best = [(i, j) for i, j in best if abs(scores[j]) == plain]
    i, j = best[len(best) // 2]
    return weights[i], scores[j]


class KeptTranscript(Transcript, frozen=True):
    """Transcript with the log-probabilities that it was read from, (time, labels) float32."""

    log_probs: Any = None


class KeepingDecoder(GreedyDecoder):
    """Greedy decoder whose transcripts keep the log-probabilities."""

    def start(self, live: bool = False) -> GreedyState:
        """See `Decoder`."""
        return _KeepingState()

    def advance(self, states: Sequence[GreedyState], blocks: Sequence[FloatArray]) -> None:
        """See `Decoder`."""
        for state, block in zip(states, blocks, strict=True):
            assert isinstance(state, _KeepingState)
            state.rows.append(block.copy())
        super().advance(states, blocks)

    def finish(self, state: GreedyState, duration_s: float) -> Transcript:
        """See `Decoder`."""
        assert isinstance(state, _KeepingState)
        found = super().finish(state, duration_s)
        fields = {name: getattr(found, name) for name in found.__struct_fields__}
        return KeptTranscript(**fields, log_probs=np.concatenate(state.rows))


class _KeepingState(GreedyState):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[FloatArray] = []


def decode_kept(
    utterances: Sequence[Utterance], alphabet: Alphabet, frame_s: float, settings: DecoderConfig
) -> list[Transcript]:
    """Decode log-probabilities that were kept, in batches; see `tune`."""
    decoder = settings(alphabet, frame_s)
    # Neighbours of similar length, so that a call has few frames of few utterances.
    order = sorted(range(len(utterances)), key=lambda i: len(utterances[i].log_probs))
    found: dict[int, Transcript] = {}
    for start in range(0, len(order), TOGETHER):
        part = order[start : start + TOGETHER]
        lengths = np.array([len(utterances[i].log_probs) for i in part])
        padded = np.zeros((len(part), lengths.max(), len(alphabet)), np.float32)
        for rows, i in zip(padded, part, strict=True):
            rows[: len(utterances[i].log_probs)] = utterances[i].log_probs
        durations_s = [utterances[i].duration_s for i in part]
        found |= zip(part, decode_batch(decoder, padded, lengths, durations_s), strict=True)
    return [found[i] for i in range(len(utterances))]


def _texts(
    utterances: Sequence[Utterance], alphabet: Alphabet, frame_s: float, settings: DecoderConfig
) -> list[str]:
    return [one.text for one in decode_kept(utterances, alphabet, frame_s, settings)]


def hypotheses_of(utterances: Sequence[Utterance], texts: Sequence[str]) -> list[Hypothesis]:
    """Put texts beside what was said."""
    return [
        Hypothesis("", one.reference, text) for one, text in zip(utterances, texts, strict=True)
    ]


def word_error_rate(utterances: Sequence[Utterance], texts: Sequence[str]) -> float:
    """Word error rate of texts that were found for these utterances."""
    return count_errors([one.reference for one in utterances], texts).wer


def _saved(
    utterances: Sequence[Utterance], before: Sequence[str], after: Sequence[str]
) -> tuple[float, tuple[float, float]]:
    """Word error rate that is saved, and its 95 % interval over resampled utterances."""
    old, words = word_errors(hypotheses_of(utterances, before))
    new, _ = word_errors(hypotheses_of(utterances, after))
    return float((old - new).sum() / max(words.sum(), 1)), wer_interval(old - new, words)


def _confidence_scale(
    utterances: Sequence[Utterance], alphabet: Alphabet, frame_s: float, settings: DecoderConfig
) -> float:
    """The scale whose confidences are nearest to how often words are right (Brier score)."""
    losses = []
    for scale in CONFIDENCE_SCALES:
        one = msgspec.structs.replace(settings, confidence_scale=scale)
        sure, right = word_confidences(utterances, decode_kept(utterances, alphabet, frame_s, one))
        losses.append(float(np.mean((sure - right) ** 2)) if len(sure) else 0.0)
    return CONFIDENCE_SCALES[int(np.argmin(losses))]


def word_confidences(
    utterances: Sequence[Utterance], found: Sequence[Transcript]
) -> tuple[FloatArray, FloatArray]:
    """Confidence of every recognised word, and 1 where it was said, 0 where not."""
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
