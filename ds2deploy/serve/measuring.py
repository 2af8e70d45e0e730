"""Sessions that do something around every run, such as measuring it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from ds2deploy.runtimes.features import FloatArray, IntArray
from ds2deploy.runtimes.session import Session
from ds2deploy.runtimes.tensors import Tensors


class WrappedSession:
    """Session whose runs happen within a context; see `Session`.

    Args:
        session: session that computes.
        within: function that makes the context of a run.
    """

    def __init__(
        self, session: Session, within: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self._session, self._within = session, within
        self.description, self.runtime = session.description, session.runtime
        self.profile, self.at_once = session.profile, session.at_once

    def compute(self, tensors: Tensors) -> Tensors:
        """See `Session.compute`."""
        with self._within():
            return self._session.compute(tensors)

    def run(self, sound: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        """See `Session.run`."""
        with self._within():
            return self._session.run(sound, lengths)

    def streaming(self) -> Session | None:
        """See `Session.streaming`; returns this object if the session streams itself."""
        found = self._session.streaming()
        if found is self._session:
            return self
        return None if found is None else WrappedSession(found, self._within)

    def close(self) -> None:
        """See `Session.close`."""
        self._session.close()


class MeasuredSession(WrappedSession):
    """Session that sums the seconds spent in its network, in a streaming session of it, too.

    Attributes:
        network_s: time spent in the network so far, in seconds.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session, self._measured)
        self.network_s = 0.0

    @contextlib.contextmanager
    def _measured(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.network_s += time.perf_counter() - started
