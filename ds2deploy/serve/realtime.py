"""OpenAI's realtime API for transcription sessions: `/v1/realtime?intent=transcription`.

The client sends `session.update`, `input_audio_buffer.append`, `.commit` and `.clear`. An item
contains the speech between two commits; with `server_vad` the server commits at the end of each
segment. Words of an item are sent as soon as they are final, even before its commit.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.datastructures import QueryParams
from starlette.websockets import WebSocket

from ds2deploy.runtimes.decoding.transcript import Transcript, Word
from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.serve.limits import RefusedError, refusal
from ds2deploy.serve.live import LiveStream, end_live
from ds2deploy.serve.openai_forms import token_logprobs
from ds2deploy.serve.realtime_events import (
    Append,
    Event,
    Settings,
    Update,
    decode,
    error_event,
    event,
    samples_of,
)
from ds2deploy.serve.server import Server
from ds2deploy.serve.sockets import Socket, serve_socket

router = APIRouter()

PROTOCOL = "realtime"

TRANSCRIPTION = "conversation.item.input_audio_transcription"
BUFFER = "input_audio_buffer"


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket) -> None:
    """Recognise speech while it is spoken, for clients of OpenAI's realtime API."""

    async def talk(socket: Socket, server: Server) -> None:
        await _talk(socket, server, websocket.query_params)

    await serve_socket(websocket, PROTOCOL, talk, _send_error)


async def _talk(socket: Socket, server: Server, query: QueryParams) -> None:
    if (intent := query.get("intent", "transcription")) != "transcription":
        raise RefusedError(
            400, f"intent {intent[:40]!r}: expected transcription", "invalid_value", "intent"
        )
    model = server.streaming_model(query.get("model"))
    session = RealtimeSession(socket, server, Settings(model.name))
    try:
        await session.greet()
        async for message in socket.messages():
            await session.handle(message)
        await session.finish()
    finally:
        await session.close()


class Items:
    """Writer of a session's items as events, one item after another.

    Args:
        socket: WebSocket of the client.
    """

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._previous: str | None = None
        self.begin()

    def begin(self) -> None:
        """Begin an item, and discard one that was not committed."""
        self._id = f"item_{uuid.uuid4().hex}"
        self._count = 0
        self._spoken = False

    async def hear(self, begins_s: float, words: Sequence[Word]) -> None:
        """Send `speech_started`, once for each item.

        Args:
            begins_s: start of the stream in the session, in seconds.
            words: words of the item, which may still change.
        """
        if words and not self._spoken:
            self._spoken = True
            start_ms = round(1000 * (begins_s + words[0].start))
            await self._send(f"{BUFFER}.speech_started", audio_start_ms=start_ms)

    async def add(self, words: Sequence[Word]) -> None:
        """Send the next final words of the item."""
        if words:
            text = " ".join(word.text for word in words)
            delta = f" {text}" if self._count else text
            self._count += len(words)
            await self._send(f"{TRANSCRIPTION}.delta", content_index=0, delta=delta)

    async def stop(self, begins_s: float, words: Sequence[Word]) -> None:
        """Send `speech_stopped`; see `hear` for the arguments."""
        await self.hear(begins_s, words)
        if words:
            end_ms = round(1000 * (begins_s + words[-1].end))
            await self._send(f"{BUFFER}.speech_stopped", audio_end_ms=end_ms)

    async def complete(self, transcript: Transcript, logprobs: bool) -> None:
        """Commit the item, send the rest of its words, and begin another item."""
        await self._send(f"{BUFFER}.committed", previous_item_id=self._previous)
        await self.add(transcript.words[self._count :])
        fields: dict[str, Any] = {
            "content_index": 0,
            "transcript": transcript.text,
            "usage": {"type": "duration", "seconds": transcript.duration},
        }
        if logprobs:
            fields["logprobs"] = token_logprobs(transcript)
        await self._send(f"{TRANSCRIPTION}.completed", **fields)
        self._previous = self._id
        self.begin()

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._socket.send(event(kind, item_id=self._id, **fields))


