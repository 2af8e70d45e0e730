"""Models of the server: each has an engine, a pool, and a thread that runs its ticks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from ds2deploy.runtimes.audio.loading import read_blocks
from ds2deploy.runtimes.decoding.decoder import HotWordDecoder, Phrases
from ds2deploy.runtimes.decoding.transcript import Transcript, Update
from ds2deploy.runtimes.errors import BackPressureError, DeviceError, Ds2Error, StreamError
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.preparation import AudioInput, readable
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.streaming.endpoint import Endpoint
from ds2deploy.runtimes.streaming.pool import StreamPool, Tick
from ds2deploy.serve.capacity import measure_streams
from ds2deploy.serve.limits import Limits, RefusedError
from ds2deploy.serve.live import LiveStream
from ds2deploy.serve.measuring import MeasuredSession
from ds2deploy.serve.metrics import Metrics

log = logging.getLogger("ds2deploy.serve")

IDLE_S = 0.5
"""Seconds after which a thread without work looks whether the server ends."""

OnUpdate = Callable[[Update], None]


class Turn:
    """Lets the threads of all models compute one at a time, first come, first served."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._now = 0

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Wait for the turn, and hold it."""
        with self._changed:
            number = self._next
            self._next += 1
            self._changed.wait_for(lambda: self._now == number)
        try:
            yield
        finally:
            with self._changed:
                self._now += 1
                self._changed.notify_all()


class Model:
    """A model that the server offers; `StreamingModel` and `WholeModel` are its two kinds.

    Args:
        name: name that clients ask for.
        load: opens the model; called again after a failure of the engine.
        limits: limits of the server.
        metrics: metrics of the server.
        turn: turn of the server's models.
        tick_s: time from one tick to the next, in seconds; 0 begins a tick as soon as the last one
            has ended and something waits (Batch Dispatch).

    Attributes:
        name: name that clients ask for.
        recognizer: the model on its runtime.
        failure: error of the engine; None while it works.
    """

    streaming = False

    def __init__(
        self,
        name: str,
        load: Callable[[], Recognizer],
        limits: Limits,
        metrics: Metrics,
        turn: Turn,
        tick_s: float = 0.0,
    ) -> None:
        self.name, self.limits, self.metrics = name, limits, metrics
        self.recognizer = load()
        self.failure: Ds2Error | None = None
        self._load, self._turn, self._tick_s = load, turn, tick_s
        self._restarted = False
        self._stopping = False
        self._tick_began: float | None = None
        self._ticks_begun = self._ticks_told = 0
        self._loop = asyncio.get_running_loop()
        self._ticked = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"ds2deploy-{name}", daemon=True)

    @property
    def labels(self) -> str:
        """Labels of the model."""
        return self.recognizer.description.labels

    @property
    def sample_rate(self) -> int:
        """Sample rate of the model, in Hz."""
        return self.recognizer.description.features.sample_rate

    @property
    def takes_hot_words(self) -> bool:
        """Whether the model is served with a beam search."""
        return isinstance(self.recognizer.decoder, HotWordDecoder)

    def start(self) -> None:
        """Begin to run ticks."""
        self.metrics.ready.labels(self.name).set(1)
        self._thread.start()

    def problem(self) -> str | None:
        """Say why the model is not ready; None if it is."""
        if self.failure is not None:
            return f"{self.name}: the engine failed: {self.failure}"
        began = self._tick_began
        if began is not None and (took_s := time.monotonic() - began) > self.limits.stuck_s:
            return f"{self.name}: a tick has not ended for {took_s:.0f} s"
        return None

    async def told(self) -> None:
        """Wait until the results of every tick that has begun were given to the streams."""
        begun = self._ticks_begun
        while self._ticks_told < begun:
            await self.next_tick()

    async def next_tick(self) -> None:
        """Wait until the tick under way, or the next one, has ended."""
        event = self._ticked
        await event.wait()

    async def transcribe(
        self,
        file: BinaryIO,
        name: str,
        hot_words: Phrases | None = None,
        on_update: OnUpdate | None = None,
    ) -> Transcript:
        """Recognise a recording.

        Args:
            file: recording in any format that is read, at any place.
            name: name of the recording, for errors.
            hot_words: see `Recognizer.transcribe`.
            on_update: receives the updates of a streaming model.

        Raises:
            AudioError: not audio, or damaged.
            RefusedError: longer than the limit.
            BackPressureError, DeviceError, StreamError: too much waits, or the engine failed.
        """
        raise NotImplementedError

    async def stop(self) -> None:
        """End the thread after the tick under way, and give the engine back."""
        self._stopping = True
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        self.recognizer.close()

    def _run(self) -> None:
        """Run ticks until the server ends: body of the thread."""
        while not self._stopping:
            if self.failure is not None or not self._wait(IDLE_S):
                if self.failure is not None:
                    time.sleep(IDLE_S)
                continue
            if self._tick_s:
                time.sleep(self._tick_s - time.monotonic() % self._tick_s)
            try:
                self._measured_tick()
            except Exception as error:
                self._fail(error)

    def _measured_tick(self) -> None:
        session = self.recognizer.session
        with self._turn.take():
            self._tick_began = time.monotonic()
            self._ticks_begun += 1
            started, network_s = time.perf_counter(), _network_s(session)
            try:
                fill = self._tick()
            finally:
                took_s = time.perf_counter() - started
                self._tick_began = None
        if fill:
            self.metrics.tick.labels(self.name).observe(took_s)
            self.metrics.fill.labels(self.name).observe(fill)
        self.metrics.busy.labels(self.name).inc(took_s)
        self.metrics.network.labels(self.name).inc(_network_s(session) - network_s)

    def _fail(self, error: Exception) -> None:
        """Fail what is under way, and try once to open the engine again."""
        failure = error if isinstance(error, Ds2Error) else DeviceError(f"{error!r}")
        log.error("engine failed", extra={"model": self.name, "reason": str(failure)})
        self.failure = failure
        self.metrics.ready.labels(self.name).set(0)
        self._abandon(failure)
        if self._restarted:
            return
        self._restarted = True
        self.metrics.restarts.labels(self.name).inc()
        try:
            self.recognizer.close()
            self.recognizer = self._load()
            self._open_pool()
        except Exception as again:
            log.exception("engine cannot be opened again", extra={"model": self.name})
            self.failure = again if isinstance(again, Ds2Error) else DeviceError(f"{again!r}")
            return
        self.failure = None
        self.metrics.ready.labels(self.name).set(1)
        log.warning("engine opened again", extra={"model": self.name})

    def _announce_tick(self) -> None:
        """Wake the tasks that wait for a tick; in the event loop's thread."""
        self._ticks_told += 1
        event, self._ticked = self._ticked, asyncio.Event()
        event.set()

    def _check_working(self) -> None:
        if self.failure is not None:
            raise DeviceError(str(self.failure))

    def _wait(self, timeout_s: float) -> bool:
        raise NotImplementedError

    def _tick(self) -> int:
        """Run a tick; returns the number of streams or utterances in it."""
        raise NotImplementedError

    def _abandon(self, error: Ds2Error) -> None:
        """Give an error to all that is under way."""
        raise NotImplementedError

    def _open_pool(self) -> None:
        raise NotImplementedError


