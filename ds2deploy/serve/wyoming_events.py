"""Reading of Wyoming events, with limits on their size."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from wyoming.event import Event


class MalformedError(Exception):
    """Data of a client that is not a valid event, or exceeds a size limit."""


class EventReader:
    """Reader of the events of one client.

    Args:
        reader: stream of the connection, with `LINE_BYTES` as its limit.
        idle_s: time after which a silent client is disconnected, in seconds.
        draining: event that is set when the server shuts down.

    Attributes:
        ended_by_server: True if `next` returned None because the server shuts down.
    """

    LINE_BYTES = 1 << 16
    DATA_BYTES = 1 << 20
    PAYLOAD_BYTES = 4 << 20

    def __init__(
        self, reader: asyncio.StreamReader, idle_s: float, draining: asyncio.Event
    ) -> None:
        self._reader, self._idle_s, self._draining = reader, idle_s, draining
        self.ended_by_server = False

    async def next(self) -> Event | None:
        """Read an event; None if the client leaves or is silent, or the server shuts down.

        Raises:
            MalformedError: the data is not an event, or is too large.
            EOFError, OSError: the connection ended within an event.
        """
        reading = asyncio.ensure_future(self._read())
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait(
                {reading, draining}, timeout=self._idle_s, return_when=asyncio.FIRST_COMPLETED
            )
            if reading.done():
                return reading.result()
            self.ended_by_server = draining.done()
            return None
        finally:
            draining.cancel()
            reading.cancel()
            reading.add_done_callback(forget)

    async def _read(self) -> Event | None:
        try:
            line = await self._reader.readline()
        except ValueError:
            raise MalformedError(f"a line longer than {self.LINE_BYTES} bytes") from None
        if not line:
            return None
        head = _object(line)
        data = _object(head.get("data") or {})
        if size := _size(head, "data_length", self.DATA_BYTES):
            data |= _object(await self._reader.readexactly(size))
        payload = None
        if size := _size(head, "payload_length", self.PAYLOAD_BYTES):
            payload = await self._reader.readexactly(size)
        kind = head.get("type")
        if not isinstance(kind, str):
            raise MalformedError("an event without a type")
        return Event(type=kind, data=data, payload=payload)


def forget(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of a task that nobody awaits, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


def _object(content: object) -> dict[str, Any]:
    if isinstance(content, bytes):
        try:
            content = msgspec.json.decode(content)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise MalformedError("not a line of JSON") from None
    if not isinstance(content, dict):
        raise MalformedError("not a JSON object")
    return content


def _size(head: dict[str, Any], name: str, most: int) -> int:
    value = head.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= most:
        raise MalformedError(f"{name}: expected a whole number up to {most}")
    return value
