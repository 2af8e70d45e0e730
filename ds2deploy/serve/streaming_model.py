"""Streaming model of the server, whose ticks process live streams and uploads."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ds2deploy.runtimes.audio.arriving import ArrivingFile, RereadError
from ds2deploy.runtimes.audio.source import BinaryReader
from ds2deploy.runtimes.decoding.decoder import Phrases
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import DeviceError, Ds2Error
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.streaming.endpoint import Endpoint
from ds2deploy.runtimes.streaming.pool import StreamPool, Tick
from ds2deploy.serve.capacity import measure_streams
from ds2deploy.serve.limits import RefusedError
from ds2deploy.serve.live import LiveStream
from ds2deploy.serve.models import Model, OnUpdate
from ds2deploy.serve.retries import Retries
from ds2deploy.serve.uploads import limited


class StreamingModel(Model):
    """Streaming model; uploads are processed as streams in the same ticks."""

    streaming = True

    def __init__(self, name: str, load: Callable[[], Recognizer], *rest: object) -> None:
        super().__init__(name, load, *rest)  # type: ignore[arg-type]
        self._live: dict[int, LiveStream] = {}
        self._retries = Retries()
        self._open_pool()
        self.most_streams = self.limits.streams or measure_streams(self.recognizer)
        self.metrics.most_streams.labels(self.name).set(self.most_streams)

    @property
    def backlog_s(self) -> float:
        """Maximum duration of a stream's audio that waits, in seconds."""
        return self._pool.backlog_s

    @property
    def block_s(self) -> float:
        """Duration of a block, in seconds."""
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
            sample_rate: sample rate of the stream's audio, in Hz.
            name: name of the stream, for errors.
            hot_words: phrases to prefer; see `Recognizer.transcribe`.
            endpoint: rules that end a segment; see `Recognizer.stream`.

        Raises:
            RefusedError: as many streams are open as the server takes.
            AudioError, ConfigError, AlphabetError: a rate that is none; unusable hot words.
            DeviceError: the engine failed.
        """
        if sum(not one.upload for one in self._live.values()) >= self.most_streams:
            raise RefusedError(
                429,
                f"{self.most_streams} streams are open, the maximum of {self.name}: try again",
                "overloaded", None, self._retries.after_s(),
            )  # fmt: skip
        return self._opened(sample_rate, name, hot_words, endpoint, upload=False)

    async def transcribe(
        self,
        file: BinaryReader,
        name: str,
        hot_words: Phrases | None = None,
        on_update: OnUpdate | None = None,
    ) -> Transcript:
        """Recognise a recording as a stream, while it arrives; see `Model.transcribe`."""
        try:
            return await self._as_stream(file, name, hot_words, on_update)
        except RereadError:  # the file is complete now
            return await self._as_stream(file, name, hot_words, on_update)

    async def _as_stream(
        self, file: BinaryReader, name: str, hot_words: Phrases | None, on_update: OnUpdate | None
    ) -> Transcript:
        pieces = limited(file, name, self.sample_rate, self.limits.audio_s)
        stream = self._opened(self.sample_rate, name, hot_words, None, upload=True)
        # Reading an arriving file waits for its sender, which must not hold a shared thread.
        reader = ThreadPoolExecutor(1, f"ds2deploy-upload-{self.name}")
        try:
            read = functools.partial(self._loop.run_in_executor, reader, next, pieces, None)
            while (piece := await read()) is not None:
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
            if isinstance(file, ArrivingFile) and not file.is_complete:
                file.abort()
            reader.shutdown(wait=False)

    def forget(self, number: int, live: LiveStream) -> None:
        """Release a stream; called when it is closed.

        After a restart of the engine, another stream may have this number; it is not released.
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
        # This class counts live streams; the pool has extra room for uploads and ending streams.
        self._pool = self.recognizer.pool(streams=1 << 20, backlog_s=self.limits.backlog_s)