class StreamingModel(Model):
    """A model that streams; uploads go through the same ticks, as streams."""

    streaming = True

    def __init__(self, name: str, load: Callable[[], Recognizer], *rest: object) -> None:
        super().__init__(name, load, *rest)  # type: ignore[arg-type]
        self._live: dict[int, LiveStream] = {}
        self._open_pool()
        self.most_streams = self.limits.streams or measure_streams(self.recognizer)

    @property
    def backlog_s(self) -> float:
        """Seconds of audio of a stream that may wait."""
        return self._pool.backlog_s

    @property
    def block_s(self) -> float:
        """Seconds of audio in a block."""
        return self._pool.block_s

    def open(
        self,
        sample_rate: float,
        name: str = "",
        hot_words: Phrases | None = None,
        endpoint: Endpoint | None = None,
    ) -> LiveStream:
        """Open a live stream.

        Args:
            sample_rate: sample rate of its audio, in Hz.
            name: name of the stream, for errors.
            hot_words: see `Recognizer.transcribe`.
            endpoint: see `Recognizer.stream`.

        Raises:
            BackPressureError: as many streams are open as the server takes.
            AudioError, ConfigError, AlphabetError: a rate that is none; unusable hot words.
            DeviceError: the engine failed.
        """
        if sum(not one.upload for one in self._live.values()) >= self.most_streams:
            raise BackPressureError(
                f"{self.most_streams} streams are open, as many as {self.name} takes: try again"
            )
        return self._opened(sample_rate, name, hot_words, endpoint, upload=False)

    async def transcribe(
        self,
        file: BinaryIO,
        name: str,
        hot_words: Phrases | None = None,
        on_update: OnUpdate | None = None,
    ) -> Transcript:
        """Recognise a recording as a stream; see `Model.transcribe`."""
        pieces = _limited(file, name, self.sample_rate, self.limits.audio_s)
        stream = self._opened(self.sample_rate, name, hot_words, None, upload=True)
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                await stream.accept(piece)
                if on_update is not None and (update := stream.take()) is not None:
                    on_update(update)
            stream.finish()
            while not isinstance(found := await stream.next(), Transcript):
                if on_update is not None:
                    on_update(found)
            return found
        finally:
            stream.close()

    def forget(self, number: int, live: LiveStream) -> None:
        """Let go of a stream; called when it is closed.

        After a restart of the engine the number may be that of another stream, which stays.
        """
        if self._live.get(number) is live:
            del self._live[number]
            self._count()

    def _opened(
        self,
        sample_rate: float,
        name: str,
        hot_words: Phrases | None,
        endpoint: Endpoint | None,
        upload: bool,
    ) -> LiveStream:
        self._check_working()
        stream = self._pool.open(sample_rate, name, hot_words, endpoint)
        live = LiveStream(self, stream, sample_rate, upload)
        self._live[stream.number] = live
        self._count()
        return live

    def _count(self) -> None:
        count = sum(not one.upload for one in self._live.values())
        self.metrics.streams.labels(self.name).set(count)

    def _wait(self, timeout_s: float) -> bool:
        return self._pool.wait(timeout_s)

    def _tick(self) -> int:
        ticks = self._pool.tick()
        self._loop.call_soon_threadsafe(self._deliver, self._pool, ticks)
        return len(ticks)

    def _deliver(self, pool: StreamPool, ticks: list[Tick]) -> None:
        now = time.monotonic()
        if pool is self._pool:
            for tick in ticks:
                live = self._live.get(tick.stream.number)
                if live is None:
                    continue
                complete_at = live.deliver(tick.update, tick.stream.transcript)
                if complete_at is not None and not live.upload:
                    self.metrics.lateness.labels(self.name).observe(now - complete_at)
                self.metrics.audio.labels(self.name).inc(self._pool.block_s)
        waiting_s = max((live.backlog_s for live in self._live.values()), default=0.0)
        self.metrics.waiting.labels(self.name).set(waiting_s)
        self._announce_tick()

    def _abandon(self, error: Ds2Error) -> None:
        self._pool.close()
        self._loop.call_soon_threadsafe(self._fail_all, error)

    def _fail_all(self, error: Ds2Error) -> None:
        for live in list(self._live.values()):
            live.fail(DeviceError(str(error)))
        self._live.clear()
        self._count()
        self._announce_tick()

    def _open_pool(self) -> None:
        # Places are counted here; the pool has room for uploads, and for streams that are ending.
        self._pool = self.recognizer.pool(streams=1 << 20, backlog_s=self.limits.backlog_s)