class RealtimeSession:
    """Session of one client.

    Args:
        socket: WebSocket of the client.
        server: server with the models.
        settings: initial settings.
    """

    def __init__(self, socket: Socket, server: Server, settings: Settings) -> None:
        self._socket, self._server, self._settings = socket, server, settings
        self._id = f"sess_{uuid.uuid4().hex}"
        self._items = Items(socket)
        self._live: LiveStream | None = None
        self._teller: asyncio.Task[None] | None = None
        self._committing = False
        self._heard_s = 0.0

    async def greet(self) -> None:
        """Send the first event."""
        await self._socket.send(event("session.created", session=self._settings.session(self._id)))

    async def handle(self, message: str | bytes) -> None:
        """Handle an event; send an error event if it cannot be used.

        Raises:
            RefusedError: the server is full, or its engine failed; the session ends.
        """
        event_id = None
        try:
            found = decode(message, Event)
            event_id = found.event_id
            await self._dispatch(found.type, message)
        except (RefusedError, Ds2Error) as error:
            refused = refusal(error)
            if refused.status == 429 or refused.status >= 500:
                raise refused from None
            self._server.refuse(self._socket.model, refused.code)
            await self._socket.send(error_event(refused, event_id))

    async def finish(self) -> None:
        """Recognise the remaining audio, and send its events."""
        if self._live is not None and self._teller is not None:
            self._live.finish()
            await self._teller
            await self.close()

    async def close(self) -> None:
        """Discard the remaining audio."""
        live, teller, self._live, self._teller = self._live, self._teller, None, None
        if live is not None:
            self._heard_s += live.audio_s
        await end_live(live, teller)
        self._committing = False

    async def _dispatch(self, kind: str, message: str | bytes) -> None:
        if kind == f"{BUFFER}.append":
            await self._append(decode(message, Append))
        elif kind == f"{BUFFER}.commit":
            await self._commit()
        elif kind == f"{BUFFER}.clear":
            await self._clear()
        elif kind == "session.update":
            await self._update(decode(message, Update))
        else:
            raise RefusedError(
                400, f"type {kind[:60]!r}: expected session.update, or {BUFFER}.append, .commit "
                "or .clear", "unknown_event", "type",
            )  # fmt: skip

    async def _update(self, update: Update) -> None:
        old, new = self._settings, self._settings.updated(update.session)
        new.check(self._server)
        if self._live is not None:
            if (old.model, old.format, old.turn_detection) != (
                new.model, new.format, new.turn_detection,
            ):  # fmt: skip
                raise RefusedError(
                    400, "session: model, format and turn_detection cannot change while audio is "
                    "in the buffer; commit or clear it first", "audio_in_buffer", "session",
                )  # fmt: skip
            if old.keywords != new.keywords:
                self._live.set_hot_words(new.keywords)
        self._settings = new
        await self._socket.send(event("session.updated", session=new.session(self._id)))

    async def _append(self, append: Append) -> None:
        samples = samples_of(append.audio, self._settings.format)
        if self._live is None:
            self._open()
        assert self._live is not None
        assert self._teller is not None
        if self._teller.done():  # the task has failed
            await self._teller
        await self._live.accept(samples)

    async def _commit(self) -> None:
        if self._live is None or not self._live.audio_s:
            raise RefusedError(
                400, "the buffer is empty; append audio first", f"{BUFFER}_commit_empty"
            )
        self._committing = True
        await self.finish()

    async def _clear(self) -> None:
        await self.close()
        self._items.begin()
        await self._socket.send(event(f"{BUFFER}.cleared"))

    def _open(self) -> None:
        settings = self._settings
        model = self._socket.streaming_model(settings.model)
        endpoint = settings.endpoint(self._server.endpoint)
        rate, hot_words = settings.format.sample_rate, settings.keywords or None
        self._live = model.open(rate, "", hot_words, endpoint)
        self._teller = asyncio.ensure_future(self._tell(self._live, endpoint is not None))

    async def _tell(self, live: LiveStream, detecting: bool) -> None:
        """Send the events of a stream until its end.

        Args:
            live: the stream.
            detecting: True if the server detects the ends of speech.
        """
        items, begins_s = self._items, self._heard_s
        while True:
            found = await live.next()
            ended = (found,) if isinstance(found, Transcript) else found.segments
            for transcript in ended:
                if transcript.text or self._committing:
                    if detecting:
                        await items.stop(begins_s, transcript.words)
                    await items.complete(transcript, self._settings.logprobs)
            if isinstance(found, Transcript):
                return
            if detecting:
                await items.hear(begins_s, (*found.words, *found.tail_words))
            await items.add(found.words)


async def _send_error(socket: Socket, error: RefusedError) -> None:
    await socket.send(error_event(error))
