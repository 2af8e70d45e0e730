"""Models of the server: each has an engine, and a thread that runs its ticks."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from ds2deploy.runtimes.audio.source import BinaryReader
from ds2deploy.runtimes.decoding.decoder import HotWordDecoder, Phrases
from ds2deploy.runtimes.decoding.transcript import Transcript, Update
from ds2deploy.runtimes.errors import DeviceError, Ds2Error
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.serve.limits import Limits
from ds2deploy.serve.metrics import Metrics
from ds2deploy.serve.turn import Turn

log = logging.getLogger("ds2deploy.serve")

IDLE_S = 0.5
"""Interval in which an idle thread checks for the end of the server, in seconds."""

OnUpdate = Callable[[Update], None]


class Model:
    """Base class of the models that the server offers, `StreamingModel` and `WholeModel`.

    Args:
        name: name by which clients select the model.
        load: function that opens the model; called again after a failure of the engine.
        limits: limits of the server.
        metrics: metrics of the server.
        turn: lock that the server's models share, so that one computes at a time.
        tick_s: interval between ticks, in seconds; 0 starts a tick as soon as the previous one
            has ended and work waits (Batch Dispatch).

    Attributes:
        name: name by which clients select the model.
        recognizer: recognizer of the model on its runtime.
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
        self._reported: Exception | None = None
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
        """True if the model is served with a beam search."""
        return isinstance(self.recognizer.decoder, HotWordDecoder)

    def start(self) -> None:
        """Start the thread that runs ticks."""
        self.metrics.ready.labels(self.name).set(1)
        self._thread.start()

    def problem(self) -> str | None:
        """Describe why the model is not ready; None if it is ready."""
        if self.failure is not None:
            return f"{self.name}: the engine failed: {self.failure}"
        began = self._tick_began
        if began is not None and (took_s := time.monotonic() - began) > self.limits.stuck_s:
            return f"{self.name}: a batch has been running for {took_s:.0f} s"
        return None

    async def told(self) -> None:
        """Wait until the results of all ticks that have begun are delivered to the streams."""
        begun = self._ticks_begun
        while self._ticks_told < begun:
            await self.next_tick()

    async def next_tick(self) -> None:
        """Wait for the end of the current tick, or of the next one if none is running."""
        event = self._ticked
        await event.wait()

    async def transcribe(
        self,
        file: BinaryReader,
        name: str,
        hot_words: Phrases | None = None,
        on_update: OnUpdate | None = None,
    ) -> Transcript:
        """Recognise a recording.

        Args:
            file: open file with a recording in any supported format.
            name: name of the recording, for errors.
            hot_words: phrases to prefer; see `Recognizer.transcribe`.
            on_update: function that receives the updates of a streaming model.

        Raises:
            AudioError: the file is not audio, or is damaged.
            RefusedError: the recording is longer than the limit.
            BackPressureError: too many utterances wait.
            DeviceError, StreamError: the engine failed.
        """
        raise NotImplementedError

    async def stop(self) -> None:
        """End the thread after the current tick, and release the engine."""
        self._stopping = True
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        self.recognizer.close()

    def _run(self) -> None:
        """Run ticks until the server ends: the body of the thread."""
        while not self._stopping:
            if self.failure is not None:
                time.sleep(IDLE_S)
                continue
            waiting = self._wait(IDLE_S)
            if self._reported is not None:
                error, self._reported = self._reported, None
                self._fail(error)
                continue
            if not waiting:
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
        """Fail all work in progress, and try once to reopen the engine."""
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
            with self._turn.take():
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
        """Wake the tasks that wait for a tick; call it in the event loop's thread."""
        self._ticks_told += 1
        event, self._ticked = self._ticked, asyncio.Event()
        event.set()

    def _check_working(self) -> None:
        if self.failure is not None:
            raise DeviceError(str(self.failure))

    def _wait(self, timeout_s: float) -> bool:
        raise NotImplementedError

    def _tick(self) -> int:
        """Run a tick, and return the number of streams or utterances in it."""
        raise NotImplementedError

    def _abandon(self, error: Ds2Error) -> None:
        """Fail all work in progress with an error."""
        raise NotImplementedError

    def _open_pool(self) -> None:
        raise NotImplementedError


def _network_s(session: object) -> float:
    return getattr(session, "network_s", 0.0)
