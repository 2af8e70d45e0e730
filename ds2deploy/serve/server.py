"""State of a server: models, limits, and the shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.streaming.endpoint import Endpoint
from ds2deploy.serve.limits import Limits, RefusedError, draining_error
from ds2deploy.serve.metrics import Metrics
from ds2deploy.serve.models import Model
from ds2deploy.serve.opening import open_model
from ds2deploy.serve.retries import Retries
from ds2deploy.serve.streaming_model import StreamingModel
from ds2deploy.serve.turn import Turn

log = logging.getLogger("ds2deploy.serve")

Load = Callable[[], Recognizer]

T = TypeVar("T")

LAST_ANSWERS_S = 1.0
"""Time that clients have to read their refusal if the time to drain is over, in seconds."""


class Server:
    """State that all protocols share.

    Args:
        models: functions that open the models, by name; the first model is the default.
        limits: limits of the server.
        endpoint: rules that end a segment of a live stream, unless a client sets others.
        api_key: key that clients must send; None needs no key.
        tick_s: interval between ticks, in seconds; see `Model`.

    Attributes:
        models: open models, by name.
        limits: limits of the server.
        metrics: metrics for Prometheus.
        endpoint: rules that end a segment.
        api_key: key that clients must send; None needs no key.
        draining: event that is set when the server shuts down.
        cut_off: event that is set when the time to drain is over.
        failure: error of a model that could not be opened; None if there is none.
    """

    def __init__(
        self,
        models: Mapping[str, Load],
        limits: Limits | None = None,
        endpoint: Endpoint | None = None,
        api_key: str | None = None,
        tick_s: float = 0.0,
    ) -> None:
        self._loads, self._tick_s = dict(models), tick_s
        self.limits = limits or Limits()
        self.endpoint = endpoint or Endpoint()
        self.api_key = api_key
        self.metrics = Metrics()
        self.models: dict[str, Model] = {}
        self.failure: Ds2Error | None = None
        self.draining, self.cut_off = asyncio.Event(), asyncio.Event()
        self._uploads = asyncio.Semaphore(self.limits.uploads)
        self._waiting_uploads = self._early_uploads = 0
        self._retries = Retries()
        self._work: set[object] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Open all models and start their ticks; sets `failure` if one cannot be opened."""
        turn = Turn()
        for name, load in self._loads.items():
            try:
                model = open_model(name, load, self.limits, self.metrics, turn, self._tick_s)
            except Ds2Error as error:
                self.failure = error
                return
            self.models[name] = model
            log.info("model opened", extra={"model": name, **_facts(model)})
        for model in self.models.values():
            model.start()

    async def drain(self) -> None:
        """Refuse new work, and wait at most `drain_s` seconds for the work in progress.

        Work that has not ended by then is refused, too.
        """
        self.draining.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self.limits.drain_s)
            return
        log.warning(
            "drain time is over: ending the work in progress", extra={"unfinished": len(self._work)}
        )
        self.cut_off.set()
        await asyncio.sleep(LAST_ANSWERS_S)

    async def unless_cut_off(self, work: Awaitable[T]) -> T:
        """Await work, and cancel it when the time to drain is over.

        Raises:
            RefusedError: the time to drain is over.
        """
        task = asyncio.ensure_future(work)
        over = asyncio.ensure_future(self.cut_off.wait())
        try:
            await asyncio.wait({task, over}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise draining_error()
        finally:
            over.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
                _ = task.cancelled() or task.exception()  # else asyncio logs it

    async def stop(self) -> None:
        """End the threads of the models."""
        for model in self.models.values():
            await model.stop()

    def problem(self) -> str | None:
        """Describe why the server is not ready; None if it is ready."""
        if self.draining.is_set():
            return "the server is shutting down"
        if len(self.models) < len(self._loads):
            return "models are being loaded"
        return next(filter(None, (model.problem() for model in self.models.values())), None)

    def model(self, name: str | None) -> Model:
        """Find a model by name, or the first model if the name is empty.

        Raises:
            RefusedError: there is no such model.
        """
        if not self.models:
            raise RefusedError(503, "models are being loaded: try again", "loading", None, 5)
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            raise RefusedError(
                404, f"model {name[:100]!r}: not served here; expected one of {known}",
                "model_not_found", "model",
            )  # fmt: skip
        return self.models[name]

    def streaming_model(self, name: str | None) -> StreamingModel:
        """Find a streaming model by name, or the first one if the name is empty.

        Raises:
            RefusedError: there is no such model, or it only processes whole utterances.
        """
        if not name:
            streaming = (one for one in self.models.values() if one.streaming)
            name = next(streaming, self.model(None)).name
        model = self.model(name)
        if not isinstance(model, StreamingModel):
            raise RefusedError(
                400,
                f"model {name!r} only processes whole utterances: send a file to "
                "/v1/audio/transcriptions, or serve a streaming model (export --streaming)",
                "not_streaming",
                "model",
            )
        return model

    @contextlib.asynccontextmanager
    async def upload(self) -> AsyncIterator[None]:
        """Wait for one of the places for uploads, and hold it.

        Raises:
            RefusedError: too many uploads wait already.
        """
        if self._waiting_uploads >= self.limits.waiting:
            raise RefusedError(
                429, f"{self.limits.waiting} uploads wait, the maximum: try again", "overloaded",
                None,
                self._retries.after_s(),
            )  # fmt: skip
        self._waiting_uploads += 1
        try:
            await self._uploads.acquire()
        finally:
            self._waiting_uploads -= 1
        try:
            yield
        finally:
            self._uploads.release()

    def begin_early(self) -> bool:
        """Reserve a place for an upload that still arrives; `end_early` releases it.

        Only half of the places are for such uploads: a slow client holds its place for long.

        Returns:
            False if there is no place.
        """
        if self._uploads.locked() or self._early_uploads >= self.limits.uploads // 2:
            return False
        self._early_uploads += 1
        return True

    def end_early(self) -> None:
        """Release a place that `begin_early` reserved."""
        self._early_uploads -= 1

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Register a request or stream as work that `drain` waits for."""
        token = object()
        self._work.add(token)
        self._idle.clear()
        try:
            yield
        finally:
            self._work.discard(token)
            if not self._work:
                self._idle.set()

    def count(self, model: str, protocol: str, outcome: str) -> None:
        """Count a finished request by its outcome, which is the reason if it was refused."""
        self.metrics.requests.labels(model, protocol, outcome).inc()

    def refuse(self, model: str, reason: str) -> None:
        """Count a refused request."""
        self.metrics.refused.labels(model, reason).inc()

    def refuse_http(self, error: RefusedError) -> None:
        """Count an HTTP request that is refused with this error."""
        self.refuse(error.model, error.code)


def _facts(model: Model) -> dict[str, Any]:
    found: dict[str, Any] = {"runtime": model.recognizer.session.runtime}
    if isinstance(model, StreamingModel):
        found["streams"] = model.most_streams
    return found
