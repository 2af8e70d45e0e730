"""The WebSocket protocol of Vosk's server, for programs that speak it already.

The client may first send `{"config": {"sample_rate": 8000, "words": true, "phrase_list": []}}`,
which gets no reply; then 16-bit little-endian mono PCM in binary messages, each of which gets one:
`{"partial": ...}`, or `{"result": [...], "text": ...}` where a segment has ended. `{"eof": 1}` gets
the rest and ends the connection; `{"reset": 1}` gets the rest, too, and begins another utterance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.websockets import WebSocket

from ds2deploy.runtimes.decoding.transcript import Transcript, Word
from ds2deploy.runtimes.streaming.endpoint import shifted
from ds2deploy.serve.limits import RefusedError, check_hot_words
from ds2deploy.serve.live import LiveStream, pcm16
from ds2deploy.serve.server import Server
from ds2deploy.serve.sockets import Socket, serve_socket
from ds2deploy.serve.streaming_model import StreamingModel

router = APIRouter()

PROTOCOL = "vosk"

UNKNOWN = "[unk]"
"""Member of a phrase list that stands for all other words."""


class Config(msgspec.Struct, frozen=True):
    """What a client may set before its audio; other keys are ignored.

    Attributes:
        sample_rate: sample rate of the audio, in Hz; None for the model's.
        words: whether results list their words with times and confidences.
        phrase_list: phrases to look for, if the model is served with a beam search.
        model: name of a model; empty for the first one that streams.
    """

    sample_rate: float | None = None
    words: bool = True
    phrase_list: list[str] = []
    model: str = ""


class Control(msgspec.Struct, frozen=True):
    """A text message of the client.

    Attributes:
        config: settings of the audio that follows.
        eof: true (or 1) where the audio ends.
        reset: true (or 1) where an utterance ends and another follows.
    """

    config: Config | None = None
    eof: bool = False
    reset: bool = False


class Utterance:
    """The audio from the beginning, or from a reset, to the next.

    Args:
        socket: WebSocket of the client.
        server: server with the models and the endpoint rules.

    Attributes:
        live: stream of the audio; None before it begins.
    """

    def __init__(self, socket: Socket, server: Server) -> None:
        self._socket, self._server = socket, server
        self._config = Config()
        self._begins_s = 0.0
        self._partial = ""
        self.live: LiveStream | None = None

    def configure(self, config: Config) -> None:
        """Take other settings.

        Raises:
            RefusedError: audio came already; or too many phrases.
        """
        if self.live is not None:
            raise RefusedError(
                400, "config: send it before the audio, or after a reset", "invalid_message"
            )
        check_hot_words(config.phrase_list, "phrase_list")
        self._config = config

    async def accept(self, content: bytes) -> dict[str, Any]:
        """Recognise more audio, and make the reply to it."""
        live = self.live = self.live or self._open()
        await live.accept(pcm16(content))
        await live.caught_up()
        update = live.take()
        if update is not None:
            self._partial = update.text
            if update.segments:
                return self._result(update.segments)
        return {"partial": self._partial}

    async def finish(self) -> dict[str, Any]:
        """Recognise the rest, and make the reply to the end."""
        if self.live is None:
            return self._result(())
        live = self.live
        segments: list[Transcript] = []
        live.finish()
        while not isinstance(found := await live.next(), Transcript):
            segments += found.segments
        reply = self._result([*segments, found])
        self.close()
        return reply

    def close(self) -> None:
        """Let go of the stream; the next one's times go on from its end."""
        if self.live is not None:
            self._begins_s += self.live.audio_s
            self.live.close()
        self.live, self._partial = None, ""

    def _open(self) -> LiveStream:
        model = self._socket.streaming_model(self._config.model)
        rate = model.sample_rate if self._config.sample_rate is None else self._config.sample_rate
        return model.open(rate, "", _hot_words(model, self._config), self._server.endpoint)

    def _result(self, segments: Sequence[Transcript]) -> dict[str, Any]:
        spoken = [shifted(segment, self._begins_s) for segment in segments if segment.text]
        words = [_word(word) for segment in spoken for word in segment.words]
        text = " ".join(segment.text for segment in spoken)
        if self._config.words and words:
            return {"result": words, "text": text}
        return {"text": text}


@router.websocket("/vosk")
async def vosk(websocket: WebSocket) -> None:
    """Recognise speech while it is spoken, for clients of Vosk's server."""
    await serve_socket(websocket, PROTOCOL, _talk, _send_error)


async def _talk(socket: Socket, server: Server) -> None:
    utterance = Utterance(socket, server)
    try:
        async for message in socket.messages():
            if isinstance(message, bytes):
                await socket.send(_json(await utterance.accept(message)))
                continue
            control = _control(message)
            if control.config is not None:
                utterance.configure(control.config)
            if control.eof or control.reset:
                await socket.send(_json(await utterance.finish()))
            if control.eof:
                return
        if utterance.live is not None:  # the server shuts down
            await socket.send(_json(await utterance.finish()))
    finally:
        utterance.close()


def _hot_words(model: StreamingModel, config: Config) -> list[str] | None:
    """Choose the phrases to look for; None for a greedy decoder, which knows none."""
    if not model.takes_hot_words:
        return None
    return [phrase for phrase in config.phrase_list if phrase != UNKNOWN] or None


def _control(message: str) -> Control:
    try:
        found = msgspec.json.decode(message, type=Control, strict=False)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid(str(error)) from None
    if found == Control():
        raise _invalid("none of these keys")
    return found


def _invalid(reason: str) -> RefusedError:
    return RefusedError(
        400, f"message: {' '.join(reason.split())[:200]}; expected JSON with config, eof or reset",
        "invalid_message",
    )  # fmt: skip


def _word(word: Word) -> dict[str, Any]:
    return {
        "conf": round(word.confidence, 6),
        "end": word.end,
        "start": word.start,
        "word": word.text,
    }


async def _send_error(socket: Socket, error: RefusedError) -> None:
    body: dict[str, Any] = {"error": error.message, "code": error.code}
    if error.retry_after_s is not None:
        body["retry_after_ms"] = round(1000 * error.retry_after_s)
    await socket.send(_json(body))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
