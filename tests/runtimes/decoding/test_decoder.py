"""A decoder of one's own is used wherever log-probabilities become text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

import ds2deploy
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.greedy import GreedyState
from ds2deploy.runtimes.decoding.transcript import Span, Transcript, Update
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FloatArray

RATE = 16_000
SPEECH = [synthesize(RATE, RATE + 4000 * i, seed=i) for i in range(3)]


class LowerCase(ds2deploy.GreedyDecoder):
    """Greedy's text in small letters, characters too."""

    def update(self, state: GreedyState, duration_s: float = float("inf")) -> Update:
        found = super().update(state, duration_s)
        words = (tuple(map(lower, spans)) for spans in (found.words, found.tail_words))
        return Update(found.stable.lower(), found.tail.lower(), *words)

    def finish(self, state: GreedyState, duration_s: float) -> Transcript:
        found = super().finish(state, duration_s)
        words, chars = (tuple(map(lower, spans)) for spans in (found.words, found.chars))
        return msgspec.structs.replace(found, text=found.text.lower(), words=words, chars=chars)


class Counting(LowerCase):
    """Counts how many utterances are read in a call."""

    together: ClassVar[list[int]] = []

    def advance(self, states: Sequence[GreedyState], blocks: Sequence[FloatArray]) -> None:
        self.together.append(len(states))
        super().advance(states, blocks)


def lower(span: Span) -> Span:
    return msgspec.structs.replace(span, text=span.text.lower())


@pytest.fixture(scope="module")
def expected(streaming_checkpoint: Path) -> list[str]:
    texts = [found.text for found in ds2deploy.load(streaming_checkpoint).transcribe(SPEECH, RATE)]
    assert all(texts)
    return [text.lower() for text in texts]


@pytest.fixture(scope="module")
def recognizer(streaming_checkpoint: Path) -> Any:
    return ds2deploy.load(streaming_checkpoint, decoder=LowerCase)


def test_recordings_through_a_streaming_model(recognizer, expected, streaming_checkpoint: Path):
    found = recognizer.transcribe(SPEECH, RATE)
    assert [one.text for one in found] == expected
    greedy = ds2deploy.load(streaming_checkpoint).transcribe(SPEECH, RATE)
    assert [one.confidence for one in found] == [one.confidence for one in greedy]
    assert [w.confidence for one in found for w in one.words] == [
        w.confidence for one in greedy for w in one.words
    ]
    assert any(one.confidence < 1 for one in found)


def test_one_stream(recognizer, expected):
    with recognizer.stream(RATE) as stream:
        heard = [stream.accept(piece) for piece in np.array_split(SPEECH[2], 9)]
        assert stream.finish().text == expected[2]
    words = [word.text for update in heard for word in update.words]
    assert all(word.islower() for word in words)
    assert heard[-1].text.islower()


def test_a_pool_reads_its_streams_together(streaming_checkpoint, expected):
    recognizer = ds2deploy.load(streaming_checkpoint, decoder=Counting)
    Counting.together.clear()
    with recognizer.pool() as pool:
        streams = [pool.open(RATE) for _ in SPEECH]
        for stream, sound in zip(streams, SPEECH, strict=True):
            stream.accept(sound)
            stream.finish()
        pool.drain()
    assert [stream.transcript.text for stream in streams] == expected
    assert max(Counting.together) == len(SPEECH)


def test_whole_utterances_and_windows(digits_checkpoint: Path):
    greedy = ds2deploy.load(digits_checkpoint)
    recognizer = ds2deploy.load(digits_checkpoint, decoder=Counting)
    Counting.together.clear()
    texts = [found.text.lower() for found in greedy.transcribe(SPEECH, RATE)]
    assert [found.text for found in recognizer.transcribe(SPEECH, RATE)] == texts
    assert max(Counting.together) == len(SPEECH)
    long = np.concatenate([SPEECH[0]] * 8)
    windows = recognizer.transcribe(long, RATE, window_s=4.0).text
    assert windows == greedy.transcribe(long, RATE, window_s=4.0).text.lower()


@pytest.mark.parametrize("decoder", [LowerCase, ds2deploy.GreedyDecoder, ds2deploy.DecoderConfig()])
def test_a_decoder_in_the_place_of_what_makes_one(digits_checkpoint: Path, decoder: Any):
    instance = decoder(Alphabet(), 0.02)
    with pytest.raises(ConfigError, match=rf"decoder={type(instance).__name__}\)") as error:
        ds2deploy.load(digits_checkpoint, decoder=instance)
    assert "\n" not in str(error.value)
