"""Many recordings through one network: threads read and prepare what it will need next.

What is ready waits in a window of some minutes of audio, from which batches of similar length are
taken. The batches depend on the recordings alone, never on which thread was faster.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import FILE_ERRORS, AudioError, Ds2Error, MissingFileError
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.session import Closing, Session

CPU_FRAMES = 6_400
"""Of a batch on a CPU, padding included (64 s). Five bidirectional layers of 1024 on two cores took
0.13 s for a second of audio alone, and 0.064 to 0.076 in batches of 1,600 to 8,000 frames; larger
ones were no faster."""

GPU_FRAMES = 24_000
"""Of a batch on a GPU where no engine's profile says more."""

MOST = 64
"""Utterances in a batch."""

LONG_AT_ONCE = 8
"""Recordings that are too long to be taken whole: as streams they share batches."""

WINDOW_S = 600.0
"""Seconds of audio among which utterances of similar length are looked for: 39 MB of features.
In a simulation with 2,000 durations from 1 to 15 s, its batches cost 7 % more than those of the
whole list, sorted; batches from 120 s, 25 % more."""

AHEAD_S = 120.0
"""Seconds of audio that are prepared while the network runs, beyond the window."""

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
        name: of it, for errors; empty for an array.
        pieces: (samples,) float32 at the model's rate, read as they are asked for.
    """

    name: str
    pieces: Iterator[FloatArray]


@dataclass(frozen=True)
class Recognized:
    """What became of one recording.

    Attributes:
        index: its place in the input, from 0.
        result: its transcript, or what is wrong with the file.
        compute_s: seconds for features, network and decoding; of a batch, a share by length.
    """

    index: int
    result: Transcript | Ds2Error
    compute_s: float = 0.0

    @property
    def audio_s(self) -> float:
        """Seconds of audio that were recognised; 0 of a broken file."""
        return self.result.duration if isinstance(self.result, Transcript) else 0.0


class Prepared(NamedTuple):
    """A recording that was read.

    Attributes:
        sound: features (bins, time), or samples (samples,) for a model that takes those; None for
            a recording that is too long to be taken whole.
        frames: of its features.
        samples: of it that were read, at the model's rate.
        compute_s: seconds of a core that its features took.
        long: what is too long, from its beginning.
    """

    sound: FloatArray | None
    frames: int
    samples: int
    compute_s: float = 0.0
    long: AudioInput | None = None


@dataclass(frozen=True)
class QueuedRecording:
    """A recording in the window, and its place in the input."""

    index: int
    prepared: Prepared


class Preparation(Closing):
    """Threads that prepare recordings in the order of the input, and not too many ahead.

    Args:
        sources: asked for one at a time, by the threads.
        prepare: a recording; called by the threads.
        most_samples: that may be held; a thread that has begun a recording finishes it.
        threads: how many.
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
        """The next recording, when there is room for it; None when no more are wanted."""
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
        """Whether another recording may be begun, or none will be."""
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
    """The pieces of a recording; a disk or a permission that is missing is told like the rest.

    Raises:
        AudioError: in the place of an OSError.
    """
    try:
        yield from source.pieces
    except MissingFileError:
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise AudioError(
            f"{source.name or 'audio'}: cannot be read ({reason}); make it readable, or leave it "
            "out"
        ) from None


def without_frames(error: Ds2Error) -> Ds2Error:
    """The same error without the frames it went through, which hold audio in memory."""
    return type(error)(str(error))


def run_batches(
    preparation: Preparation,
    network: Callable[[list[QueuedRecording]], list[Recognized]],
    long: Callable[[list[QueuedRecording]], Iterable[Recognized]],
    window: int,
    limits: tuple[int, int],
) -> Generator[Recognized, None, None]:
    """Run a network on recordings as they are prepared; ends the preparation when it ends.

    Args:
        preparation: of the recordings.
        network: recognises a batch.
        long: recognises recordings that are too long to be taken whole.
        window: samples among which those of similar length are looked for.
        limits: most frames, padding included, and most utterances in a batch.

    Yields:
        Every recording once, not in order: a batch is that of the oldest which waits.

    Raises:
        DeviceError: of `network`.
    """
    waiting: list[QueuedRecording] = []
    with preparation:
        while True:
            held = sum(item.prepared.samples for item in waiting)
            while held < window and (taken := preparation.take()) is not None:
                index, found = taken
                if isinstance(found, Ds2Error):
                    yield Recognized(index, found)
                else:
                    waiting.append(QueuedRecording(index, found))
                    held += found.samples
            if not waiting:
                return
            if waiting[0].prepared.long is not None:
                chosen = [item for item in waiting if item.prepared.long is not None]
                chosen = chosen[:LONG_AT_ONCE]
                yield from long(chosen)
            else:
                chosen = batch_of_oldest(waiting, *limits)
                yield from network(chosen)
            taken_out = {item.index for item in chosen}
            waiting = [item for item in waiting if item.index not in taken_out]
            preparation.release(sum(item.prepared.samples for item in chosen))
            del chosen


def batch_of_oldest(
    waiting: Sequence[QueuedRecording], total: int, size: int
) -> list[QueuedRecording]:
    """Of the batches that can be made of what waits, that of the first."""
    short = [item for item in waiting if item.prepared.long is None]
    made = batches([item.prepared.frames for item in short], total, size)
    return next([short[i] for i in batch] for batch in made if 0 in batch)


def batches(lengths: Sequence[int], total: int, size: int = MOST) -> Iterator[list[int]]:
    """Group items of similar length.

    Args:
        lengths: of every item.
        total: most that a batch may hold, all items padded to its longest; a single item may
            exceed it.
        size: most items in a batch.

    Yields:
        Indices; every one once, shortest items first.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == size or (len(batch) + 1) * lengths[i] > total):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def batch_limits(session: Session) -> tuple[int, int]:
    """Most frames, padding included, and most utterances that go through a session at a time.

    An engine takes what it was built for, and has the memory for it.
    """
    if session.profile is not None:
        most = session.profile.batch[2]
        return most * session.profile.frames[2], most
    return (GPU_FRAMES if "cuda" in session.runtime else CPU_FRAMES), session.at_once or MOST
