"""Session that measures the time spent in its network."""

from __future__ import annotations

import time

from ds2deploy.runtimes.features import FloatArray, IntArray
from ds2deploy.runtimes.session import Session
from ds2deploy.runtimes.tensors import Tensors


class NetworkClock:
    """Adds up seconds; read and changed by the thread that has the turn.

    Attributes:
        seconds: total so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0


class MeasuredSession:
    """Session that sums the seconds spent in its network; see `Session`.

    Args:
        session: session to measure.
        clock: clock that sums the seconds, shared with the streaming session; None makes one.
    """

    def __init__(self, session: Session, clock: NetworkClock | None = None) -> None:
        self._session = session
        self._clock = clock or NetworkClock()
        self.description, self.runtime = session.description, session.runtime
        self.profile, self.at_once = session.profile, session.at_once

    @property
    def network_s(self) -> float:
        """Time spent in the network so far, in seconds."""
        return self._clock.seconds

    def compute(self, tensors: Tensors) -> Tensors:
        """See `Session.compute`."""
        started = time.perf_counter()
        found = self._session.compute(tensors)
        self._clock.seconds += time.perf_counter() - started
        return found

    def run(self, sound: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        """See `Session.run`."""
        started = time.perf_counter()
        found = self._session.run(sound, lengths)
        self._clock.seconds += time.perf_counter() - started
        return found

    def streaming(self) -> Session | None:
        """See `Session.streaming`; returns this object if the session streams itself."""
        found = self._session.streaming()
        if found is self._session:
            return self
        return None if found is None else MeasuredSession(found, self._clock)

    def close(self) -> None:
        """See `Session.close`."""
        self._session.close()
