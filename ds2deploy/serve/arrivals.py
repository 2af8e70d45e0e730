"""When the blocks of a live stream were complete."""

from __future__ import annotations

from collections import deque

GRAIN_S = 0.02
"""Seconds of audio within which arrivals are not told apart, so that tiny messages cost nothing."""


class Arrivals:
    """Remembers when audio arrived, until the block that it is in has been recognised.

    Args:
        block_s: seconds of audio in a block.
    """

    def __init__(self, block_s: float) -> None:
        self._block_s = block_s
        self._marks: deque[tuple[float, float]] = deque()
        self._blocks = 0
        self._ended_at: float | None = None

    def add(self, audio_s: float, now: float) -> None:
        """Note that more audio has arrived.

        Args:
            audio_s: seconds of audio of the stream so far.
            now: time, in seconds.
        """
        if len(self._marks) > 1 and audio_s - self._marks[-2][0] < GRAIN_S:
            self._marks.pop()
        self._marks.append((audio_s, now))

    def end(self, now: float) -> None:
        """Note that no more audio comes, which completes the last block."""
        self._ended_at = now

    def next_block(self) -> float | None:
        """Go to the next block; returns when it was complete, None where it never was."""
        self._blocks += 1
        position = self._blocks * self._block_s - 1e-6
        while self._marks and self._marks[0][0] < position:
            self._marks.popleft()
        return self._marks[0][1] if self._marks else self._ended_at
