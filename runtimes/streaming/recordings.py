"""Recognition of recordings with a streaming model, several at a time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator

from ds2deploy.runtimes.errors import FILE_ERRORS, Ds2Error
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.pipeline import Recognized
from ds2deploy.runtimes.preparation import AudioInput, readable, without_frames
from ds2deploy.runtimes.session import Session
from ds2deploy.runtimes.streaming.stream import Channel, run_channels

BATCH_SIZE = 8
"""Number of recordings at a time; with more, a CPU is no faster."""


def run_recordings(
    session: Session, make_channel: Callable[[], Channel], sources: Iterable[AudioInput]
) -> Generator[Recognized, None, None]:
    """Recognise recordings as streams, in batches of one block of each.

    Args:
        session: session of a streaming model.
        make_channel: function that opens a channel at the model's rate.
        sources: recordings; each is taken when a place is free.

    Returns:
        Each recording once, in the order in which they end.

    Raises:
        DeviceError: the session failed.
    """
    profile = session.profile
    size = BATCH_SIZE if profile is None else min(BATCH_SIZE, profile.batch[2])
    coming = enumerate(sources)
    running: list[_Running] = []
    while True:
        for index, source in itertools.islice(coming, size - len(running)):
            running.append(_Running(index, make_channel(), readable(source)))
        if not running:
            return
        for one in list(running):
            if (error := one.read()) is not None:
                running.remove(one)
                yield Recognized(one.index, error)
        if not running:
            continue
        started = time.perf_counter()
        run_channels(session, [one.channel for one in running])
        each_s = (time.perf_counter() - started) / len(running)
        for one in list(running):
            one.compute_s += each_s
            if one.channel.done:
                running.remove(one)
                yield Recognized(one.index, one.channel.finish(), one.compute_s)


class _Running:
    """A recording that goes through a streaming session."""

    def __init__(self, index: int, channel: Channel, pieces: Iterator[FloatArray]) -> None:
        self.index, self.channel, self.compute_s = index, channel, 0.0
        self._pieces = pieces

    def read(self) -> Ds2Error | None:
        """Give the channel what its next step needs; returns the error of a broken file."""
        while not (self.channel.ready or self.channel.done):
            try:
                piece = next(self._pieces, None)
            except FILE_ERRORS as error:
                return without_frames(error)
            if piece is None:
                self.channel.end()
            else:
                self.channel.audio.push(piece)
        return None
