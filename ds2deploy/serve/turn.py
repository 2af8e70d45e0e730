"""Lock that lets one model compute at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


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
