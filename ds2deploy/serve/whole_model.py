"""Server model for whole utterances, which processes uploads in batches."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import numpy as np

from ds2deploy.runtimes.audio.source import BinaryReader
from ds2deploy.runtimes.decoding.decoder import Phrases
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import DeviceError, Ds2Error, StreamError
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.session import Session
from ds2deploy.runtimes.whole_utterances import begin_reading
from ds2deploy.serve.models import Model, OnUpdate
from ds2deploy.serve.turn import TurnSession
from ds2deploy.serve.uploads import limited


class WholeModel(Model):
    """Model of whole utterances, batched; long recordings are processed window by window."""

    def __init__(self, name: str, load: Callable[[], Recognizer], *rest: object) -> None:
        super().__init__(name, load, *rest)  # type: ignore[arg-type]
        self._open_pool()
        self._long = asyncio.Semaphore(1)

    async def transcribe(
        self,
        file: BinaryReader,
        name: str,
        hot_words: Phrases | None = None,
        on_update: OnUpdate | None = None,
    ) -> Transcript:
        """Recognise a recording; see `Model.transcribe`."""
        self._check_working()
        pieces = limited(file, name, self.sample_rate, self.limits.audio_s)
        limit = int(self.recognizer.longest_s * self.sample_rate)
        begun, rest = await asyncio.to_thread(begin_reading, pieces, limit)
        if rest is not None:
            async with self._long:
                whole = itertools.chain(begun, rest)
                return await asyncio.to_thread(
                    self._shared.transcribe_pieces,
                    whole, self.sample_rate, None, name, hot_words,
                )  # fmt: skip
        samples = np.concatenate(begun) if begun else np.zeros(0, np.float32)
        future = await asyncio.to_thread(self._pool.submit, samples, hot_words, name)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.cancelled():  # cancelled by the pool, not by the client
                raise StreamError("the server is shutting down: try again") from None
            raise

    def _wait(self, timeout_s: float) -> bool:
        return self._pool.wait(timeout_s)

    def _tick(self) -> int:
        before_s = self._pool.waiting_s
        self.metrics.waiting.labels(self.name).set(before_s)
        count = self._pool.tick()
        after_s = self._pool.waiting_s
        self.metrics.waiting.labels(self.name).set(after_s)
        self.metrics.audio.labels(self.name).inc(max(0.0, before_s - after_s))
        self._loop.call_soon_threadsafe(self._announce_tick)
        return count

    def _abandon(self, error: Ds2Error) -> None:
        self._pool.fail(DeviceError(str(error)))

    def _open_pool(self) -> None:
        session, decoder = self.recognizer.session, self.recognizer.decoder
        self._pool = self.recognizer.utterance_pool(self.limits.waiting)
        self._shared = Recognizer(
            TurnSession(session, self._turn, lambda error: self._report(session, error)),
            lambda *_: decoder,
        )

    def _report(self, session: Session, error: Exception) -> None:
        """Let the model's thread open the engine again, unless it did meanwhile."""
        if session is self.recognizer.session:
            self._reported = error
