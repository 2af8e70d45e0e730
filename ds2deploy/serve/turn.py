"""The turn of the threads that compute."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


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
