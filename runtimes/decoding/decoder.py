"""Protocols of decoders, which turn the output of the network into text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.transcript import Transcript, Update
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FloatArray, IntArray


class Decoder(Protocol):
    """Turns log-probabilities into text.

    One decoder serves all utterances and streams of a model. Each of them has its own
    state, which `start` makes, so that several threads may use one decoder.
    A whole utterance is a stream of one block: both give the same text.

    Streams, subtitles and evaluation rely on the following:

    - The `text` of a transcript consists of its `words`, separated by single spaces. In the same
      way, the `stable` text of an update consists of the `words` of all updates so far, and its
      `tail` of its `tail_words`.
    - The `words` of an update are final: the words of the transcript begin with them.
    - `chars` are the recognised labels, spaces included. They spell the text, unless a decoder
      rewrites its words.
    - Times are seconds from the beginning of the utterance, and do not decrease.
    """

    def start(self, live: bool = False) -> Any:
        """Make the state of a new utterance.

        Args:
            live: True if words are shown while somebody speaks; the decoder may then make words
                final before the end of the utterance.
        """

    def advance(self, states: Sequence[Any], blocks: Sequence[FloatArray]) -> None:
        """Process the next frames of several utterances.

        Args:
            states: states of the utterances.
            blocks: (frames, labels) float32 log-probabilities for each utterance; a block may have
                no frames.
        """

    def update(self, state: Any, duration_s: float = float("inf")) -> Update:
        """Return the new words since the last update, and the tail.

        Args:
            state: state of the utterance.
            duration_s: duration of the utterance in seconds, if it has ended; limits all times.
        """

    def finish(self, state: Any, duration_s: float) -> Transcript:
        """Return the transcript of the whole utterance.

        Args:
            state: state of the utterance.
            duration_s: duration of the utterance in seconds; limits all times.
        """


@runtime_checkable
class HotWordDecoder(Decoder, Protocol):
    """Decoder that prefers hot words, which may differ between utterances."""

    def with_hot_words(self, phrases: Mapping[str, float]) -> Decoder:
        """Make a decoder with other hot words that shares everything else with this one.

        Args:
            phrases: phrases with their weights (nats per letter); empty for none.

        Raises:
            AlphabetError, ConfigError: the decoder cannot use a phrase.
        """

    def take_hot_words(self, state: Any) -> None:
        """Use this decoder's hot words for an utterance, from its next frame on.

        Args:
            state: state of the utterance, made by this decoder or by the one it was made from.
        """


Phrases = Mapping[str, float] | Sequence[str]
"""Hot words: phrases, or a mapping to their weights (nats per letter)."""

HOT_WORD_WEIGHT = 0.8
"""Default weight of a hot word, in nats per letter."""


def with_hot_words(decoder: Decoder, phrases: Phrases | None) -> Decoder:
    """Make a decoder with these hot words; None returns the decoder itself.

    Raises:
        ConfigError: the decoder has no hot words, such as the greedy one.
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
"""Function or class that makes a decoder, such as `GreedyDecoder`. Its arguments are the labels of
the model and the seconds from one output frame to the next."""


def decode_batch(
    decoder: Decoder,
    log_probs: FloatArray,
    output_lengths: IntArray,
    durations_s: Sequence[float],
) -> list[Transcript]:
    """Decode a batch of whole utterances.

    Args:
        decoder: decoder of the model.
        log_probs: (batch, time, labels) float32, valid up to output_lengths.
        output_lengths: (batch,) int64.
        durations_s: duration of each utterance, in seconds.
    """
    states = [decoder.start() for _ in durations_s]
    blocks = [rows[:length] for rows, length in zip(log_probs, output_lengths, strict=True)]
    decoder.advance(states, blocks)
    return [
        decoder.finish(state, duration_s)
        for state, duration_s in zip(states, durations_s, strict=True)
    ]
