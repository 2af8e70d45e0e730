"""A session that measures the time of its network."""

from __future__ import annotations

import time

from ds2deploy.runtimes.features import FloatArray, IntArray
from ds2deploy.runtimes.session import Session
from ds2deploy.runtimes.tensors import Tensors


class MeasuredSession:
    """Session that adds up the seconds in its network; see `Session`.

    Attributes:
        network_s: seconds so far; read and changed by the thread that runs the session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.description, self.runtime = session.description, session.runtime
        self.profile, self.at_once = session.profile, session.at_once
        self.network_s = 0.0

    def compute(self, tensors: Tensors) -> Tensors:
        """See `Session.compute`."""
        started = time.perf_counter()
        found = self._session.compute(tensors)
        self.network_s += time.perf_counter() - started
        return found

    def run(self, sound: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        """See `Session.run`."""
        started = time.perf_counter()
        found = self._session.run(sound, lengths)
        self.network_s += time.perf_counter() - started
        return found

    def streaming(self) -> Session | None:
        """See `Session.streaming`; the same object where the session streams itself."""
        found = self._session.streaming()
        if found is self._session:
            return self
        return None if found is None else MeasuredSession(found)

    def close(self) -> None:
        """See `Session.close`."""
        self._session.close()
