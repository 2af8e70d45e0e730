"""Threads that read and prepare recordings ahead of the network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ds2deploy.runtimes.audio.source import unreadable
from ds2deploy.runtimes.errors import FILE_ERRORS, Ds2Error, MissingFileError
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.session import Closing

THREADS = 2
"""That read and prepare. One keeps up with a large network on a CPU (1.3 ms for a second of 16 kHz
WAV, 7 ms for FLAC at 44.1 kHz that is resampled, against 70 ms of network); the second is for
networks, and GPUs, that are a hundred times faster, and costs nothing while it waits."""

MOST_READY = 1000
"""Recordings that wait at most: broken ones hold no audio, and there may be many."""

CLOSING_S = 5.0
"""How long an end waits for threads that hang in a read, as from a server that is gone."""


class AudioInput(NamedTuple):
    """A recording that is about to be read.

    Attributes:
        name: name of the recording, for errors; empty for an array.
        pieces: (samples,) float32 at the model's rate, read as they are asked for, by one thread;
            `audio.loading.read_blocks` gives those of a path, of bytes or of a file object.
    """

    name: str
    pieces: Iterator[FloatArray]


class Prepared(NamedTuple):
    """A recording that was read.

    Attributes:
        sound: features (bins, time), or samples (samples,) for a model that takes those; None for
            a recording that is too long to be taken whole.
        frames: number of its feature frames.
        samples: number of samples that were read, at the model's rate.
        compute_s: processor time of its features, in seconds.
        long: audio that is too long, from its beginning.
    """

    sound: FloatArray | None
    frames: int
    samples: int
    compute_s: float = 0.0
    long: AudioInput | None = None


class Preparation(Closing):
    """Threads that prepare recordings in the order of the input, and not too many ahead.

    Args:
        sources: recordings; the threads take one at a time.
        prepare: function that prepares a recording; called by the threads.
        most_samples: maximum number of samples in memory; a recording that was begun is finished.
        threads: number of threads.
    """

    def __init__(
        self,
        sources: Iterable[AudioInput],
        prepare: Callable[[AudioInput], Prepared],
        most_samples: int,
        threads: int = THREADS,
    ) -> None:
        self._sources = iter(sources)
        self._prepare = prepare
        self._most, self._held = most_samples, 0
        self._begun = self._given = 0
        self._ended = self._stopped = False
        self._ready: dict[int, Prepared | Ds2Error] = {}
        self._broken: BaseException | None = None
        self._asking = threading.Lock()
        self._changed = threading.Condition()
        # Daemons: a process that is told to end does not wait for a recording on a slow disk.
        self._threads = [
            threading.Thread(target=self._work, name=f"ds2deploy-prepare-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def take(self) -> tuple[int, Prepared | Ds2Error] | None:
        """Wait for the next recording of the input, or what is wrong with it; None at the end.

        Raises:
            Exception: one that is not of a recording, in a thread or in `sources`.
        """

        def settled() -> bool:
            over = self._ended and self._given == self._begun
            return self._given in self._ready or self._broken is not None or over

        with self._changed:
            self._changed.wait_for(settled)
            if self._given not in self._ready:
                if self._broken is not None:
                    raise self._broken
                return None
            index, self._given = self._given, self._given + 1
            found = self._ready.pop(index)
            self._changed.notify_all()
            return index, found

    def release(self, samples: int) -> None:
        """Say that so many of the samples that were taken are no longer held."""
        with self._changed:
            self._held -= samples
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads, at the next piece of what they read; what they prepared is dropped."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        end = time.monotonic() + CLOSING_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._ready.clear()

    def _work(self) -> None:
        try:
            while (begun := self._begin()) is not None:
                index, source = begun
                found = self._attempt(source)
                with self._changed:
                    self._ready[index] = found
                    self._held += found.samples if isinstance(found, Prepared) else 0
                    self._changed.notify_all()
        except _StoppedError:
            pass
        except BaseException as error:  # is raised where somebody waits for it
            with self._changed:
                self._broken = error
                self._changed.notify_all()

    def _begin(self) -> tuple[int, AudioInput] | None:
        """Return the next recording, when there is room for it; None when no more are wanted."""
        # One thread at a time, so that none overtakes; the network's is not held up by it.
        with self._asking:
            with self._changed:
                self._changed.wait_for(self._has_room)
                if self._stopped or self._ended or self._broken is not None:
                    return None
            source = next(self._sources, None)
            with self._changed:
                if source is None:
                    self._ended = True
                    self._changed.notify_all()
                    return None
                index, self._begun = self._begun, self._begun + 1
                return index, source

    def _has_room(self) -> bool:
        """Tell whether another recording may be begun, or none will be."""
        return self._stopped or (self._held < self._most and len(self._ready) < MOST_READY)

    def _attempt(self, source: AudioInput) -> Prepared | Ds2Error:
        try:
            return self._prepare(AudioInput(source.name, self._until_stopped(readable(source))))
        except FILE_ERRORS as error:
            return without_frames(error)

    def _until_stopped(self, pieces: Iterator[FloatArray]) -> Iterator[FloatArray]:
        for piece in pieces:
            if self._stopped:
                raise _StoppedError
            yield piece


class _StoppedError(Exception):
    """Nobody wants the recording any more."""


def readable(source: AudioInput) -> Iterator[FloatArray]:
    """Yield the pieces of a recording; errors of disks and permissions are errors of the recording.

    Raises:
        AudioError: the file cannot be read; replaces an OSError.
    """
    try:
        yield from source.pieces
    except MissingFileError:
        raise
    except OSError as error:
        raise unreadable(source.name or "audio", error) from None


def without_frames(error: Ds2Error) -> Ds2Error:
    """Return the same error without the frames it went through, which hold audio in memory."""
    return type(error)(str(error))
