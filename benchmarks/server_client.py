"""Client of `server.py`, which simulates many speakers in real time in one process.

    python benchmarks/server_client.py ws://127.0.0.1:8000/stream --streams 8 [--for 60]

Prints one JSON object: for each stream the seconds from its end message to its transcript, what
went wrong, and by how much the client itself was late. With `--for`, each speaker begins again
when it has its transcript, until so many seconds have passed; one that is refused waits for as
long as the server says. `finals` then has the moment of each transcript, and `refused` counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from typing import Any

import numpy as np
from websockets.asyncio.client import connect

from ds2deploy.export.parity.speech import synthesize

RATE = 16_000
VOICES = 8

PIECES_S = (0.02, 0.2)
"""Minimum and maximum duration of the pieces that a speaker sends, in seconds."""

OFFSET_S = 1.0
"""Period in which the speakers begin, in seconds."""

PATIENCE_S = 20.0
"""Timeout for the transcript after the last audio of a stream, in seconds."""


class Speaker:
    """Speaker of one stream.

    Args:
        number: number of the stream, which determines voice, start and pieces.
        pcm: 16-bit PCM to send.
    """

    def __init__(self, number: int, pcm: bytes) -> None:
        self._random, self._pcm = random.Random(number), pcm
        self.final_s: float | None = None
        self.late_s = 0.0
        self.problem: str | None = None
        self.finals: list[tuple[float, float]] = []
        self.refused = 0
        self._retry_s: float | None = None
        self._ended_at = 0.0

    async def keep_speaking(
        self, url: str, connecting: asyncio.Semaphore, until: float, spread_s: tuple[float, float]
    ) -> None:
        """Speak again and again, until a moment of the monotonic clock."""
        await asyncio.sleep(self._random.uniform(*spread_s))
        while time.monotonic() < until and self.problem is None:
            self.final_s = self._retry_s = None
            await self.speak(url, connecting, 0.0)
            if self.final_s is not None:
                self.finals.append((time.monotonic(), self.final_s))
            if self._retry_s is not None:
                self.refused, self.problem = self.refused + 1, None
                await asyncio.sleep(self._retry_s)

    async def speak(
        self, url: str, connecting: asyncio.Semaphore, offset_s: float = OFFSET_S
    ) -> None:
        """Connect, begin at a random moment, speak, and wait for the transcript."""
        try:
            async with connecting:
                socket = await connect(url, open_timeout=PATIENCE_S, compression=None)
            async with socket:
                await asyncio.sleep(self._random.uniform(0, offset_s))
                sending = asyncio.ensure_future(self._send(socket))
                patience_s = len(self._pcm) / 2 / RATE + PATIENCE_S
                await asyncio.wait_for(self._receive(socket), patience_s)
                await sending
        except Exception as error:
            self.problem = self.problem or f"{type(error).__name__}: {error}"[:200]

    async def _send(self, socket: Any) -> None:
        started, sent = time.monotonic(), 0
        while sent < len(self._pcm):
            size = 2 * int(RATE * self._random.uniform(*PIECES_S))
            piece = self._pcm[sent : sent + size]
            sent += len(piece)
            due = started + sent / 2 / RATE  # a piece is complete when its last sample is spoken
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.late_s = max(self.late_s, time.monotonic() - due)
            await socket.send(piece)
        self._ended_at = time.monotonic()
        await socket.send('{"end": true}')

    async def _receive(self, socket: Any) -> None:
        async for message in socket:
            found = json.loads(message)
            if "error" in found:
                self.problem = found["error"]["code"]
                if "retry_after_ms" in found["error"]:
                    self._retry_s = found["error"]["retry_after_ms"] / 1000
                return
            if "final" in found:
                self.final_s = time.monotonic() - self._ended_at
                return
        self.problem = self.problem or "no transcript"


async def talk(
    url: str, streams: int, seconds: float, lasting_s: float = 0.0, first: int | None = None
) -> dict[str, Any]:
    """Let so many speakers talk for so many seconds each; again and again, if it shall last.

    Those that talk again and again begin within one duration of their audio. With `first`, so many
    begin within a third of it, at moments that do not depend on the number of the others, and the
    others begin after them.
    """
    voices = [synthesize(RATE, int(seconds * RATE), seed=i) for i in range(VOICES)]
    pcm = [(voice * 32767).astype("<i2") for voice in voices]
    shifts = [random.Random(-i - 1).randrange(len(pcm[0])) for i in range(streams)]
    speakers = [Speaker(i, np.roll(pcm[i % VOICES], shifts[i]).tobytes()) for i in range(streams)]
    connecting = asyncio.Semaphore(32)
    began = time.monotonic()
    if lasting_s:
        until = began + lasting_s
        whole_s = min(seconds, lasting_s / 2)
        first_s, first = (whole_s, streams) if first is None else (whole_s / 3, first)
        begins_s = [(0.0, first_s)] * first + [(first_s, whole_s)] * (streams - first)
        await asyncio.gather(
            *(
                one.keep_speaking(url, connecting, until, begin_s)
                for one, begin_s in zip(speakers, begins_s, strict=True)
            )
        )
    else:
        await asyncio.gather(*(one.speak(url, connecting) for one in speakers))
    return {
        "finals": sorted((at - began, late) for one in speakers for at, late in one.finals),
        "refused": sum(one.refused for one in speakers),
        "final_s": [one.final_s for one in speakers if one.final_s is not None],
        "problems": [one.problem for one in speakers if one.problem is not None],
        "late_s": max(one.late_s for one in speakers),
    }


def main() -> None:
    """Run the speakers, and print the measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="duration of the audio of each stream in seconds",
    )
    parser.add_argument("--for", dest="lasting_s", type=float, default=0.0, help="seconds")
    parser.add_argument("--first", type=int, help="number of speakers that start before the others")
    options = parser.parse_args()
    found = talk(options.url, options.streams, options.seconds, options.lasting_s, options.first)
    print(json.dumps(asyncio.run(found)))


if __name__ == "__main__":
    main()