class WholeModel(Model):
    """A model of whole utterances, in batches; longer recordings go in windows, one at a time."""

    def __init__(self, name: str, load: Callable[[], Recognizer], *rest: object) -> None:
        super().__init__(name, load, *rest)  # type: ignore[arg-type]
        self._open_pool()
        self._long = asyncio.Semaphore(1)

    async def transcribe(
        self,
        file: BinaryIO,
        name: str,
        hot_words: Phrases | None = None,
        on_update: OnUpdate | None = None,
    ) -> Transcript:
        """Recognise a recording; see `Model.transcribe`."""
        self._check_working()
        pieces = _limited(file, name, self.sample_rate, self.limits.audio_s)
        limit = int(self.recognizer.longest_s * self.sample_rate)
        begun, rest = await asyncio.to_thread(_begin, pieces, limit)
        if rest is not None:
            async with self._long:
                whole = itertools.chain(begun, rest)
                return await asyncio.to_thread(
                    self.recognizer.transcribe_pieces,
                    whole, self.sample_rate, None, name, hot_words,
                )  # fmt: skip
        samples = np.concatenate(begun) if begun else np.zeros(0, np.float32)
        future = await asyncio.to_thread(self._pool.submit, samples, hot_words, name)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.cancelled():  # by the pool, not by the client
                raise StreamError("the server is shutting down: try again") from None
            raise

    def _wait(self, timeout_s: float) -> bool:
        return self._pool.wait(timeout_s)

    def _tick(self) -> int:
        waiting_s = self._pool.waiting_s
        self.metrics.waiting.labels(self.name).set(waiting_s)
        count = self._pool.tick()
        self.metrics.audio.labels(self.name).inc(max(0.0, waiting_s - self._pool.waiting_s))
        self._loop.call_soon_threadsafe(self._announce_tick)
        return count

    def _abandon(self, error: Ds2Error) -> None:
        self._pool.fail(DeviceError(str(error)))

    def _open_pool(self) -> None:
        self._pool = self.recognizer.utterance_pool(self.limits.waiting)


