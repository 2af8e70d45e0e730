"""Wyoming protocol of Home Assistant: events over TCP, each a line of JSON with a payload."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

from wyoming import asr
from wyoming.audio import AudioChunk, AudioStart
from wyoming.error import Error
from wyoming.event import Event, async_write_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.ping import Ping, Pong

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.serve.hot_words import MOST_HOT_WORDS
from ds2deploy.serve.limits import RefusedError, draining_error, refusal
from ds2deploy.serve.live import LiveStream, end_live, pcm16
from ds2deploy.serve.models import Model
from ds2deploy.serve.server import Server
from ds2deploy.serve.streaming_model import StreamingModel
from ds2deploy.serve.wyoming_audio import Audio, wav_file
from ds2deploy.serve.wyoming_events import EventReader, MalformedError, forget
from ds2deploy.version import __version__

log = logging.getLogger("ds2deploy.serve")

PROTOCOL = "wyoming"

LANGUAGE = "en"

SOURCE = Attribution(name="ds2deploy", url="")


class WyomingServer:
    """Server for Wyoming clients, which runs in the event loop of the main server.

    Args:
        server: server with the models and the limits.
        listening: listening TCP socket.
    """

    def __init__(self, server: Server, listening: socket.socket) -> None:
        self._server, self._listening = server, listening
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Accept connections until the server shuts down, then end the remaining ones."""
        accepting = await asyncio.start_server(
            self._connected, sock=self._listening, limit=EventReader.LINE_BYTES
        )
        closing = asyncio.ensure_future(self._close_when_draining(accepting))
        try:
            yield
        finally:
            closing.cancel()
            accepting.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _close_when_draining(self, accepting: asyncio.Server) -> None:
        await self._server.draining.wait()
        accepting.close()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= self._server.limits.connections:
            writer.close()
            return
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _Connection(self._server, reader, writer).run()
        finally:
            writer.close()


class _Connection:
    """Connection of a client, which sends one request after another."""

    def __init__(
        self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server, self._writer = server, writer
        self._events = EventReader(reader, server.limits.idle_s, server.draining)
        self._request = asr.Transcribe()

    async def run(self) -> None:
        """Serve the client until it leaves or sends invalid data; never raises."""
        outcome = "ok"
        try:
            await self._serve()
        except (OSError, EOFError, asyncio.TimeoutError):
            outcome = "vanished"
        except (MalformedError, RefusedError, Ds2Error) as error:
            refused = _refused(error)
            outcome = refused.code
            self._server.refuse("", refused.code)
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await self._send(Error(text=refused.message, code=refused.code).event())
        except Exception:
            log.exception("failure in a connection", extra={"protocol": PROTOCOL})
            outcome = "internal_error"
        if outcome != "ok":
            self._server.count("", PROTOCOL, outcome)

    async def _serve(self) -> None:
        while (event := await self._events.next()) is not None:
            if Describe.is_type(event.type):
                await self._send(_info(self._server).event())
            elif Ping.is_type(event.type):
                await self._send(Pong().event())
            elif asr.Transcribe.is_type(event.type):
                self._request = asr.Transcribe.from_event(event)
            elif AudioStart.is_type(event.type) or AudioChunk.is_type(event.type):
                await self._transcribe(event)
                self._request = asr.Transcribe()

    async def _transcribe(self, first: Event) -> None:
        """Recognise the audio between its start and stop events."""
        if self._server.draining.is_set():
            raise draining_error()
        model = self._server.model(self._request.name)
        with self._server.work():
            audio = Audio(first)
            recognize = (
                self._stream(model, audio)
                if isinstance(model, StreamingModel)
                else self._whole(model, audio)
            )
            await self._server.unless_cut_off(recognize)
        self._server.count(model.name, PROTOCOL, "ok")

    async def _stream(self, model: StreamingModel, audio: Audio) -> None:
        live = model.open(audio.rate, PROTOCOL, _hot_words(model, self._request))
        teller = asyncio.ensure_future(self._tell(live))
        try:
            async for pcm in audio.pieces(self._events):
                await live.accept(pcm16(pcm))
                if teller.done():
                    break
            live.finish()
            await teller
        finally:
            await end_live(live, teller)

    async def _tell(self, live: LiveStream) -> None:
        """Send words as soon as they are final, and the whole text at the end."""
        await self._send(asr.TranscriptStart(language=LANGUAGE).event())
        sent = ""
        while not isinstance(found := await live.next(), Transcript):
            if words := " ".join(word.text for word in found.words):
                sent += await self._send_chunk(words, sent)
        if found.text.startswith(sent) and (rest := found.text[len(sent) :].lstrip()):
            await self._send_chunk(rest, sent)
        await self._send(asr.Transcript(text=found.text, language=LANGUAGE).event())
        await self._send(asr.TranscriptStop().event())

    async def _send_chunk(self, words: str, before: str) -> str:
        text = f" {words}" if before else words
        await self._send(asr.TranscriptChunk(text=text).event())
        return text

    async def _whole(self, model: Model, audio: Audio) -> None:
        """Collect all audio, and recognise it with a model of whole utterances."""
        limits = self._server.limits
        most = min(limits.upload_mb * 1e6, limits.audio_s * audio.rate * 2)
        content = bytearray()
        async for pcm in audio.pieces(self._events):
            content += pcm
            if len(content) > most:
                raise RefusedError(
                    413, f"more than {most / audio.rate / 2:.0f} s of audio: send less at a time",
                    "audio_too_long",
                )  # fmt: skip
        async with self._server.upload():
            found = await model.transcribe(
                wav_file(bytes(content), audio.rate), PROTOCOL, _hot_words(model, self._request)
            )
        await self._send(asr.Transcript(text=found.text, language=LANGUAGE).event())

    async def _send(self, event: Event) -> None:
        """Write an event; disconnect a client that does not read within the idle time."""
        # Not wait_for: before Python 3.12 it may swallow the cancellation of this task.
        writing = asyncio.ensure_future(async_write_event(event, self._writer))
        writing.add_done_callback(forget)
        done, _ = await asyncio.wait({writing}, timeout=self._server.limits.idle_s)
        if not done:
            writing.cancel()
            raise asyncio.TimeoutError
        writing.result()


def _info(server: Server) -> Info:
    """Describe the server and its models."""
    models = [
        AsrModel(
            name=model.name, attribution=SOURCE, installed=True, description=model.name,
            version=__version__, languages=[LANGUAGE],
        )
        for model in server.models.values()
    ]  # fmt: skip
    program = AsrProgram(
        name="ds2deploy", attribution=SOURCE, installed=True, description="DeepSpeech 2",
        version=__version__, models=models,
        supports_transcript_streaming=any(model.streaming for model in server.models.values()),
    )  # fmt: skip
    return Info(asr=[program])


def _hot_words(model: Model, request: asr.Transcribe) -> list[str] | None:
    """Return names and terms as hot words if the model can use them; they are only hints."""
    alphabet = Alphabet(model.labels)
    found = [
        word
        for words in (request.transcript_names, request.transcript_terms)
        if isinstance(words, list)
        for word in words
        if isinstance(word, str) and word.strip() and not alphabet.unknown(word)
    ]
    return found[:MOST_HOT_WORDS] if found and model.takes_hot_words else None


def _refused(error: MalformedError | RefusedError | Ds2Error) -> RefusedError:
    if isinstance(error, MalformedError):
        return RefusedError(400, str(error), "malformed")
    return refusal(error)
