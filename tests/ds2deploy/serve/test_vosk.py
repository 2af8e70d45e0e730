"""The protocol of Vosk's server, spoken by a client of another package."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.streaming.endpoint import Endpoint
from ds2deploy.serve.limits import Limits

EOF = '{"eof" : 1}'


@pytest.fixture(scope="module")
def url(serve_models: Callable[..., str], load_streaming: Callable[..., Recognizer]) -> str:
    beam = DecoderConfig(beam=8)
    base = serve_models({"digits": load_streaming, "beam": lambda: load_streaming(decoder=beam)})
    return base.replace("http", "ws") + "/vosk"


@pytest.fixture
def client(url: str) -> Iterator[ClientConnection]:
    with connect(url) as connection:
        yield connection


def ask(client: ClientConnection, message: str | bytes) -> dict[str, Any]:
    client.send(message)
    return json.loads(client.recv(timeout=60))


def configure(client: ClientConnection, **config: object) -> None:
    client.send(json.dumps({"config": config}))


def replies(client: ClientConnection, speech: np.ndarray, rate: int) -> list[dict[str, Any]]:
    """Send audio in messages of 0.2 s and the end, each after the reply to the one before."""
    content, size = speech.tobytes(), rate // 5 * 2
    found = [ask(client, content[i : i + size]) for i in range(0, len(content), size)]
    return [*found, ask(client, EOF)]


def whole_text(found: list[dict[str, Any]]) -> str:
    return " ".join(reply["text"] for reply in found if reply.get("text"))


@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_text_is_that_of_the_recording(client, recognizer, speech, rate) -> None:
    speech = np.ascontiguousarray(speech[:: 16_000 // rate])
    expected = recognizer.transcribe(speech.astype(np.float32) / 32768, rate)
    configure(client, sample_rate=rate)
    found = replies(client, speech, rate)
    assert whole_text(found) == expected.text != ""
    words = [word for reply in found for word in reply.get("result", [])]
    assert [(word["word"], word["start"], word["end"]) for word in words] == [
        (word.text, word.start, word.end) for word in expected.words
    ]
    assert all(0 <= word["conf"] <= 1 for word in words)


def test_replies_are_those_of_a_stream_that_nobody_waits_for(client, recognizer, speech) -> None:
    """The reply to each message has all that its audio decides: no later one, no earlier one."""
    stream = recognizer.stream(16_000, endpoint=Endpoint())
    expected = []
    for start in range(0, len(speech), 3200):
        update = stream.accept(speech[start : start + 3200].astype(np.float32) / 32768)
        if update.segments:
            expected.append({"text": " ".join(segment.text for segment in update.segments)})
        else:
            expected.append({"partial": update.text})
    expected.append({"text": stream.finish().text})
    configure(client, sample_rate=16_000, words=False)
    found = replies(client, speech, 16_000)
    assert found == expected
    assert sum("text" in reply for reply in found) > 1
    assert any(reply.get("partial") for reply in found)


def test_segments_that_end_in_one_message_are_joined(client, recognizer, speech) -> None:
    stream = recognizer.stream(16_000, endpoint=Endpoint())
    segments = stream.accept(speech.astype(np.float32) / 32768).segments
    assert len(segments) > 1
    reply = ask(client, speech.tobytes())
    assert reply["text"] == " ".join(segment.text for segment in segments)
    assert [word["word"] for word in reply["result"]] == reply["text"].split()


@pytest.mark.parametrize("eof", ['{"eof":1}', '{"eof" : 1}', ' {\n"eof": true } '])
def test_eof_without_audio_closes(client, eof) -> None:
    assert ask(client, eof) == {"text": ""}
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(timeout=60)
    assert closed.value.rcvd.code == 1000


def test_reset_begins_another_utterance_later_in_time(client, recognizer, speech) -> None:
    content, count = speech[:32_000].tobytes(), 0
    first = [ask(client, content), ask(client, '{"reset": 1}')]
    count = len(content) // 2 / 16_000
    configure(client, words=True)
    second = [ask(client, content), ask(client, EOF)]
    assert whole_text(first) == whole_text(second) != ""
    begin, again = (
        next(reply["result"][0]["start"] for reply in found if "result" in reply)
        for found in (first, second)
    )
    assert again == pytest.approx(begin + count)


def test_a_silent_message_gets_a_partial_reply(client) -> None:
    assert ask(client, b"") == {"partial": ""}
    assert ask(client, bytes(3200)) == {"partial": ""}


def test_phrases_are_hot_words_of_a_beam_search(client, speech) -> None:
    configure(client, model="beam", phrase_list=["zero", "[unk]"])
    assert "text" in replies(client, speech[:16_000], 16_000)[-1]


def test_phrases_are_ignored_by_a_greedy_decoder(client, speech, recognizer) -> None:
    configure(client, phrase_list=["zero"])
    expected = recognizer.transcribe(speech.astype(np.float32) / 32768, 16_000)
    assert whole_text(replies(client, speech, 16_000)) == expected.text


@pytest.mark.parametrize(
    "messages",
    [
        ["hello"],
        ["{}"],
        ["[" * 100_000],
        ['{"config": {"sample_rate": NaN}}'],
        ['{"config": {"sample_rate": 1e400}}', b"ab"],
        ['{"config": {"sample_rate": 0}}', b"ab"],
        ['{"config": {"model": "other"}}', b"ab"],
        ['{"config": {"model": "beam", "phrase_list": ["4711"]}}', b"ab"],
        [json.dumps({"config": {"model": "beam", "phrase_list": ["one"] * 2000}}), b"ab"],
    ],
)  # fmt: skip
def test_unusable_messages_end_with_an_error(client, messages) -> None:
    for message in messages:
        client.send(message)
    reply = json.loads(client.recv(timeout=60))
    assert set(reply) == {"error", "code"}
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(timeout=60)
    assert closed.value.rcvd.code == 1008


def test_config_after_audio_is_an_error(client) -> None:
    assert ask(client, bytes(320)) == {"partial": ""}
    configure(client, sample_rate=8000)
    assert "config" in json.loads(client.recv(timeout=60))["error"]


def test_a_full_server_says_when_to_try_again(
    serve_models: Callable[..., str], load_streaming: Callable[..., Recognizer]
) -> None:
    base = serve_models({"digits": load_streaming}, limits=Limits(streams=1))
    url = base.replace("http", "ws") + "/vosk"
    with connect(url) as one:
        assert ask(one, bytes(320)) == {"partial": ""}
        with connect(url) as other:
            reply = ask(other, bytes(320))
            assert reply["code"] == "overloaded"
            assert reply["retry_after_ms"] > 0
            with pytest.raises(ConnectionClosed) as closed:
                other.recv(timeout=60)
            assert closed.value.rcvd.code == 1013
        assert "text" in ask(one, EOF)
    with connect(url) as again:
        assert ask(again, bytes(320)) == {"partial": ""}


def test_a_server_that_ends_sends_the_rest(serving, load_streaming, recognizer, speech) -> None:
    with ExitStack() as stack:
        with serving({"digits": load_streaming}) as base:
            client = stack.enter_context(connect(base.replace("http", "ws") + "/vosk"))
            found = [ask(client, speech.tobytes())]
        found += [json.loads(message) for message in client]
    assert client.close_code == 1001
    assert len(found) == 2
    expected = recognizer.transcribe(speech.astype(np.float32) / 32768, 16_000)
    assert whole_text(found) == expected.text


def test_a_client_that_vanishes_leaves_its_place(serving, load_streaming, wait_until) -> None:
    def is_taken() -> bool:
        with connect(url) as other:
            return "error" in ask(other, bytes(320))

    with serving({"digits": load_streaming}, limits=Limits(streams=1)) as base:
        url = base.replace("http", "ws") + "/vosk"
        with connect(url) as client:
            ask(client, bytes(320))
            assert is_taken()
            client.socket.shutdown(socket.SHUT_RDWR)
            wait_until(lambda: not is_taken())
