"""Many streams on one session: a tick runs one block of every stream that has one ready."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import NamedTuple

import numpy.typing as npt

from ds2deploy.runtimes.audio.checks import as_samples
from ds2deploy.runtimes.decoding.decoder import Decoder, Phrases, with_hot_words
from ds2deploy.runtimes.decoding.transcript import Transcript, Update
from ds2deploy.runtimes.errors import BackPressureError, StreamError
from ds2deploy.runtimes.features import FeatureExtractor
from ds2deploy.runtimes.session import Closing, Session
from ds2deploy.runtimes.streaming.endpoint import Endpoint
from ds2deploy.runtimes.streaming.stream import Channel, run_channels

STREAMS = 1024
BACKLOG_S = 10.0
BATCH = 64
"""Streams in a batch; beyond it, throughput on a CPU no longer grows."""


class PooledStream:
    """One stream of a pool; `StreamPool.open` makes it. Any thread may use it.

    When the last reference to an unfinished stream goes, its place in the pool becomes free.

    Attributes:
        number: number of the stream in the pool, from 0.
        name: the name given to `open`, or the number.
        ended: True after `finish` was called.
        transcript: transcript of the whole utterance when it is done; None before.
    """

    def __init__(self, pool: StreamPool, channel: Channel, number: int, name: str) -> None:
        self.number, self.name = number, name
        self.transcript: Transcript | None = None
        self._pool = pool
        self._channel = channel
        self._lock = threading.Lock()
        self.ended = False

    @property
    def backlog_s(self) -> float:
        """Audio that waits for a tick, in seconds."""
        return self._channel.audio.waiting_s

    @property
    def is_ready(self) -> bool:
        """True if the next tick has work for this stream."""
        return self._due()

    def accept(self, samples: npt.ArrayLike) -> None:
        """Add audio for the next ticks, without waiting for them.

        Args:
            samples: (samples,) or (samples, channels) float32 in [-1, 1] at the stream's rate; any
                number of samples, or none.

        Raises:
            BackPressureError: more than the pool's `backlog_s` would wait; no audio was accepted.
            AudioError: not such an array, or not finite; no audio was accepted.
            StreamError: the stream has finished, or its pool is closed.
        """
        with self._lock:
            self._check_open()
            audio = self._channel.audio
            samples = as_samples(samples, f"stream {self.name}")
            coming_s = len(samples) / audio.sample_rate
            if audio.waiting_s + coming_s > self._pool.backlog_s:
                raise BackPressureError(
                    f"stream {self.name}: {audio.waiting_s:.2f} s of audio are waiting and "
                    f"{coming_s:.2f} s more were sent, above the limit of {self._pool.backlog_s:g} "
                    "s: send it again after the next ticks or in smaller pieces, or serve fewer "
                    "streams"
                )
            audio.push(samples)
            ready = audio.full
        if ready:
            self._pool._news.set()

    def set_hot_words(self, hot_words: Phrases) -> None:
        """Replace the hot words, from the next tick on.

        Args:
            hot_words: phrases, or a mapping to their weights (nats per letter); empty for none.

        Raises:
            StreamError: the stream has finished, or its pool is closed.
            AlphabetError, ConfigError: a phrase cannot be used, see `HotWords`; or the decoder is
                greedy.
        """
        # No tick reads the stream's blocks meanwhile.
        with self._pool._ticking, self._lock:
            self._check_open()
            self._channel.set_hot_words(hot_words)

    def finish(self) -> None:
        """End the audio of this stream; the ticks that process the rest set `transcript`.

        Raises:
            StreamError: the stream has finished already, or its pool is closed.
        """
        with self._lock:
            self._check_open()
            self._channel.end()
            self._pool._keep(self)  # before a tick can see that it has ended
            self.ended = True
        self._pool._news.set()

    def _check_open(self) -> None:
        if self.ended:
            raise StreamError(f"stream {self.name} has finished; open another")
        self._pool._check_open()

    def _due(self) -> bool:
        """Tell whether the next tick has work for this stream."""
        with self._lock:
            return self._channel.ready or (self.ended and self.transcript is None)

    def _conclude(self) -> bool:
        """Read the whole utterance, if all of it went through the network."""
        with self._lock:
            if self.ended and self._channel.done:
                self.transcript = self._channel.finish()
            return self.transcript is not None


class Tick(NamedTuple):
    """Result of a tick for one stream.

    Attributes:
        stream: stream of the pool; its `transcript` is set if it is done.
        update: new words of the stream.
    """

    stream: PooledStream
    update: Update


class StreamPool(Closing):
    """Serves many streams with one session; a context manager.

    Any number of threads may open, feed and finish streams. One thread calls `tick` repeatedly,
    best once per block duration; a second caller of `tick` waits until the first returns. Any
    thread may call `close`, which waits for the current tick. A tick does not wait for silent
    streams.

    Args:
        session: session of a streaming model.
        extract: the model's feature extractor.
        decoder: the model's decoder.
        streams: maximum number of open streams.
        backlog_s: maximum of waiting audio in a stream, in seconds; at least two blocks.
        batch: maximum number of streams in a batch.

    Attributes:
        streams: maximum number of open streams.
        backlog_s: maximum of waiting audio in a stream, in seconds.
        block_s: duration of a block, in seconds.

    Raises:
        StreamError: `streams` or `batch` is below 1, or `backlog_s` is too small.
    """

    def __init__(
        self,
        session: Session,
        extract: FeatureExtractor,
        decoder: Decoder,
        streams: int = STREAMS,
        backlog_s: float = BACKLOG_S,
        batch: int = BATCH,
    ) -> None:
        assert session.description.blocks is not None
        config = session.description.features
        self.block_s = session.description.blocks.frames * config.stride / config.sample_rate
        if streams < 1 or batch < 1 or not backlog_s >= 2 * self.block_s:
            raise StreamError(
                f"pool: streams = {streams}, batch = {batch}, backlog_s = {backlog_s:g}; expected "
                f"at least 1, 1 and {2 * self.block_s:g} (two blocks)"
            )
        self.streams, self.backlog_s = streams, backlog_s
        self._session, self._extract, self._decoder = session, extract, decoder
        self._batch = batch if session.profile is None else min(batch, session.profile.batch[2])
        # A stream is kept alive here only until it ends: one that is forgotten frees its place.
        self._living: dict[int, weakref.ref[PooledStream]] = {}
        self._ending: dict[int, PooledStream] = {}
        self._forgotten: deque[int] = deque()
        self._opened = 0
        self._closed = False
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._ticking = threading.Lock()

    def __len__(self) -> int:
        """Return the number of open streams, including finished ones with audio left to process."""
        return len(self._streams())

    def open(
        self,
        sample_rate: float = 16_000,
        name: str = "",
        hot_words: Phrases | None = None,
        endpoint: Endpoint | None = None,
    ) -> PooledStream:
        """Open a stream.

        Args:
            sample_rate: sample rate of the audio, in Hz; 1,000 to 768,000.
            name: name of the stream in messages; by default its number.
            hot_words: see `Recognizer.transcribe`.
            endpoint: see `Recognizer.stream`.

        Raises:
            BackPressureError: the maximum number of streams is open.
            AudioError: the sample rate is outside 1,000 to 768,000 Hz.
            StreamError: the pool is closed.
        """
        channel = Channel(
            self._session,
            self._extract,
            with_hot_words(self._decoder, hot_words),
            sample_rate,
            f"stream {name}".rstrip(),
            live=True,
            endpoint=endpoint,
        )
        with self._lock:
            self._check_open()
            self._sweep()
            if len(self._living) >= self.streams:
                raise BackPressureError(
                    f"the limit of {self.streams} open streams of this pool is reached: finish one "
                    "first, or make a larger pool"
                )
            number = self._opened
            self._opened += 1
            stream = PooledStream(self, channel, number, name or str(number))
            # Called whenever the last reference goes, in the middle of anything: no lock there.
            gone = self._forgotten.append
            self._living[number] = weakref.ref(stream, lambda _: gone(number))
        return stream

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the next tick has work, or until the timeout (seconds).

        Returns:
            True if there is work; False after the timeout, and at once when the pool is closed.
        """
        return self._news.wait(timeout_s) and not self._closed

    def tick(self) -> list[Tick]:
        """Run one block of every stream that has one ready.

        Returns:
            These streams with their new words, in the order in which they were opened. A stream
            whose `transcript` is set has left the pool.

        Raises:
            DeviceError: the session failed. A later tick returns the results that were computed
                before, and processes the rest.
            StreamError: the pool is closed.
        """
        with self._ticking:
            self._check_open()
            self._news.clear()
            due = [stream for stream in self._streams() if stream._due()]
            ready = [stream._channel for stream in due if stream._channel.ready]
            try:
                for start in range(0, len(ready), self._batch):
                    run_channels(self._session, ready[start : start + self._batch])
            finally:
                if any(stream._due() for stream in due):
                    self._news.set()
            ticks = [Tick(stream, stream._channel.update()) for stream in due]
            for stream in due:
                if stream._conclude():
                    with self._lock:
                        self._ending.pop(stream.number, None)
                        self._living.pop(stream.number, None)
            return ticks

    def drain(self) -> list[Tick]:
        """Call `tick` until all finished streams have their transcripts; use it before `close`.

        Raises:
            DeviceError, StreamError: see `tick`.
        """
        ticks: list[Tick] = []
        while self._ending:
            ticks += self.tick()
        return ticks

    def close(self) -> None:
        """Close the pool after the current tick; the session stays open.

        Audio that still waits is discarded; call `drain` first to process it.
        """
        with self._ticking, self._lock:
            self._closed = True
            self._living.clear()
            self._ending.clear()
        self._news.set()

    def _streams(self) -> list[PooledStream]:
        with self._lock:
            self._sweep()
            streams = [reference() for reference in self._living.values()]
        return [stream for stream in streams if stream is not None]

    def _sweep(self) -> None:
        """Free the places of streams without references."""
        while self._forgotten:
            self._living.pop(self._forgotten.popleft(), None)

    def _keep(self, stream: PooledStream) -> None:
        """Keep an ending stream alive until all of it is read."""
        with self._lock:
            self._ending[stream.number] = stream

    def _check_open(self) -> None:
        if self._closed:
            raise StreamError("the pool is closed; make another")
