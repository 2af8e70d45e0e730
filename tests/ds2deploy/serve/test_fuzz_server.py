"""Arbitrary requests and messages: always an answer in the protocol's form, never a failure."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from websockets.exceptions import ConnectionClosed

import ds2deploy
from ds2deploy.serve.limits import Limits
from tests.ds2deploy.serve.serving import (
    PATIENCE_S,
    Served,
    close_code,
    pcm,
    said,
    served,
    wait_for,
)

PHASES = (Phase.explicit, Phase.generate)
"""Nothing is shrunk: an example costs a request."""

MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
"""Minutes of new random examples for each test; 0 runs the same few examples every time."""

Check = Callable[[Any], None]


def explore(strategy: st.SearchStrategy[Any], check: Check, examples: int) -> int:
    """Run a check on examples of a strategy; returns how many."""
    deadline, count = time.monotonic() + 60 * MINUTES, 0

    def counted(example: Any) -> None:
        nonlocal count
        count += 1
        check(example)

    rounds = 0
    while not rounds or time.monotonic() < deadline:
        fixed = settings(
            max_examples=examples, derandomize=not MINUTES, database=None, deadline=None,
            phases=PHASES, suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        seed(time.time_ns())(fixed(given(strategy)(counted)))() if MINUTES else fixed(
            given(strategy)(counted)
        )()
        rounds += 1
    print(f"{count} examples")
    return count


@pytest.fixture(scope="module")
def server(streaming_onnx: Path) -> Iterator[Served]:
    limits = Limits(streams=4, audio_s=20.0, upload_mb=1.0, idle_s=PATIENCE_S)
    with served(lambda: ds2deploy.load(streaming_onnx, threads=1), limits) as found:
        yield found


def test_requests_of_the_description_never_fail(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 6

    def check(case: schemathesis.Case) -> None:
        response = case.call(base_url=server.url)
        case.validate_response(response, checks=[not_a_server_error])
        assert "Traceback" not in response.text

    every = st.one_of([operation.as_strategy() for operation in operations])
    explore(every, check, 150)
    assert not [record for record in caplog.records if record.exc_info]
    assert said(server, pcm(0.5)) is not None


def settings_of(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    """Objects in JSON with any of these keys."""
    return st.fixed_dictionaries({}, optional=values).map(json.dumps)


ANYTHING = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.text())
RATES = st.integers(-1, 10**6) | st.sampled_from([8000, 16_000, 48_000])
MODELS = st.sampled_from(["", "m", "other", "\x00"])
WORDS = st.none() | st.lists(st.text(max_size=8), max_size=3)
NOISE = (
    st.text(max_size=60)
    | st.sampled_from(["", "{}", "[" * 5000, '{"sample_rate": 1e400}'])
    | st.binary(max_size=400)
    | st.integers(0, 40_000).map(bytes)
)


class Protocol(NamedTuple):
    """A WebSocket protocol of the server.

    Attributes:
        path: path of the WebSocket.
        messages: messages that look like a client's.
        end: message after which the server closes the connection, or sends `is_end`.
        is_end: whether a reply is the answer to it.
    """

    path: str
    messages: st.SearchStrategy[str | bytes]
    end: str
    is_end: Callable[[dict[str, Any]], bool]


STREAM = Protocol(
    "/stream",
    settings_of(
        sample_rate=RATES, model=MODELS, hot_words=WORDS, end=st.booleans(), other=ANYTHING,
        endpoint=st.floats(allow_nan=False) | st.sampled_from([0.0, 0.5]),
    ),
    '{"end": true}',
    lambda reply: "final" in reply or "error" in reply,
)  # fmt: skip
VOSK = Protocol(
    "/vosk",
    settings_of(
        config=st.fixed_dictionaries(
            {}, optional={"sample_rate": RATES, "words": ANYTHING, "phrase_list": WORDS | ANYTHING,
                          "model": MODELS, "other": ANYTHING},
        ) | ANYTHING,
        reset=ANYTHING, eof=st.sampled_from([0, False, None, "x"]),
    ),
    '{"eof": 1}',
    lambda reply: "error" in reply or "partial" not in reply,
)  # fmt: skip
AUDIO = st.binary(max_size=400).map(lambda found: base64.b64encode(found).decode())
INPUT = st.fixed_dictionaries(
    {}, optional={
        "format": st.fixed_dictionaries(
            {}, optional={"type": st.sampled_from(["audio/pcm", "audio/pcmu", "x"]), "rate": RATES}
        ) | ANYTHING,
        "transcription": st.fixed_dictionaries(
            {}, optional={"model": MODELS, "keywords": WORDS}
        ) | ANYTHING,
        "turn_detection": st.just({"type": "server_vad"}) | ANYTHING,
    },
)  # fmt: skip
REALTIME = Protocol(
    "/v1/realtime?intent=transcription",
    settings_of(
        type=st.sampled_from([
            "session.update", "input_audio_buffer.append", "input_audio_buffer.commit",
            "input_audio_buffer.clear", "response.create", "",
        ]) | ANYTHING,
        audio=AUDIO | ANYTHING, event_id=ANYTHING,
        session=st.fixed_dictionaries(
            {"type": st.just("transcription")},
            optional={"audio": st.fixed_dictionaries({"input": INPUT}) | ANYTHING},
        ) | ANYTHING,
    ),
    '{"type": "none", "event_id": "the last"}',
    lambda reply: reply.get("error", {}).get("event_id") == "the last",
)  # fmt: skip

ENDS = (1000, 1003, 1007, 1008, 1009)
"""Close codes of a connection that ended as it should, or through a message of the client."""


def talk(server: Served, protocol: Protocol, messages: list[str | bytes]) -> list[dict[str, Any]]:
    """Send messages and the end; returns the replies."""
    replies = []
    with server.stream(protocol.path) as stream:
        with contextlib.suppress(ConnectionClosed):
            for message in [*messages, protocol.end]:
                stream.send(message)
        with contextlib.suppress(ConnectionClosed):
            while True:
                replies.append(json.loads(stream.recv(PATIENCE_S)))
                if protocol is REALTIME and protocol.is_end(replies[-1]):
                    return replies  # it closes no connection
        assert stream.close_code in ENDS, (stream.close_code, replies[-3:])
        assert protocol.is_end(replies[-1]) or replies[-1]["type"] == "error", replies[-1]
        assert stream.close_code == 1000 or "error" in replies[-1]
    return replies


@pytest.mark.parametrize("protocol", [STREAM, VOSK, REALTIME], ids=lambda found: found.path[1:9])
def test_messages_end_in_a_transcript_or_an_error(
    server: Served, protocol: Protocol, caplog: pytest.LogCaptureFixture
) -> None:
    messages = st.lists(protocol.messages | NOISE, max_size=6)
    explore(messages, lambda found: talk(server, protocol, found), 60)
    assert not [record for record in caplog.records if record.exc_info]
    wait_for(lambda: server.live_streams() == 0)
    assert said(server, pcm(0.5)) is not None


CHUNKS = st.fixed_dictionaries(
    {}, optional={
        "rate": RATES | ANYTHING, "width": st.just(2) | ANYTHING,
        "channels": st.integers(1, 3) | ANYTHING, "timestamp": ANYTHING,
    },
)  # fmt: skip
USUAL_CHUNK = st.just({"rate": 16_000, "width": 2, "channels": 1})


@st.composite
def wyoming_events(draw: st.DrawFn) -> bytes:
    """Draw an event that looks like a client's: a line, its data, its payload."""
    kind = draw(
        st.sampled_from([
            "transcribe", "audio-start", "audio-chunk", "audio-chunk", "audio-stop", "ping",
            "describe", "transcript", "",
        ]) | ANYTHING
    )  # fmt: skip
    if str(kind).startswith("audio"):
        data = draw(USUAL_CHUNK | USUAL_CHUNK | CHUNKS)
    else:
        names = {"name": MODELS | ANYTHING, "language": ANYTHING, "context": ANYTHING}
        terms = {"transcript_names": WORDS | ANYTHING, "transcript_terms": WORDS | ANYTHING}
        data = draw(st.fixed_dictionaries({}, optional=names | terms) | ANYTHING)
    payload = draw(st.integers(0, 40_000).map(bytes) | st.binary(max_size=400) | st.none())
    head: dict[str, Any] = {"type": kind}
    after = json.dumps(data).encode() if draw(st.booleans()) else b""
    if after:
        head["data_length"] = len(after)
    else:
        head["data"] = data
    if payload is not None:
        head["payload_length"] = draw(st.just(len(payload)) | ANYTHING | st.integers(-1, 10**9))
    return json.dumps(head).encode() + b"\n" + after + (payload or b"")


