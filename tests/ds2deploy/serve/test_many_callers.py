"""64 callers who speak in real time, beside uploads: each gets the text of its own audio."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect

import ds2deploy
from tests.ds2deploy.serve.serving import PATIENCE_S, RATE, Process, pcm, process, wav

SPEAKERS, UPLOADS = 64, 24
PIECES_S = (0.01, 0.5)
"""Shortest and longest piece that a speaker sends."""

VOSK_EVERY = 4
"""One speaker of so many talks Vosk's protocol."""


@pytest.fixture(scope="module")
def server(
    streaming_onnx: Path, whole_onnx: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("server")
    options = ("--streams", SPEAKERS, "--threads", 1)
    with process(folder, f"live={streaming_onnx}", f"whole={whole_onnx}", *options) as found:
        yield found


def speech(number: int) -> bytes:
    """Speech of a caller: no two have the same."""
    return pcm(2 + number % 5 / 3, voice=number)


async def speak(url: str, number: int) -> str:
    """Speak in real time, in pieces of random sizes, from a random moment on."""
    chance, content = random.Random(number), speech(number)
    vosk = number % VOSK_EVERY == 0
    await asyncio.sleep(chance.uniform(0, 2))
    path = "/vosk" if vosk else "/stream"
    async with connect(
        url.replace("http", "ws", 1) + path, open_timeout=PATIENCE_S, ping_timeout=PATIENCE_S
    ) as socket:
        if vosk:
            await socket.send(json.dumps({"config": {"sample_rate": RATE, "model": "live"}}))
        replies = asyncio.ensure_future(texts(socket))
        sent = 0
        while sent < len(content):
            piece = content[sent : sent + 2 * int(chance.uniform(*PIECES_S) * RATE)]
            await asyncio.sleep(len(piece) / 2 / RATE)
            await socket.send(piece)
            sent += len(piece)
        await socket.send('{"eof": 1}' if vosk else '{"end": true}')
        return await asyncio.wait_for(replies, PATIENCE_S)


async def texts(socket: Any) -> str:
    """Read replies up to the end; the text of all of them."""
    found: list[str] = []
    async for message in socket:
        reply = json.loads(message)
        assert "error" not in reply, reply
        if "final" in reply:
            return str(reply["text"])
        if reply.get("text"):  # Vosk's result of a segment
            found.append(reply["text"])
    return " ".join(found)


async def upload(client: httpx.AsyncClient, number: int) -> str:
    """Send a recording, half of them to the model of whole utterances."""
    await asyncio.sleep(random.Random(-number).uniform(0, 3))
    answer = await client.post(
        "/v1/audio/transcriptions",
        files={"file": (f"{number}.wav", wav(speech(number)))},
        data={"model": model_of(number)},
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["text"])


def model_of(number: int) -> str:
    """Choose the model of an upload."""
    return ("live", "whole")[number % 2]


async def everybody(url: str) -> tuple[list[str], list[str]]:
    """Let all callers talk and upload at once."""
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        spoken = asyncio.gather(*(speak(url, number) for number in range(SPEAKERS)))
        uploaded = asyncio.gather(*(upload(client, number) for number in range(UPLOADS)))
        return await spoken, await uploaded


@pytest.mark.slow
def test_each_of_many_callers_gets_the_text_of_its_own_audio(
    server: Process, streaming_onnx: Path, whole_onnx: Path
) -> None:
    spoken, uploaded = asyncio.run(everybody(server.url))
    models = {
        "live": ds2deploy.load(streaming_onnx, threads=1),
        "whole": ds2deploy.load(whole_onnx, threads=1),
    }

    def alone(model: str, number: int) -> str:
        samples = np.frombuffer(speech(number), "<i2").astype(np.float32) / 32768
        return models[model].transcribe(samples, RATE).text

    expected = [alone("live", number) for number in range(SPEAKERS)]
    assert len(set(expected)) > SPEAKERS / 2  # so that an exchange would be seen
    assert spoken == expected
    assert uploaded == [alone(model_of(number), number) for number in range(UPLOADS)]
    assert "Traceback" not in server.log()