def open_model(
    name: str,
    load: Callable[[], Recognizer],
    limits: Limits,
    metrics: Metrics,
    turn: Turn,
    tick_s: float = 0.0,
) -> Model:
    """Open a model as the kind that it is; in the event loop's thread. See `Model`."""

    def measured() -> Recognizer:
        found = load()
        return Recognizer(MeasuredSession(found.session), lambda *_: found.decoder)

    first = measured()
    kind = StreamingModel if _can_stream(first) else WholeModel
    opened = iter([first])
    return kind(name, lambda: next(opened, None) or measured(), limits, metrics, turn, tick_s)


def _can_stream(recognizer: Recognizer) -> bool:
    try:
        recognizer.pool().close()
    except StreamError:
        return False
    return True


def _limited(file: BinaryIO, name: str, sample_rate: int, most_s: float) -> Iterator[FloatArray]:
    """Read a recording in pieces, up to the limit of its duration."""
    count = 0
    for piece in readable(AudioInput(name, read_blocks(file, sample_rate))):
        count += len(piece)
        if count > most_s * sample_rate:
            raise RefusedError(
                413,
                f"{name}: longer than {most_s:g} s of audio; split it",
                "audio_too_long",
                "file",
            )
        yield piece


def _begin(
    pieces: Iterator[FloatArray], limit: int
) -> tuple[list[FloatArray], Iterator[FloatArray] | None]:
    """Read until there is more than the limit; the rest is None where there is not."""
    read: list[FloatArray] = []
    count = 0
    for piece in pieces:
        read.append(piece)
        count += len(piece)
        if count > limit:
            return read, pieces
    return read, None


def _network_s(session: object) -> float:
    return getattr(session, "network_s", 0.0)
