"""Whole utterances of many callers: each gets what it would get alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ds2deploy
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.errors import (
    AudioError,
    BackPressureError,
    ConfigError,
    DeviceError,
    StreamError,
)
from ds2deploy.runtimes.recognizer import Recognizer

RATE = 16_000
SPEECH = [synthesize(RATE, int(RATE * (0.3 + 0.4 * i)), seed=i) for i in range(8)]


@pytest.fixture(scope="module")
def recognizer(digits_onnx: Path) -> Iterator[Recognizer]:
    with ds2deploy.load(digits_onnx, threads=1) as found:
        yield found


@pytest.fixture(scope="module")
def beam(digits_onnx: Path) -> Iterator[Recognizer]:
    with ds2deploy.load(digits_onnx, threads=1, decoder=DecoderConfig(beam=8)) as found:
        yield found


def run_to_the_end(pool: Any) -> list[int]:
    fills = []
    while len(pool):
        fills.append(pool.tick())
    return fills


def test_batches_change_no_transcript(recognizer: Recognizer):
    alone = [recognizer.transcribe(samples, RATE) for samples in SPEECH]
    assert len({transcript.text for transcript in alone}) > 4
    with recognizer.utterance_pool() as pool:
        futures = [pool.submit(samples) for samples in SPEECH]
        fills = run_to_the_end(pool)
    assert sum(fills) == len(SPEECH)
    assert max(fills) > 1
    for future, expected in zip(futures, alone, strict=True):
        assert future.result().text == expected.text
        assert future.result().words == expected.words


def test_callers_in_many_threads(recognizer: Recognizer):
    alone = [recognizer.transcribe(samples, RATE).text for samples in SPEECH]
    with recognizer.utterance_pool() as pool, ThreadPoolExecutor(8) as callers:
        stopped = threading.Event()

        def tick() -> None:
            while not stopped.is_set():
                if pool.wait(0.05):
                    pool.tick()

        ticking = threading.Thread(target=tick)
        ticking.start()
        order = [i % len(SPEECH) for i in range(48)]
        found = list(callers.map(lambda i: pool.submit(SPEECH[i]).result(timeout=600).text, order))
        stopped.set()
        ticking.join()
    assert found == [alone[i] for i in order]


def test_hot_words_belong_to_their_utterance(beam: Recognizer):
    weights = {"SEVEN": 6.0}
    plain, boosted = (
        beam.transcribe(SPEECH[3], RATE, hot_words=words).text for words in (None, weights)
    )
    assert plain != boosted
    with beam.utterance_pool() as pool:
        futures = [pool.submit(SPEECH[3]), pool.submit(SPEECH[3], weights), pool.submit(SPEECH[3])]
        assert pool.tick() == 3
    assert [future.result().text for future in futures] == [plain, boosted, plain]


def test_a_batch_holds_the_oldest_utterance_and_similar_ones(recognizer: Recognizer):
    long = np.tile(SPEECH[7], 18)[: 59 * RATE]
    with recognizer.utterance_pool() as pool:
        first = pool.submit(long)
        others = [pool.submit(samples) for samples in SPEECH]
        pool.tick()
        assert first.done()
        assert not any(future.done() for future in others)
        pool.tick()
        assert all(future.done() for future in others)


def test_cancelled_utterances_are_not_computed(recognizer: Recognizer):
    with recognizer.utterance_pool() as pool:
        futures = [pool.submit(samples) for samples in SPEECH[:4]]
        assert futures[1].cancel()
        assert run_to_the_end(pool) == [3]
    assert futures[0].result().text == recognizer.transcribe(SPEECH[0], RATE).text
    with pytest.raises(CancelledError):
        futures[1].result()


def test_refusals_name_the_remedy(recognizer: Recognizer):
    with recognizer.utterance_pool(waiting=1) as pool:
        with pytest.raises(AudioError, match=r"a\.wav: 0 samples"):
            pool.submit(np.zeros(0, np.float32), name="a.wav")
        with pytest.raises(AudioError, match="finite"):
            pool.submit(np.full(RATE, np.nan, np.float32))
        with pytest.raises(ConfigError, match="beam search"):
            pool.submit(SPEECH[0], ["NINE"])
        assert len(pool) == 0
        waiting = pool.submit(SPEECH[0])
        with pytest.raises(BackPressureError, match="send it again later"):
            pool.submit(SPEECH[1])
    assert waiting.cancelled()
    for call in (pool.tick, lambda: pool.submit(SPEECH[0])):
        with pytest.raises(StreamError, match="make another"):
            call()


def test_an_engine_that_fails_fails_its_batch_alone(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch
):
    run = type(recognizer.session).run
    failures = iter([True])

    def failing(self: Any, *arguments: Any) -> Any:
        if next(failures, False):
            raise DeviceError("out of memory")
        return run(self, *arguments)

    monkeypatch.setattr(type(recognizer.session), "run", failing)
    with recognizer.utterance_pool() as pool:
        lost = pool.submit(SPEECH[0])
        with pytest.raises(DeviceError):
            pool.tick()
        with pytest.raises(DeviceError, match="out of memory"):
            lost.result()
        kept = pool.submit(SPEECH[0])
        pool.tick()
        assert kept.result().duration > 0
        waiting = pool.submit(SPEECH[1])
        pool.fail(DeviceError("gone"))
    with pytest.raises(DeviceError, match="gone"):
        waiting.result()
