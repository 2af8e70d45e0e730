"""WebSocket protocol of ds2deploy, which takes PCM and sends one JSON object for each update.

The client may first send `{"sample_rate": 16000, "model": "", "hot_words": [], "endpoint": 1.2}`,
in which every key is optional. It then sends 16-bit little-endian mono PCM in binary messages, and
finally `{"end": true}`. `{"hot_words": [...]}` changes the hot words at any time; the other
settings cannot change.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.websockets import WebSocket

from ds2deploy.runtimes.decoding.transcript import Transcript, Update, Word
from ds2deploy.runtimes.streaming.endpoint import Endpoint
from ds2deploy.serve.hot_words import check_hot_words, naming
from ds2deploy.serve.limits import RefusedError
from ds2deploy.serve.live import LiveStream, end_live, whole_samples
from ds2deploy.serve.models import Model
from ds2deploy.serve.server import Server
from ds2deploy.serve.sockets import Socket, serve_socket

router = APIRouter()

PROTOCOL = "stream"

SAMPLE_RATE = 16_000
"""Sample rate of clients that send none, in Hz."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Text message of the client.

    Attributes:
        sample_rate: sample rate of the audio that follows, in Hz; `SAMPLE_RATE` if it is not set.
        model: name of a model; empty or not set selects the first streaming model.
        hot_words: phrases to prefer; None leaves them unchanged.
        endpoint: silence that ends a segment, in seconds; 0 or not set makes one segment of all
            audio.
        end: True if no more audio follows.
    """

    sample_rate: int | UnsetType = UNSET
    model: str | UnsetType = UNSET
    hot_words: list[str] | None = None
    endpoint: float | UnsetType = UNSET
    end: bool = False

    def check_unchanged(self) -> None:
        """Check that the message has no setting that only the first message may have.

        Raises:
            RefusedError: it has one.
        """
        given = [
            name
            for name in ("sample_rate", "model", "endpoint")
            if getattr(self, name) is not UNSET
        ]
        if given:
            raise RefusedError(
                400, f"message: {', '.join(given)} cannot change; send it once, in the first "
                "message, before the audio", "invalid_message",
            )  # fmt: skip


@router.websocket("/stream")
async def stream(websocket: WebSocket) -> None:
    """Recognise speech while it is spoken."""
    await serve_socket(websocket, PROTOCOL, _talk, _send_error)


async def _talk(socket: Socket, server: Server) -> None:
    live: LiveStream | None = None
    sender: asyncio.Task[None] | None = None
    try:
        async for message in socket.messages():
            if isinstance(message, str):
                settings = _settings(message)
                if live is None:
                    live = _open(socket, server, settings)
                else:
                    settings.check_unchanged()
                    _change_hot_words(live, server.models[socket.model], settings.hot_words)
                if settings.end:
                    break
            else:
                live = live or _open(socket, server, Settings())
                if sender is None:
                    sender = asyncio.ensure_future(_tell(socket, live))
                    sender.add_done_callback(lambda _: socket.end())
                await live.accept(whole_samples(message))
        if live is not None:
            live.finish()
            await (sender or _tell(socket, live))
    finally:
        await end_live(live, sender)


async def _tell(socket: Socket, live: LiveStream) -> None:
    """Send updates that contain news, and finally the transcript."""
    shown = ("", "")
    while True:
        found = await live.next()
        if isinstance(found, Transcript):
            await socket.send_json({"final": True, **_segment(found)})
            return
        for segment in found.segments:
            await socket.send_json({"segment": _segment(segment)})
        if found.segments:
            shown = ("", "")
        if found.words or (found.stable, found.tail) != shown:
            shown = (found.stable, found.tail)
            await socket.send_json(_update(found))


def _open(socket: Socket, server: Server, settings: Settings) -> LiveStream:
    endpoint = None
    if settings.endpoint:
        rules = server.endpoint
        endpoint = Endpoint(
            silence_s=settings.endpoint,
            leading_silence_s=max(settings.endpoint, rules.leading_silence_s),
            longest_s=rules.longest_s,
        )
    model = socket.streaming_model(settings.model or None)
    rate = SAMPLE_RATE if settings.sample_rate is UNSET else settings.sample_rate
    hot_words = settings.hot_words or None
    check_hot_words(hot_words or (), "hot_words", model)
    with naming("hot_words", hot_words):
        return model.open(rate, "", hot_words, endpoint)


def _change_hot_words(live: LiveStream, model: Model, hot_words: list[str] | None) -> None:
    """Look for other hot words from now on; None leaves them unchanged."""
    check_hot_words(hot_words or (), "hot_words", model)
    if hot_words is not None and model.takes_hot_words:
        with naming("hot_words", hot_words):
            live.set_hot_words(hot_words)


def _settings(message: str) -> Settings:
    try:
        return msgspec.json.decode(message, type=Settings)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RefusedError(
            400, f"message: {' '.join(str(error).split())[:200]}; expected JSON with sample_rate, "
            "model, hot_words, endpoint or end", "invalid_message",
        ) from None  # fmt: skip


def _update(update: Update) -> dict[str, Any]:
    return {
        "committed": update.stable,
        "tail": update.tail,
        "words": [_word(word) for word in update.words],
    }


def _segment(transcript: Transcript) -> dict[str, Any]:
    return {
        "text": transcript.text,
        "confidence": round(transcript.confidence, 4),
        "words": [_word(word) for word in transcript.words],
    }


def _word(word: Word) -> dict[str, Any]:
    return {
        "word": word.text,
        "start": word.start,
        "end": word.end,
        "confidence": round(word.confidence, 4),
    }


async def _send_error(socket: Socket, error: RefusedError) -> None:
    body = {"message": error.message, "code": error.code, **error.retry}
    await socket.send_json({"error": body})
