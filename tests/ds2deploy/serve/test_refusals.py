"""Refusals name the parameter and the remedy, in the form of each protocol."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner
from websockets.exceptions import InvalidStatus
from wyoming.audio import AudioChunk
from wyoming.client import AsyncClient

import ds2deploy
from ds2deploy.cli.app import app
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.recognizer import Recognizer
from tests.ds2deploy.serve.serving import (
    PATIENCE_S,
    Client,
    Served,
    close_code,
    error,
    final,
    pcm,
    process,
    said,
    say,
    served,
    wav,
)

END = '{"end": true}'


@pytest.fixture(scope="module")
def greedy(streaming_onnx: Path) -> Iterator[Served]:
    with served(lambda: ds2deploy.load(streaming_onnx, threads=1)) as server:
        yield server


@pytest.fixture(scope="module")
def beam(streaming_onnx: Path) -> Iterator[Served]:
    def load() -> Recognizer:
        return ds2deploy.load(streaming_onnx, threads=1, decoder=DecoderConfig(beam=4))

    with served(load) as server:
        yield server


@pytest.fixture(scope="module")
def content() -> bytes:
    return wav(pcm(0.5))


def post(client: Client, content: bytes, fields: dict[str, Any]) -> httpx.Response:
    files = {"file": ("a.wav", content)}
    return client.http.post("/v1/audio/transcriptions", files=files, data=fields)


@pytest.mark.parametrize(
    ("fields", "param", "remedy"),
    [
        ({"keywords[]": ["one", "NINE:90"]}, "keywords", "'NINE:90'"),
        ({"keywords[]": "4711"}, "keywords", "labels of the model"),
        ({"keywords[]": "one" * 100}, "keywords", "1 to 200"),
        ({"keywords[NINE]": "9"}, "keywords", "keywords[]"),
        ({"keywords[0]": "one"}, "keywords", "keywords[]"),
        ({"hot_words": "one"}, "hot_words", "keywords[]"),
        ({"include[]": ["logprobs", "foo"]}, "include", "logprobs"),
        ({"include": "foo"}, "include", "logprobs"),
        ({"include[0]": "logprobs"}, "include", "include[]"),
    ],
)
def test_unusable_fields_of_an_upload_are_refused_by_name(
    beam: Served, content: bytes, fields: dict[str, Any], param: str, remedy: str
) -> None:
    found = post(beam, content, fields)
    assert found.status_code == 400
    refused = found.json()["error"]
    assert refused["param"] == param
    assert refused["message"].startswith(param)
    assert remedy in refused["message"]
    assert refused["type"] == "invalid_request_error"
    assert refused["code"] == "invalid_value"


def test_a_file_as_a_list_is_refused(beam: Served, content: bytes) -> None:
    files = {"file": ("a.wav", content), "keywords[]": ("words.txt", b"ONE")}
    found = beam.http.post("/v1/audio/transcriptions", files=files)
    assert found.status_code == 400
    assert found.json()["error"]["param"] == "keywords"


def test_usable_lists_are_taken(beam: Served, content: bytes) -> None:
    fields = {"keywords[]": ["one", "NINE"], "keywords": "two", "include[]": "logprobs"}
    assert "logprobs" in post(beam, content, fields).json()


def test_hot_words_without_a_beam_search_name_the_options_of_the_server(
    greedy: Served, content: bytes
) -> None:
    refused = post(greedy, content, {"keywords[]": "one"}).json()["error"]
    assert refused["param"] == "keywords"
    messages = [refused["message"]]
    with greedy.stream() as stream:
        stream.send('{"hot_words": ["one"]}')
        messages.append(error(stream)["message"])
        assert close_code(stream) == 1008
    with greedy.stream() as stream:
        say(stream, pcm(0.5))
        stream.send('{"hot_words": ["one"]}')
        messages.append(error(stream)["message"])
        assert close_code(stream) == 1008
    with greedy.stream("/v1/realtime") as stream:
        given = {"audio": {"input": {"transcription": {"keywords": ["one"]}}}}
        session = {"type": "transcription", **given}
        stream.send(json.dumps({"type": "session.update", "session": session}))
        messages.append(error(stream)["message"])
    for message in messages:
        assert "ds2deploy serve" in message
        assert "--beam 64" in message


def test_removing_hot_words_needs_no_beam_search(greedy: Served) -> None:
    with greedy.stream() as stream:
        say(stream, pcm(0.5))
        stream.send('{"hot_words": []}')
        stream.send(END)
        final(stream)


@pytest.mark.parametrize(
    ("path", "message", "param"),
    [
        ("/stream", {"hot_words": ["4711"]}, "hot_words"),
        ("/vosk", {"config": {"phrase_list": ["4711"]}}, "phrase_list"),
    ],
)
def test_unusable_hot_words_of_a_stream_name_their_key(
    beam: Served, path: str, message: object, param: str
) -> None:
    with beam.stream(path) as stream:
        stream.send(json.dumps(message))
        if path == "/vosk":  # the other protocol refuses them before any audio
            stream.send(pcm(0.5))
        found = json.loads(stream.recv())["error"]
        assert (found if path == "/vosk" else found["message"]).startswith(f"{param}: ")
        assert close_code(stream) == 1008


@pytest.mark.parametrize("setting", [{"sample_rate": 16000}, {"model": "m"}, {"endpoint": 1.0}])
@pytest.mark.parametrize("first", [pcm(0.5), '{"sample_rate": 16000}'])
def test_settings_after_the_first_message_are_refused(
    greedy: Served, setting: dict[str, object], first: str | bytes
) -> None:
    with greedy.stream() as stream:
        stream.send(first)
        stream.send(json.dumps(setting))
        found = error(stream)
        assert next(iter(setting)) in found["message"]
        assert "first message" in found["message"]
        assert close_code(stream) == 1008


def test_half_a_sample_is_refused(greedy: Served) -> None:
    with greedy.stream() as stream:
        stream.send(pcm(0.5) + b"\0")
        assert "16-bit samples" in error(stream)["message"]
        assert close_code(stream) == 1008


@pytest.mark.parametrize(("channels", "size"), [(1, 3201), (2, 3202)])
def test_half_a_sample_is_refused_by_wyoming(greedy: Served, channels: int, size: int) -> None:
    async def talk() -> str:
        client = AsyncClient.from_uri(f"tcp://127.0.0.1:{greedy.wyoming_port}")
        await client.connect()
        form = {"rate": 16_000, "width": 2, "channels": channels}
        await client.write_event(AudioChunk(audio=bytes(size), **form).event())
        while (event := await client.read_event()) is not None:
            if event.type == "error":
                return str(event.data["text"])
        return ""

    assert "whole samples" in asyncio.run(talk())


def test_a_text_for_a_file_names_the_sign_that_is_missing(greedy: Served) -> None:
    for data in ({"file": "speech.wav"}, {"model": ""}):
        found = greedy.http.post("/v1/audio/transcriptions", data=data)
        assert found.status_code == 422
        assert found.json()["error"]["param"] == "file"
        assert "file=@speech.wav" in found.json()["error"]["message"]


def test_an_empty_file_is_called_empty(greedy: Served) -> None:
    found = post(greedy, b"", {})
    assert found.status_code == 400
    assert "the file is empty" in found.json()["error"]["message"]
    assert "pipe" not in found.json()["error"]["message"]


def test_another_path_of_a_websocket_is_not_found(greedy: Served) -> None:
    with pytest.raises(InvalidStatus) as raised:
        greedy.stream("/straem")
    assert raised.value.response.status_code == 404
    refused = json.loads(raised.value.response.body)["error"]
    assert refused["code"] == "not_found"
    assert "/stream" in refused["message"]
    assert greedy.http.get("/straem").status_code == 404


def test_refused_websockets_log_no_error(
    streaming_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS2DEPLOY_API_KEY", "right")
    with process(tmp_path, streaming_onnx, "--streams", 1) as server:
        headers = {"Authorization": "Bearer right"}
        for path, given, status in (("/stream", None, 401), ("/nowhere", headers, 404)):
            with pytest.raises(InvalidStatus) as raised:
                server.stream(path, additional_headers=given)
            assert raised.value.response.status_code == status
        server.process.terminate()
        assert server.wait() == 0
        lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
        assert {line["level"] for line in lines} == {"info"}
        requests = [line for line in lines if "status" in line]
        refused = {(line["status"], line["outcome"]) for line in requests}
        assert len(requests) == 2
        assert refused == {(401, "invalid_api_key"), (404, "not_found")}
        assert {line["client"] for line in requests} == {"127.0.0.1"}


def test_the_log_says_why_a_connection_ended(streaming_onnx: Path, tmp_path: Path) -> None:
    with process(tmp_path, streaming_onnx, "--streams", 1) as server:
        name = server.http.get("/v1/models").json()["data"][0]["id"]
        assert said(server, pcm(0.5)) is not None
        with server.stream() as socket:
            socket.send("no JSON")
            assert "error" in json.loads(socket.recv(PATIENCE_S))
        assert server.transcribe(b"no audio").status_code == 400
        assert server.http.post("/v1/audio/transcriptions", data={}).status_code == 422
        assert server.http.get("/nowhere").status_code == 404
        server.process.terminate()
        assert server.wait() == 0
        lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
        found = [(line.get("model"), line.get("outcome")) for line in lines if "status" in line]
        expected = [
            (None, None), (name, "ok"), (None, "invalid_message"),
            (name, "invalid_audio"), (None, "invalid_value"), (None, "invalid_request"),
        ]  # fmt: skip
        # A line is written after its response: the next request's may come before it.
        assert Counter(found) == Counter(expected)


@pytest.mark.parametrize("path", ["/audio/transcriptions", "/models"])
def test_a_path_without_its_version_is_named(greedy: Served, path: str) -> None:
    found = greedy.http.get(path)
    assert found.status_code == 404
    assert "/v1" in found.json()["error"]["message"]


def test_a_silent_stream_gets_no_empty_updates(greedy: Served) -> None:
    with greedy.stream() as socket:
        say(socket, bytes(64_000))
        socket.send('{"end": true}')
        messages = [json.loads(message) for message in socket]
    assert all(one.get("committed", "text") or one["tail"] for one in messages)
    assert messages[-1]["final"]


@pytest.mark.parametrize("key", ["", "clé", "two words", "line\n"])
@pytest.mark.parametrize("source", ["--api-key", "DS2DEPLOY_API_KEY"])
def test_a_key_that_no_client_can_send_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, source: str
) -> None:
    options: tuple[str, ...] = ("--api-key", key)
    if source != "--api-key":
        monkeypatch.setenv(source, key)
        options = ()
    command = ["serve", str(tmp_path / "none.onnx"), "--port", "0", *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert f"{source}: " in line
    assert not key or key.strip() not in line
