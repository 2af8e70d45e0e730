"""The seam between the network and its text: what every decoder can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.transcript import Transcript, Update
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FloatArray, IntArray


class Decoder(Protocol):
    """Reads log-probabilities as text.

    One decoder serves all utterances and streams of a model. Each of them has its own
    state, which `start` makes, so that several threads may use one decoder.
    A whole utterance is a stream of one block: both give the same text.

    Streams, subtitles and evaluation rely on the following:

    - The `text` of a transcript is that of its `words`, with one space between two. The `stable`
      text of an update is that of all `words` that updates have given so far, and its `tail` that
      of its `tail_words`.
    - Words that an update gave never change: the words of the transcript begin with them.
    - `chars` are the labels that were read, spaces included. They spell the text, unless a decoder
      rewrites its words.
    - Times are seconds from the beginning of the utterance, and do not decrease.
    """

    def start(self, live: bool = False) -> Any:
        """Make the state of a new utterance.

        Args:
            live: somebody waits for its words, which may become final before all of it is heard.
        """

    def advance(self, states: Sequence[Any], blocks: Sequence[FloatArray]) -> None:
        """Read more frames of some utterances, all in one call.

        Args:
            states: states of the utterances.
            blocks: for each, (frames, labels) float32 log-probabilities; there may be no frames.
        """

    def update(self, state: Any, duration_s: float = float("inf")) -> Update:
        """Report what is new since the last update.

        Args:
            state: state of the utterance.
            duration_s: duration of the utterance if it has ended; no time goes past it.
        """

    def finish(self, state: Any, duration_s: float) -> Transcript:
        """Give the transcript of the whole utterance.

        Args:
            state: state of the utterance.
            duration_s: duration of the utterance; no time goes past it.
        """


@runtime_checkable
class HotWordDecoder(Decoder, Protocol):
    """Decoder that looks for hot words, which may differ between utterances."""

    def with_hot_words(self, phrases: Mapping[str, float]) -> Decoder:
        """Make a decoder that shares all but the hot words with this one.

        Args:
            phrases: each with its weight, nats for every letter; empty for none.

        Raises:
            AlphabetError, ConfigError: phrases that the decoder cannot look for.
        """

    def take_hot_words(self, state: Any) -> None:
        """Give an utterance this decoder's hot words, from its next frame on.

        Args:
            state: state of the utterance, of this decoder or of one that it was made from.
        """


Phrases = Mapping[str, float] | Sequence[str]
"""Hot words: phrases, or each with its weight, nats for every letter."""

HOT_WORD_WEIGHT = 0.8
"""Nats for a letter of a hot word that has no weight of its own."""


def with_hot_words(decoder: Decoder, phrases: Phrases | None) -> Decoder:
    """Give a decoder other hot words, unless there are none.

    Raises:
        ConfigError: a decoder without hot words, such as the greedy one.
        AlphabetError, ConfigError: see `HotWordDecoder.with_hot_words`.
    """
    if phrases is None:
        return decoder
    if not isinstance(decoder, HotWordDecoder):
        raise ConfigError(
            "hot words need a beam search: load the model with decoder=DecoderConfig()"
        )
    if not isinstance(phrases, Mapping):
        phrases = dict.fromkeys(phrases, HOT_WORD_WEIGHT)
    return decoder.with_hot_words(phrases)


MakeDecoder = Callable[[Alphabet, float], Decoder]
"""Makes a decoder for a model of these labels, and of so many seconds from one output frame to the
next: a class such as `GreedyDecoder`, for instance."""


def decode_batch(
    decoder: Decoder,
    log_probs: FloatArray,
    output_lengths: IntArray,
    durations_s: Sequence[float],
) -> list[Transcript]:
    """Decode a batch of whole utterances.

    Args:
        decoder: decoder of the model.
        log_probs: (batch, time, labels) float32, meaningless past output_lengths.
        output_lengths: (batch,) int64.
        durations_s: duration of each utterance.
    """
    states = [decoder.start() for _ in durations_s]
    blocks = [rows[:length] for rows, length in zip(log_probs, output_lengths, strict=True)]
    decoder.advance(states, blocks)
    return [
        decoder.finish(state, duration_s)
        for state, duration_s in zip(states, durations_s, strict=True)
    ]
