"""Times at which the blocks of a live stream were complete."""

from __future__ import annotations

from collections import deque

GRAIN_S = 0.02
"""Resolution of arrivals, in seconds of audio; smaller messages need no entries of their own."""


class Arrivals:
    """Arrival times of audio whose block has not been recognised yet.

    Args:
        block_s: duration of a block, in seconds.
    """

    def __init__(self, block_s: float) -> None:
        self._block_s = block_s
        self._marks: deque[tuple[float, float]] = deque()
        self._blocks = 0
        self._ended_at: float | None = None

    def add(self, audio_s: float, now: float) -> None:
        """Record that more audio has arrived.

        Args:
            audio_s: total duration of the stream's audio so far, in seconds.
            now: current time, in seconds.
        """
        if len(self._marks) > 1 and audio_s - self._marks[-2][0] < GRAIN_S:
            self._marks.pop()
        self._marks.append((audio_s, now))

    def end(self, now: float) -> None:
        """Record the end of the audio, which completes the last block."""
        self._ended_at = now

    def next_block(self) -> float | None:
        """Advance to the next block, and return the time at which it was complete, or None."""
        self._blocks += 1
        position = self._blocks * self._block_s - 1e-6
        while self._marks and self._marks[0][0] < position:
            self._marks.popleft()
        return self._marks[0][1] if self._marks else self._ended_at
