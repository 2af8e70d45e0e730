"""The Wyoming protocol, spoken by the package that Home Assistant uses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi", reason="the server's extra is not installed")
pytest.importorskip("wyoming", reason="the server's extra is not installed")

from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

import ds2deploy
from ds2deploy.serve.app import make_app
from ds2deploy.serve.limits import Limits
from ds2deploy.serve.server import Server
from ds2deploy.serve.wyoming import WyomingServer

RATE = 8000
PATIENCE_S = 120


@pytest.fixture
def speech(spoken_digits: Path) -> np.ndarray:
    """Say three, one, four: (samples,) int16."""
    names = ("3_jackson_0", "1_jackson_1", "4_jackson_2")
    clips = [soundfile.read(spoken_digits / f"{name}.wav", dtype="int16")[0] for name in names]
    return np.concatenate([*clips, np.zeros(RATE, np.int16)])


def expected(model: Path, speech: np.ndarray) -> str:
    found = ds2deploy.load(model).transcribe(speech.astype(np.float32) / 32768, RATE)
    return found.text


@contextlib.asynccontextmanager
async def serving(
    model: Path, limits: Limits | None = None
) -> AsyncIterator[tuple[Server, Callable[[], Awaitable[AsyncClient]]]]:
    """Serve a model to Wyoming clients; yields the server, and a function that connects."""
    server = Server({"model": lambda: ds2deploy.load(model)}, limits or Limits(streams=4))
    listening = socket.create_server(("127.0.0.1", 0))
    uri = f"tcp://127.0.0.1:{listening.getsockname()[1]}"

    async def connect() -> AsyncClient:
        client = AsyncClient.from_uri(uri)
        await client.connect()
        return client

    await server.start()
    try:
        async with WyomingServer(server, listening).running():
            yield server, connect
    finally:
        await server.stop()


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test, PATIENCE_S)

    asyncio.run(bounded())


async def send_audio(client: AsyncClient, speech: np.ndarray, stop: bool = True) -> None:
    form = {"rate": RATE, "width": 2, "channels": 1}
    await client.write_event(AudioStart(**form).event())
    for start in range(0, len(speech), 800):
        audio = speech[start : start + 800].tobytes()
        await client.write_event(AudioChunk(audio=audio, **form).event())
    if stop:
        await client.write_event(AudioStop().event())


async def events_until(client: AsyncClient, kind: type) -> list[Event]:
    found: list[Event] = []
    while not found or not kind.is_type(found[-1].type):
        event = await client.read_event()
        assert event is not None, f"closed after {[one.type for one in found]}"
        found.append(event)
    return found


async def text_of(client: AsyncClient, speech: np.ndarray) -> str:
    await client.write_event(Transcribe(language="en").event())
    await send_audio(client, speech)
    return Transcript.from_event((await events_until(client, Transcript))[-1]).text


def test_describe_lists_the_models(streaming_onnx: Path):
    async def talk() -> None:
        async with serving(streaming_onnx) as (_, connect):
            client = await connect()
            await client.write_event(Describe().event())
            info = Info.from_event((await events_until(client, Info))[-1])
            (program,) = info.asr
            assert program.installed
            assert program.supports_transcript_streaming
            assert [(one.name, one.installed, one.languages) for one in program.models] == [
                ("model", True, ["en"])
            ]
            await client.write_event(Ping().event())
            await events_until(client, Pong)

    run(talk())


def test_a_streaming_model_sends_the_words_as_they_come(streaming_onnx: Path, speech: np.ndarray):
    async def talk() -> None:
        text = expected(streaming_onnx, speech)
        assert len(text.split()) > 1
        async with serving(streaming_onnx) as (_, connect):
            client = await connect()
            await client.write_event(Transcribe(name="model").event())
            await send_audio(client, speech)
            events = await events_until(client, TranscriptStop)
            assert TranscriptStart.is_type(events[0].type)
            assert Transcript.is_type(events[-2].type)
            assert Transcript.from_event(events[-2]).text == text
            assert "".join(TranscriptChunk.from_event(one).text for one in events[1:-2]) == text
            assert await text_of(client, speech) == text  # another request of the connection

    run(talk())


def test_a_model_of_whole_utterances_sends_the_text_at_the_end(
    whole_onnx: Path, speech: np.ndarray
):
    async def talk() -> None:
        text = expected(whole_onnx, speech)
        assert len(text.split()) > 1
        async with serving(whole_onnx) as (_, connect):
            client = await connect()
            await client.write_event(Describe().event())
            info = Info.from_event((await events_until(client, Info))[-1])
            assert not info.asr[0].supports_transcript_streaming
            await send_audio(client, speech)
            events = await events_until(client, Transcript)
            assert [one.type for one in events] == ["transcript"]
            assert Transcript.from_event(events[0]).text == text

    run(talk())


def test_several_clients_each_get_their_text(streaming_onnx: Path, speech: np.ndarray):
    async def talk() -> None:
        parts = [speech, speech[3000:], speech[5000:]]
        async with serving(streaming_onnx) as (_, connect):
            clients = [await connect() for _ in parts]
            found = await asyncio.gather(*map(text_of, clients, parts))
        assert found == [expected(streaming_onnx, part) for part in parts]
        assert len(set(found)) > 1

    run(talk())


def test_stereo_is_mixed(streaming_onnx: Path, speech: np.ndarray):
    async def talk() -> None:
        form = {"rate": RATE, "width": 2, "channels": 2}
        async with serving(streaming_onnx) as (_, connect):
            client = await connect()
            both = np.stack([speech, speech], 1).tobytes()
            await client.write_event(AudioStart(**form).event())
            await client.write_event(AudioChunk(audio=both, **form).event())
            await client.write_event(AudioStop().event())
            found = Transcript.from_event((await events_until(client, Transcript))[-1])
        assert found.text == expected(streaming_onnx, speech)

    run(talk())


def test_a_client_that_vanishes_frees_its_place(streaming_onnx: Path, speech: np.ndarray):
    async def talk() -> None:
        async with serving(streaming_onnx, Limits(streams=1)) as (server, connect):
            first = await connect()
            await send_audio(first, speech[:8000], stop=False)
            await events_until(first, TranscriptStart)
            second = await connect()
            await send_audio(second, speech)
            refused = Error.from_event((await events_until(second, Error))[-1])
            assert refused.code == "overloaded"
            await first.disconnect()
            while server.models["model"]._live:
                await asyncio.sleep(0.01)
            assert await text_of(await connect(), speech) == expected(streaming_onnx, speech)

    run(talk())


CHUNK = b'{"type":"audio-chunk","data":{"rate":8000,"width":2,"channels":1}'


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\x00\n",
        b"[1, 2]\n",
        b'{"data": {}}\n',
        b'{"type": 5}\n',
        b'{"type": "describe", "data": [1]}\n',
        b'{"type": "describe", "data_length": -1}\n',
        b'{"type": "describe", "data_length": "9"}\n',
        b'{"type": "describe", "data_length": 3}\n{{{',
        b'{"type": "describe", "data_length": 99999999999}\n',
        CHUNK + b',"payload_length": 99999999999}\n',
        b"x" * 300_000,
        b"[" * 60_000 + b"\n",
        b'{"type": "audio-start", "data": {"rate": 8000, "width": 4, "channels": 1}}\n',
        b'{"type": "audio-start", "data": {"rate": 1e9, "width": 2, "channels": 1}}\n',
        b'{"type": "audio-start"}\n',
        CHUNK + b'}\n{"type":"audio-chunk","data":{"rate":9000,"width":2,"channels":1}}\n',
        b'{"type": "transcribe", "data": {"name": "other"}}\n' + CHUNK + b"}\n",
    ],
)
def test_garbage_ends_the_connection(
    streaming_onnx: Path, content: bytes, caplog: pytest.LogCaptureFixture
):
    async def talk() -> None:
        async with serving(streaming_onnx) as (server, connect):
            client = await connect()
            client._writer.write(content)
            with contextlib.suppress(ConnectionError):
                while await client.read_event() is not None:
                    pass
            assert server.models["model"]._live == {}
            again = await connect()
            await again.write_event(Describe().event())
            await events_until(again, Info)

    with caplog.at_level(logging.WARNING):
        run(talk())
    assert caplog.records == []


@pytest.mark.parametrize("limits", [Limits(audio_s=0.5), Limits(upload_mb=0.005)])
def test_too_much_audio_for_a_whole_utterance_is_refused(
    whole_onnx: Path, speech: np.ndarray, limits: Limits
):
    async def talk() -> None:
        async with serving(whole_onnx, limits) as (_, connect):
            client = await connect()
            with contextlib.suppress(ConnectionError):
                await send_audio(client, speech)
            error = Error.from_event((await events_until(client, Error))[-1])
            assert error.code == "audio_too_long"

    run(talk())


@pytest.mark.parametrize("model", ["streaming_onnx", "whole_onnx"])
def test_a_server_that_shuts_down_sends_the_text_until_then(
    model: str, speech: np.ndarray, request: pytest.FixtureRequest
):
    path: Path = request.getfixturevalue(model)

    async def talk() -> None:
        async with serving(path) as (server, connect):
            idle, client = await connect(), await connect()
            await send_audio(client, speech, stop=False)
            await client._writer.drain()
            while not server._work:
                await asyncio.sleep(0.01)
            await server.drain()
            found = Transcript.from_event((await events_until(client, Transcript))[-1])
            assert expected(path, speech).startswith(found.text)
            assert found.text
            assert await idle.read_event() is None
            with pytest.raises(OSError, match="onnect"):
                await connect()

    run(talk())


def test_a_silent_client_is_left(streaming_onnx: Path):
    async def talk() -> None:
        async with serving(streaming_onnx, Limits(streams=1, idle_s=0.1)) as (_, connect):
            client = await connect()
            assert await client.read_event() is None

    run(talk())


def test_the_application_serves_it_while_it_runs(streaming_onnx: Path):
    async def talk() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        uri = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        models = {"model": lambda: ds2deploy.load(streaming_onnx)}
        app = make_app(lambda: Server(models, Limits(streams=1)), listening)
        async with app.router.lifespan_context(app):
            client = AsyncClient.from_uri(uri)
            await client.connect()
            await client.write_event(Describe().event())
            await events_until(client, Info)
        assert await client.read_event() is None

    run(talk())