def converse(server: Served, content: bytes) -> list[dict[str, Any]]:
    """Send bytes and no more; returns the heads of the events until the server closes."""
    heads = []
    address = ("127.0.0.1", server.wyoming_port)
    with socket.create_connection(address, PATIENCE_S) as client, client.makefile("rb") as replies:
        with contextlib.suppress(OSError):
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while line := replies.readline():
                heads.append(json.loads(line))
                for name in ("data_length", "payload_length"):
                    replies.read(heads[-1].get(name) or 0)
    return heads


WYOMING_REPLIES = {
    "info", "pong", "transcript-start", "transcript-chunk", "transcript", "transcript-stop", "error"
}  # fmt: skip


def test_wyoming_events_end_in_replies_or_an_error(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    def check(content: list[bytes]) -> None:
        kinds = [head["type"] for head in converse(server, b"".join(content))]
        assert WYOMING_REPLIES.issuperset(kinds)
        assert "error" not in kinds[:-1]

    lines = st.binary(max_size=200) | st.sampled_from([b"{}\n", b"[" * 5000 + b"\n", b"\n"])
    explore(st.lists(wyoming_events() | wyoming_events() | lines, max_size=6), check, 100)
    assert not [record for record in caplog.records if record.exc_info]
    wait_for(lambda: server.live_streams() == 0)
    assert said(server, pcm(0.5)) is not None
    assert [head["type"] for head in converse(server, b'{"type": "describe"}\n')] == ["info"]


@pytest.mark.parametrize("message", [
    json.dumps({"hot_words": ["A" * 10_000_000]}),
    json.dumps({"hot_words": ["A"] * 100_000}),
    json.dumps({"model": "x" * 1_000_000}),
    json.dumps({"model": "é" * 90}, ensure_ascii=False),
])  # fmt: skip
def test_huge_settings_are_refused(server: Served, message: str) -> None:
    with server.stream() as stream:
        stream.send(message)
        error = json.loads(stream.recv(PATIENCE_S))["error"]
        assert len(error["message"]) < 1000
        assert close_code(stream) == 1008
    with server.stream() as stream:
        stream.send(bytes(17 << 20))
        assert close_code(stream) == 1009
