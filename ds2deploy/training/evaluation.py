"""Evaluation of a model on a manifest: word and character error rate, on any runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Literal

import msgspec
from lhotse import CutSet
from lhotse.cut import Cut

from ds2deploy.data.cuts import audio_path, cut_tags, read_audio, transcript
from ds2deploy.data.manifest import check_transcript
from ds2deploy.data.manifest_checks import Unusable
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import FILE_ERRORS, AlphabetError, Ds2Error
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.pipeline import Recognized
from ds2deploy.runtimes.preparation import AudioInput
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.training.error_analysis import columns, wer_interval
from ds2deploy.training.scoring import ErrorCounts, Hypothesis, count_each


class Failure(msgspec.Struct, frozen=True):
    """Utterance that is left out of the result.

    Attributes:
        audio: path of the recording.
        error: error with its remedy, in one line.
        of: part that cannot be used, `recording` or `transcript`.
    """

    audio: str
    error: str
    of: Literal["recording", "transcript"] = "recording"


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Error rates and speed on a whole manifest.

    Attributes:
        runtime: runtime that ran the model.
        wer: word error rate, from 0.
        interval: 95 % interval of the word error rate, see `wer_interval`.
        cer: character error rate, from 0.
        errors: error counts from which both rates are computed.
        utterances: number of utterances that were recognised.
        audio_s: total duration of these utterances, in seconds.
        compute_s: time for features, network and decoding, in seconds, without reading files.
            Features are computed in parallel to the network, and count with the time of a core.
        elapsed_s: time from the first recording to the last text, reading included, in seconds.
        hypotheses: utterances that were recognised, in the order of the manifest.
        failed: utterances that were left out: first those that could not be opened, then the
            others in the order of the manifest.
    """

    runtime: str
    wer: float
    interval: tuple[float, float]
    cer: float
    errors: ErrorCounts
    utterances: int
    audio_s: float
    compute_s: float
    elapsed_s: float
    hypotheses: tuple[Hypothesis, ...]
    failed: tuple[Failure, ...] = ()

    @property
    def real_time_factor(self) -> float:
        """Real-time factor: computing time per second of audio."""
        return self.compute_s / self.audio_s


def evaluate(
    recognizer: Recognizer,
    cuts: CutSet,
    manifest: str,
    progress: Callable[[int, float], None] = lambda done, audio_s: None,
    unusable: Sequence[Unusable] = (),
) -> Evaluation:
    """Recognise every utterance and count the errors.

    Broken recordings, and transcripts that contain characters without a label, are left out and
    reported.

    Args:
        recognizer: recogniser of the model.
        cuts: utterances with transcripts.
        manifest: name of the manifest, for errors.
        progress: function that is called with the number of finished utterances and the duration
            of their audio, in seconds.
        unusable: utterances of the manifest that `read_usable` left out.

    Raises:
        Ds2Error: no utterance can be used; this is the error of the first.
    """
    alphabet = Alphabet(recognizer.description.labels)
    listed = list(cuts)
    checked = ((i, transcript_error(cut, alphabet, manifest)) for i, cut in enumerate(listed))
    rejected = {i: error for i, error in checked if error is not None}
    started = time.perf_counter()
    chosen = [i for i in range(len(listed)) if i not in rejected]
    recognized = recognize(recognizer, [listed[i] for i in chosen], progress)
    elapsed_s = time.perf_counter() - started
    hypotheses: list[Hypothesis] = []
    for i, item in zip(chosen, recognized, strict=True):
        if isinstance(item.result, Ds2Error):
            rejected[i] = item.result
        else:
            said = alphabet.normalize(transcript(listed[i]))
            facts = (round(item.audio_s, 3), cut_tags(listed[i]))
            heard = alphabet.normalize(item.result.text)  # some decoders write lower case
            hypotheses.append(Hypothesis(audio_path(listed[i]), said, heard, *facts))
    failed = [*unusable, *(Unusable(audio_path(listed[i]), rejected[i]) for i in sorted(rejected))]
    if not hypotheses:
        raise _none_left(failed)
    counts = count_each(hypotheses)
    errors = sum(counts, ErrorCounts())
    return Evaluation(
        runtime=recognizer.session.runtime,
        wer=errors.wer,
        interval=wer_interval(*columns(counts)),
        cer=errors.cer,
        errors=errors,
        utterances=len(hypotheses),
        audio_s=round(sum(item.audio_s for item in recognized), 3),
        compute_s=round(sum(item.compute_s for item in recognized), 3),
        elapsed_s=round(elapsed_s, 3),
        hypotheses=tuple(hypotheses),
        failed=tuple(_failure(item) for item in failed),
    )


def transcript_error(cut: Cut, alphabet: Alphabet, manifest: str) -> Ds2Error | None:
    """Return the error of a transcript with characters that have no label, or None."""
    try:
        check_transcript(cut, alphabet, manifest)
    except AlphabetError as error:
        return error
    return None


def _failure(item: Unusable) -> Failure:
    is_recording = isinstance(item.error, FILE_ERRORS)
    return Failure(item.audio, str(item.error), "recording" if is_recording else "transcript")


def _none_left(failed: Sequence[Unusable]) -> Ds2Error:
    """Return the first error, with the number of the other errors."""
    first = failed[0].error
    others = f" (and none of the other {len(failed) - 1} utterances can be used)"
    return type(first)(f"{first}{others if failed[1:] else ''}")


def recognize(
    recognizer: Recognizer, cuts: Sequence[Cut], progress: Callable[[int, float], None]
) -> list[Recognized]:
    """Recognise the cuts, shortest first, and return the results in the order of the cuts."""
    rate = recognizer.description.features.sample_rate
    order = sorted(range(len(cuts)), key=lambda i: float(cuts[i].duration))
    found: dict[int, Recognized] = {}
    audio_s = 0.0
    sources = (_source(cuts[i], rate) for i in order)
    with closing(recognizer.transcribe_many(sources)) as results:
        for item in results:
            found[order[item.index]] = item
            audio_s += item.audio_s
            progress(len(found), audio_s)
    return [found[i] for i in range(len(cuts))]


def _source(cut: Cut, sample_rate: int) -> AudioInput:
    def pieces() -> Iterator[FloatArray]:
        yield read_audio(cut, sample_rate)  # called by a thread when the queue has room

    return AudioInput(audio_path(cut), pieces())
