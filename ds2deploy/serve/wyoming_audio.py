"""Audio in Wyoming events."""

from __future__ import annotations

import io
import wave
from collections.abc import AsyncIterator

from wyoming.audio import AudioChunk, AudioStop
from wyoming.event import Event

from ds2deploy.serve.live import pcm16
from ds2deploy.serve.wyoming_events import EventReader, MalformedError


class Audio:
    """Audio of a request: 16-bit PCM of any rate, mixed to one channel.

    Raises:
        MalformedError: the audio has another format.
    """

    def __init__(self, first: Event) -> None:
        self.rate, self._channels = self._format(first)
        self._first = first

    async def pieces(self, events: EventReader) -> AsyncIterator[bytes]:
        """Yield mono PCM until the audio ends or the server shuts down.

        Raises:
            EOFError: the client left.
            MalformedError: the format changes, or a chunk ends within a sample.
        """
        if AudioChunk.is_type(self._first.type):
            yield self._mono(self._first)
        while (event := await events.next()) is not None:
            if AudioStop.is_type(event.type):
                return
            if AudioChunk.is_type(event.type):
                if self._format(event) != (self.rate, self._channels):
                    raise MalformedError("audio-chunk: the format differs from that of audio-start")
                yield self._mono(event)
        if not events.ended_by_server:
            raise EOFError

    def _mono(self, event: Event) -> bytes:
        content, count = event.payload or b"", self._channels
        if len(content) % (2 * count):
            raise MalformedError(
                f"audio-chunk: {len(content)} bytes; expected whole samples of {2 * count} bytes"
            )
        if count == 1:
            return content
        mixed = pcm16(content).reshape(-1, count).mean(axis=1)
        return bytes((mixed * 32768).astype("<i2").tobytes())

    def _format(self, event: Event) -> tuple[int, int]:
        found = [event.data.get(name) for name in ("rate", "width", "channels")]
        rate, width, channels = (value if type(value) is int else 0 for value in found)
        if width != 2 or not 1 <= channels <= 8 or not 1000 <= rate <= 384_000:
            raise MalformedError(
                f"{event.type}: rate {rate}, width {width}, channels {channels}; expected 16-bit "
                "PCM: width 2, 1 to 8 channels"
            )
        return rate, channels


def wav_file(pcm: bytes, rate: int) -> io.BytesIO:
    """Make a WAV file of 16-bit mono PCM."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(pcm)
    file.seek(0)
    return file
