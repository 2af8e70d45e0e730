"""Storage of log-probabilities, so that the network runs once for many decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from lhotse import CutSet

from ds2deploy.data.cuts import transcript
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.decoder import Decoder, decode_batch
from ds2deploy.runtimes.decoding.greedy import GreedyDecoder, GreedyState
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.training.evaluation import recognize, transcript_error

TOGETHER = 64
"""Number of utterances that are decoded in one call."""


class Utterance(msgspec.Struct, frozen=True):
    """Log-probabilities of an utterance, with its transcript.

    Attributes:
        log_probs: (time, labels) float32.
        duration_s: duration, in seconds.
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
    """Run the network once on all utterances, and keep the log-probabilities.

    Args:
        recognizer: recogniser whose decoder is `KeepingDecoder`.
        cuts: utterances with transcripts.
        manifest: name of the manifest, for errors.
        progress: function that is called with the number of finished utterances and the duration
            of their audio, in seconds.

    Returns:
        The usable utterances in the order of the manifest, and the errors of the others.
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


class KeptTranscript(Transcript, frozen=True):
    """Transcript with its log-probabilities, (time, labels) float32."""

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


def decode_kept(utterances: Sequence[Utterance], decoder: Decoder) -> list[Transcript]:
    """Decode kept log-probabilities in batches of similar length.

    Args:
        utterances: one or more utterances.
        decoder: decoder for the labels of the model.

    Returns:
        A transcript for each utterance, in the same order.
    """
    # Batches of similar length leave few frames in which only some utterances are decoded.
    order = sorted(range(len(utterances)), key=lambda i: len(utterances[i].log_probs))
    found: dict[int, Transcript] = {}
    for start in range(0, len(order), TOGETHER):
        part = order[start : start + TOGETHER]
        lengths = np.array([len(utterances[i].log_probs) for i in part])
        labels = utterances[part[0]].log_probs.shape[1]
        padded = np.zeros((len(part), lengths.max(), labels), np.float32)
        for rows, i in zip(padded, part, strict=True):
            rows[: len(utterances[i].log_probs)] = utterances[i].log_probs
        durations_s = [utterances[i].duration_s for i in part]
        found |= zip(part, decode_batch(decoder, padded, lengths, durations_s), strict=True)
    return [found[i] for i in range(len(utterances))]
