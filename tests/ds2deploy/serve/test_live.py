"""A live stream, without a server around it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ds2deploy.runtimes.decoding.greedy import GreedyDecoder
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.serve.limits import Limits
from ds2deploy.serve.metrics import Metrics
from ds2deploy.serve.opening import open_model
from ds2deploy.serve.streaming_model import StreamingModel
from ds2deploy.serve.turn import Turn

PATIENCE_S = 600

BLOCK = 5120
"""Samples in a block: no other one waits behind it."""


class HeldDecoder(GreedyDecoder):
    """Decodes nothing until it may, when the network has taken its block already."""

    reached, opened = threading.Event(), threading.Event()

    def advance(self, *arguments: Any) -> None:
        self.reached.set()
        assert self.opened.wait(PATIENCE_S)
        super().advance(*arguments)


def test_a_stream_has_caught_up_when_its_words_are_there(
    load_streaming: Callable[..., Recognizer], recognizer: Recognizer, speech: np.ndarray
) -> None:
    samples = speech.astype(np.float32) / 32768
    expected = recognizer.stream(16_000).accept(samples)

    async def follow() -> Any:
        model = open_model(
            "digits",
            lambda: Recognizer(load_streaming().session, HeldDecoder),
            Limits(streams=1),
            Metrics(),
            Turn(),
        )
        assert isinstance(model, StreamingModel)
        model.start()
        try:
            live = model.open(16_000)
            HeldDecoder.opened.set()
            await live.accept(samples)
            await live.caught_up()
            update = live.take()
            HeldDecoder.opened.clear()
            HeldDecoder.reached.clear()
            await live.accept(np.zeros(BLOCK, np.float32))
            await asyncio.to_thread(HeldDecoder.reached.wait, PATIENCE_S)
            waiting = asyncio.ensure_future(live.caught_up())
            for _ in range(10):
                await asyncio.sleep(0)
            early = waiting.done()
            HeldDecoder.opened.set()
            await waiting
            return early, update
        finally:
            HeldDecoder.opened.set()
            await model.stop()

    early, update = asyncio.run(follow())
    assert not early
    assert (update.stable, update.tail) == (expected.stable, expected.tail)
    assert update.words == expected.words
