"""Live stream of one client, which never blocks the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Protocol

import numpy as np

from ds2deploy.runtimes.decoding.decoder import Phrases
from ds2deploy.runtimes.decoding.transcript import Transcript, Update
from ds2deploy.runtimes.errors import Ds2Error, StreamError
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.streaming.pool import PooledStream
from ds2deploy.serve.arrivals import Arrivals
from ds2deploy.serve.limits import RefusedError

PIECE_S = 0.5
"""Duration of the audio that is passed to the model at a time, in seconds."""


class Owner(Protocol):
    """Interface of a model to its live streams; see `StreamingModel`."""

    @property
    def backlog_s(self) -> float:
        """Maximum duration of a stream's audio that waits, in seconds."""

    @property
    def block_s(self) -> float:
        """Duration of a block, in seconds."""

    async def next_tick(self) -> None:
        """Wait for the end of the current tick, or of the next one if none is running."""

    async def told(self) -> None:
        """Wait until the results of all ticks that have begun are delivered to the streams."""

    def forget(self, number: int, live: LiveStream) -> None:
        """Release a stream; called when it is closed."""


class LiveStream:
    """Stream of a model; call its methods only in the event loop's thread.

    `StreamingModel.open` makes it. Updates that the caller does not fetch are merged, so that a
    slow reader costs no memory.

    Attributes:
        audio_s: duration of the audio that was accepted, in seconds.
        upload: True for an uploaded recording, False for live audio.
    """

    def __init__(
        self, model: Owner, stream: PooledStream, sample_rate: float, upload: bool
    ) -> None:
        self._model, self._stream, self._rate = model, stream, sample_rate
        self._pending: Update | None = None
        self._transcript: Transcript | None = None
        self._error: Ds2Error | None = None
        self._news = asyncio.Event()
        self._finished = False
        self._closed = False
        self._told = False
        self.upload = upload
        self._arrivals = Arrivals(model.block_s)
        self.audio_s = 0.0

    async def accept(self, samples: FloatArray) -> None:
        """Accept more audio, after waiting until the backlog has room for it.

        Args:
            samples: (samples,) float32 in [-1, 1], at the stream's rate.

        Raises:
            AudioError: samples are not finite.
            StreamError: the stream has ended.
            DeviceError: the engine failed.
        """
        size = max(1, int(PIECE_S * self._rate))
        for start in range(0, len(samples), size):
            piece = samples[start : start + size]
            while self._error is None and not self._room(len(piece) / self._rate):
                await self._wait_for_tick()
            self._check()
            self._stream.accept(piece)
            self.audio_s += len(piece) / self._rate
            self._arrivals.add(self.audio_s, time.monotonic())

    async def caught_up(self) -> None:
        """Wait until every complete block is recognised and `take` returns its words."""
        while self._error is None and not self._closed and self._stream.is_ready:
            await self._wait_for_tick()
        await self._model.told()  # a tick takes its blocks long before it delivers their words
        self._check()

    def set_hot_words(self, hot_words: Phrases) -> None:
        """Set other hot words from the next tick on; see `PooledStream.set_hot_words`."""
        self._check()
        self._stream.set_hot_words(hot_words)

    def finish(self) -> None:
        """End the audio; `updates` then ends with the transcript."""
        if not self._finished:
            self._finished = True
            self._check()
            self._stream.finish()
            self._arrivals.end(time.monotonic())

    def take(self) -> Update | None:
        """Return the update since the last call; None if nothing is new."""
        found, self._pending = self._pending, None
        return found

    async def next(self) -> Update | Transcript:
        """Wait for the next update, or for the final transcript.

        If the stream has endpoints, the transcript contains only what no update has delivered.

        Raises:
            DeviceError, StreamError: the engine failed, or the stream was closed.
        """
        while True:
            if (update := self.take()) is not None:
                return update
            self._check()
            if self._transcript is not None:
                return self._transcript
            self._news.clear()
            await self._news.wait()

    async def result(self) -> Transcript:
        """Finish the stream and wait for its transcript, without the updates."""
        self.finish()
        while not isinstance(found := await self.next(), Transcript):
            pass
        return found

    def close(self) -> None:
        """Release the stream's place in the pool; further calls do nothing."""
        self._closed = True
        self._news.set()
        self._model.forget(self._stream.number, self)

    def deliver(self, update: Update, transcript: Transcript | None) -> float | None:
        """Receive the result of a tick; called by the model.

        Returns:
            The time (`time.monotonic`, seconds) at which the tick's block was complete; None if it
            never was.
        """
        self._pending = update if self._pending is None else merged(self._pending, update)
        self._transcript = transcript
        self._news.set()
        return self._arrivals.next_block()

    def fail(self, error: Ds2Error) -> None:
        """Receive the error of a failed engine; called by the model."""
        self._error = error
        self._news.set()

    @property
    def backlog_s(self) -> float:
        """Duration of the audio that waits, in seconds."""
        return self._stream.backlog_s

    def _room(self, coming_s: float) -> bool:
        return self._stream.backlog_s + coming_s <= self._model.backlog_s

    async def _wait_for_tick(self) -> None:
        await self._model.next_tick()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise StreamError("this stream was closed; open another")


async def end_live(live: LiveStream | None, teller: asyncio.Task[None] | None) -> None:
    """Cancel the task that sends the results of a stream, and release the stream."""
    if teller is not None:
        teller.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await teller
    if live is not None:
        live.close()


def merged(first: Update, second: Update) -> Update:
    """Merge two consecutive updates of a stream.

    If a segment ended in the second update, its words are only in the segment's transcript.
    """
    words = second.words if second.segments else (*first.words, *second.words)
    return Update(
        second.stable,
        second.tail,
        words,
        second.tail_words,
        (*first.segments, *second.segments),
    )


def whole_samples(content: bytes) -> FloatArray:
    """Convert 16-bit little-endian PCM to (samples,) float32.

    Raises:
        RefusedError: the bytes end within a sample.
    """
    if len(content) % 2:
        raise RefusedError(
            400, f"audio: {len(content)} bytes, an odd number; send whole 16-bit samples",
            "invalid_value", "audio",
        )  # fmt: skip
    return pcm16(content)


def pcm16(content: bytes) -> FloatArray:
    """Convert 16-bit little-endian PCM to (samples,) float32; an odd last byte is dropped."""
    whole = len(content) // 2 * 2
    return np.frombuffer(content[:whole], "<i2").astype(np.float32) / np.float32(32768)
