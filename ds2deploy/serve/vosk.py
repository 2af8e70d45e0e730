"""WebSocket protocol of Vosk's server, for existing clients.

The client may first send `{"config": {"sample_rate": 8000, "words": true, "phrase_list": []}}`,
which has no reply. It then sends 16-bit little-endian mono PCM in binary messages. The reply to
each is `{"partial": ...}`, or `{"result": [...], "text": ...}` at the end of a segment.
`{"eof": 1}` requests the rest and ends the connection; `{"reset": 1}` requests the rest and begins
another utterance. An odd last byte of a message is dropped, as Vosk does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.websockets import WebSocket

from ds2deploy.runtimes.decoding.transcript import Transcript, Word
from ds2deploy.runtimes.streaming.endpoint import shifted
from ds2deploy.serve.hot_words import check_hot_words, naming
from ds2deploy.serve.limits import RefusedError
from ds2deploy.serve.live import LiveStream, pcm16
from ds2deploy.serve.server import Server
from ds2deploy.serve.sockets import Socket, serve_socket
from ds2deploy.serve.streaming_model import StreamingModel

router = APIRouter()

PROTOCOL = "vosk"

UNKNOWN = "[unk]"
"""Entry of a phrase list that stands for all other words."""


class Config(msgspec.Struct, frozen=True):
    """Settings that a client may send before its audio; other keys are ignored.

    Attributes:
        sample_rate: sample rate of the audio, in Hz; None means the model's.
        words: list the words with times and confidences in results.
        phrase_list: phrases to prefer, if the model is served with a beam search.
        model: name of a model; empty selects the first streaming model.
    """

    sample_rate: float | None = None
    words: bool = True
    phrase_list: list[str] = []
    model: str = ""


class Control(msgspec.Struct, frozen=True):
    """Text message of the client.

    Attributes:
        config: settings of the audio that follows.
        eof: true (or 1) at the end of the audio.
        reset: true (or 1) at the end of an utterance, if another follows.
    """

    config: Config | None = None
    eof: bool = False
    reset: bool = False


class Utterance:
    """Audio between two resets.

    Args:
        socket: WebSocket of the client.
        server: server with the models and the endpoint rules.

    Attributes:
        live: stream of the audio; None before the first audio.
    """

    def __init__(self, socket: Socket, server: Server) -> None:
        self._socket, self._server = socket, server
        self._config = Config()
        self._begins_s = 0.0
        self._partial = ""
        self.live: LiveStream | None = None

    def configure(self, config: Config) -> None:
        """Change the settings.

        Raises:
            RefusedError: audio was sent already, or there are too many phrases.
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
        """Recognise the rest, and make the final reply."""
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
        """Release the stream; times of the next stream continue from its end."""
        if self.live is not None:
            self._begins_s += self.live.audio_s
            self.live.close()
        self.live, self._partial = None, ""

    def _open(self) -> LiveStream:
        model = self._socket.streaming_model(self._config.model)
        rate = model.sample_rate if self._config.sample_rate is None else self._config.sample_rate
        hot_words = _hot_words(model, self._config)
        with naming("phrase_list", hot_words):
            return model.open(rate, "", hot_words, self._server.endpoint)

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
                await socket.send_json(await utterance.accept(message))
                continue
            control = _control(message)
            if control.config is not None:
                utterance.configure(control.config)
            if control.eof or control.reset:
                await socket.send_json(await utterance.finish())
            if control.eof:
                return
        if utterance.live is not None:  # the server shuts down
            await socket.send_json(await utterance.finish())
    finally:
        utterance.close()


def _hot_words(model: StreamingModel, config: Config) -> list[str] | None:
    """Select the phrases to prefer; None for a greedy decoder, which has no hot words."""
    if not model.takes_hot_words:
        return None
    return [phrase for phrase in config.phrase_list if phrase != UNKNOWN] or None


def _control(message: str) -> Control:
    try:
        found = msgspec.json.decode(message, type=Control, strict=False)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid(str(error)) from None
    if found == Control():
        raise _invalid("no known key")
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
    await socket.send_json({"error": error.message, "code": error.code, **error.retry})
