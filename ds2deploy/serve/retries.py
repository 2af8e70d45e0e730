"""Times at which refused clients may try again."""

from __future__ import annotations

import time
from collections.abc import Callable

PER_S = 5.0
"""Clients that are told to come again in one second."""

LEAST_S, MOST_S = 1.0, 30.0
"""Shortest and longest time that a client is told to wait."""


class Retries:
    """Spreads the retries of refused clients, so that they do not load a full server.

    Each client gets a moment of its own, after those of the clients that were refused before it.

    Args:
        clock: monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._next = clock, 0.0

    def after_s(self) -> float:
        """Choose the seconds after which the next refused client may try again."""
        now = self._clock()
        self._next = min(max(self._next + 1 / PER_S, now + LEAST_S), now + MOST_S)
        return self._next - now
