"""Word and character error rate of a model on a manifest, on any runtime."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
from lhotse import CutSet

from ds2deploy.manifest import audio_path, check_transcripts, read_audio, transcript
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.scoring import ErrorCounts, count_errors

CHUNK = 32
"""Utterances whose audio is in memory at a time."""


class Hypothesis(msgspec.Struct, frozen=True):
    """What a model made of one utterance."""

    audio: str
    reference: str
    hypothesis: str


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The result on a whole manifest.

    Attributes:
        runtime: that ran the model.
        wer: word error rate, from 0.
        cer: character error rate, from 0.
        errors: the counts behind both.
        utterances: how many.
        audio_s: seconds of audio.
        compute_s: seconds for features, network and decoding, without reading files.
        hypotheses: every utterance, in the order of the manifest.
    """

    runtime: str
    wer: float
    cer: float
    errors: ErrorCounts
    utterances: int
    audio_s: float
    compute_s: float
    hypotheses: tuple[Hypothesis, ...]

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio."""
        return self.compute_s / self.audio_s


def evaluate(
    recognizer: Recognizer,
    cuts: CutSet,
    manifest: str,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Recognise every utterance and count the errors.

    Args:
        recognizer: the model.
        cuts: utterances with transcripts.
        manifest: its name, for errors.
        progress: told how many utterances are done.

    Raises:
        AlphabetError: a transcript that the model could never write.
        AudioError: names the recording.
    """
    alphabet = Alphabet(recognizer.description.labels)
    rate = recognizer.description.features.sample_rate
    check_transcripts(cuts, alphabet, manifest)
    listed = list(cuts)
    order = sorted(range(len(listed)), key=lambda i: float(listed[i].duration))
    results: dict[int, str] = {}
    audio_s = compute_s = 0.0
    for start in range(0, len(order), CHUNK):
        chosen = order[start : start + CHUNK]
        audio = [read_audio(listed[i], rate) for i in chosen]
        for i, samples in zip(chosen, audio, strict=True):
            recognizer.check_length(len(samples), audio_path(listed[i]))
        started = time.perf_counter()
        transcripts = recognizer.transcribe(audio, rate)
        compute_s += time.perf_counter() - started
        audio_s += sum(map(len, audio)) / rate
        results.update((i, t.text) for i, t in zip(chosen, transcripts, strict=True))
        progress(len(results))
    hypotheses = tuple(
        Hypothesis(audio_path(cut), alphabet.normalize(transcript(cut)), results[i])
        for i, cut in enumerate(listed)
    )
    errors = count_errors([h.reference for h in hypotheses], [h.hypothesis for h in hypotheses])
    return Evaluation(
        runtime=recognizer.session.runtime,
        wer=errors.wer,
        cer=errors.cer,
        errors=errors,
        utterances=len(listed),
        audio_s=round(audio_s, 3),
        compute_s=round(compute_s, 3),
        hypotheses=hypotheses,
    )
