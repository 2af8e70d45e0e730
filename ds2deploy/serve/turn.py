"""Lock that lets one model compute at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from ds2deploy.runtimes.errors import DeviceError, Ds2Error
from ds2deploy.runtimes.session import Session
from ds2deploy.serve.measuring import WrappedSession


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


class TurnSession(WrappedSession):
    """Session that waits for its turn in every run; see `Session`.

    Args:
        session: the session, which the model's own thread uses, too.
        turn: turn of the server's models.
        on_failure: receives the error of a run that failed.
    """

    def __init__(
        self, session: Session, turn: Turn, on_failure: Callable[[Exception], None]
    ) -> None:
        super().__init__(session, self._reported)
        self._turn, self._on_failure = turn, on_failure

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
