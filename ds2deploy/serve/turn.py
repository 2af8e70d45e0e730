"""Lock that lets one model compute at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from ds2deploy.runtimes.errors import DeviceError, Ds2Error
from ds2deploy.runtimes.features import FloatArray, IntArray
from ds2deploy.runtimes.session import Session
from ds2deploy.runtimes.tensors import Tensors


class Turn:
    """Fair lock for the threads of all models: one computes at a time, in order of arrival."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._now = 0

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Acquire the lock, and hold it during the context."""
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


class TurnSession:
    """Session that waits for its turn in every run; see `Session`.

    Args:
        session: the session, which the model's own thread uses, too.
        turn: turn of the server's models.
        on_failure: receives the error of a run that failed.
    """

    def __init__(
        self, session: Session, turn: Turn, on_failure: Callable[[Exception], None]
    ) -> None:
        self._session, self._turn, self._on_failure = session, turn, on_failure
        self.description, self.runtime = session.description, session.runtime
        self.profile, self.at_once = session.profile, session.at_once

    def compute(self, tensors: Tensors) -> Tensors:
        """See `Session.compute`."""
        with self._reported():
            return self._session.compute(tensors)

    def run(self, sound: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        """See `Session.run`."""
        with self._reported():
            return self._session.run(sound, lengths)

    def streaming(self) -> Session | None:
        """See `Session.streaming`."""
        found = self._session.streaming()
        return None if found is None else TurnSession(found, self._turn, self._on_failure)

    def close(self) -> None:
        """Do nothing: the model closes its session."""

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Hold the turn, and report an error of the engine.

        Raises:
            DeviceError: the engine failed.
        """
        with self._turn.take():
            try:
                yield
            except Exception as error:
                self._on_failure(error)
                raise error if isinstance(error, Ds2Error) else DeviceError(repr(error)) from None
