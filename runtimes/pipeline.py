"""Many recordings through one network, while threads read and prepare what it will need next.

Prepared recordings wait in a window of some minutes of audio, from which batches of similar length
are taken. The batches depend on the recordings alone, never on which thread was faster.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.runtimes.preparation import Preparation, Prepared
from ds2deploy.runtimes.session import Session

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


@dataclass(frozen=True)
class Recognized:
    """Result of one recording.

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


@dataclass(frozen=True)
class QueuedRecording:
    """A recording in the window, and its place in the input."""

    index: int
    prepared: Prepared


def run_batches(
    preparation: Preparation,
    network: Callable[[list[QueuedRecording]], list[Recognized]],
    long: Callable[[list[QueuedRecording]], Iterable[Recognized]],
    window: int,
    limits: tuple[int, int],
) -> Generator[Recognized, None, None]:
    """Run a network on recordings as they are prepared; ends the preparation when it ends.

    Args:
        preparation: preparation of the recordings.
        network: recognises a batch.
        long: recognises recordings that are too long to be taken whole.
        window: samples among which those of similar length are looked for.
        limits: most frames, padding included, and most utterances in a batch.

    Yields:
        Every recording once, not in order: a batch is that of the oldest which waits.

    Raises:
        DeviceError: `network` failed.
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
    """Choose the batch that holds the first recording that waits."""
    short = [item for item in waiting if item.prepared.long is None]
    made = batches([item.prepared.frames for item in short], total, size)
    return next([short[i] for i in batch] for batch in made if 0 in batch)


def batches(lengths: Sequence[int], total: int, size: int = MOST) -> Iterator[list[int]]:
    """Group items of similar length.

    Args:
        lengths: length of each item.
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
    """Return the most frames, with padding, and the most utterances that a session takes at a time.

    An engine takes what it was built for, and has the memory for it.
    """
    if session.profile is not None:
        most = session.profile.batch[2]
        return most * session.profile.frames[2], most
    return (GPU_FRAMES if "cuda" in session.runtime else CPU_FRAMES), session.at_once or MOST
