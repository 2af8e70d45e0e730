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

    Whoever drops the last reference to it without `finish` gives its place back.

    Attributes:
        number: how many streams the pool had opened before.
        name: what `open` was told.
        ended: whether `finish` was called.
        transcript: of the whole utterance, once it is done; None before.
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
        """Seconds of audio that wait for a tick."""
        return self._channel.audio.waiting_s

    @property
    def is_ready(self) -> bool:
        """Tell whether a tick has something to do for it."""
        return self._due()

    def accept(self, samples: npt.ArrayLike) -> None:
        """Take more audio, which the next ticks run; never waits.

        Args:
            samples: (samples,) or (samples, channels) float32 in [-1, 1] at the stream's rate; any
                number of them, none too.

        Raises:
            BackPressureError: more than the pool's `backlog_s` would wait; nothing of it is
                taken.
            AudioError: not such an array, or not finite; nothing of it is taken.
            StreamError: the stream, or its pool, has ended.
        """
        with self._lock:
            self._check_open()
            audio = self._channel.audio
            samples = as_samples(samples, f"stream {self.name}")
            coming_s = len(samples) / audio.sample_rate
            if audio.waiting_s + coming_s > self._pool.backlog_s:
                raise BackPressureError(
                    f"stream {self.name}: {audio.waiting_s:.2f} s of audio wait and "
                    f"{coming_s:.2f} s come, at most {self._pool.backlog_s:g} s may wait: send it "
                    "again after the next ticks, in smaller pieces, or serve fewer streams"
                )
            audio.push(samples)
            ready = audio.full
        if ready:
            self._pool._news.set()

    def set_hot_words(self, hot_words: Phrases) -> None:
        """Look for other hot words from the next tick on.

        Args:
            hot_words: phrases, or a mapping to nats for every letter; empty for none.

        Raises:
            StreamError: the stream, or its pool, has ended.
            AlphabetError, ConfigError: see `HotWords`; or a greedy decoder.
        """
        # No tick reads the stream's blocks meanwhile.
        with self._pool._ticking, self._lock:
            self._check_open()
            self._channel.set_hot_words(hot_words)

    def finish(self) -> None:
        """No more audio comes; `transcript` is there when the next ticks have read the rest.

        Raises:
            StreamError: the stream, or its pool, has ended already.
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
        """Tell whether a tick has something to do for it."""
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
        stream: of the pool.
        update: its words; of a stream that is done, its `transcript` is there too.
    """

    stream: PooledStream
    update: Update


class StreamPool(Closing):
    """Serves many streams with one session; a context manager.

    Any number of threads may open, feed and finish streams, while one calls `tick` again and again,
    best once in the duration of a block; a second one waits for its turn. `close` may come from any
    thread and waits for the tick under way. A stream that sends nothing is not waited for.

    Args:
        session: of a streaming model.
        extract: the model's feature extractor.
        decoder: the model's decoder.
        streams: that may be open at the same time.
        backlog_s: seconds of audio that may wait in a stream.
        batch: streams that are run at a time, at most.

    Attributes:
        streams: the same.
        backlog_s: the same.
        block_s: seconds of audio in a block: the time from one tick to the next.

    Raises:
        StreamError: numbers that no pool can have.
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
                f"a pool of {streams} streams in batches of {batch} with a backlog of "
                f"{backlog_s:g} s; expected at least 1, 1 and two blocks, {2 * self.block_s:g} s"
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
        """Streams that are open, those that are about to end included."""
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
            sample_rate: of its audio, in Hz.
            name: for messages; a number by default.
            hot_words: see `Recognizer.transcribe`.
            endpoint: see `Recognizer.stream`.

        Raises:
            BackPressureError: as many are open as the pool was made for.
            AudioError: a rate that is none.
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
                    f"{self.streams} streams are open, as many as this pool takes: finish one "
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
        """Wait until a tick has something to do, or for so long; says whether it has.

        Of a closed pool it says no, and whoever waits while it is closed is told so.
        """
        return self._news.wait(timeout_s) and not self._closed

    def tick(self) -> list[Tick]:
        """Run one block of every stream that has one ready.

        Returns:
            Those streams, in the order in which they were opened, with what is new. One whose
            `transcript` is there has left the pool.

        Raises:
            DeviceError: the session failed. A later tick returns the results from before; the rest
                waits.
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
        """Tick until every stream that has finished is read; best before `close`.

        Raises:
            DeviceError, StreamError: see `tick`.
        """
        ticks: list[Tick] = []
        while self._ending:
            ticks += self.tick()
        return ticks

    def close(self) -> None:
        """Let go of all streams, after the tick under way; the session stays open.

        What has not been read by then is not: `drain` reads it.
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
        """Give back the places of streams that nobody has any more."""
        while self._forgotten:
            self._living.pop(self._forgotten.popleft(), None)

    def _keep(self, stream: PooledStream) -> None:
        """Keep an ending stream alive until all of it is read."""
        with self._lock:
            self._ending[stream.number] = stream

    def _check_open(self) -> None:
        if self._closed:
            raise StreamError("the pool is closed; make another")
