"""Arbitrary requests and messages: always an answer in the protocol's form, never a failure."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
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
    for operation in operations:

        @settings(
            max_examples=25, derandomize=True, database=None, deadline=None, phases=PHASES,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            response = case.call(base_url=server.url)
            case.validate_response(response, checks=[not_a_server_error])
            assert "Traceback" not in response.text

        check()
    assert not [record for record in caplog.records if record.exc_info]
    assert said(server, pcm(0.5)) is not None


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "sample_rate": st.integers(-1, 10**6) | st.sampled_from([8000, 16_000, 48_000]),
        "model": st.sampled_from(["", "m", "other", "\x00"]),
        "hot_words": st.none() | st.lists(st.text(max_size=8), max_size=3),
        "endpoint": st.floats(allow_nan=False) | st.sampled_from([0.0, 0.5]),
        "end": st.booleans(),
        "other": st.integers(),
    },
).map(json.dumps)

MESSAGES = st.lists(
    SETTINGS
    | st.text(max_size=60)
    | st.sampled_from(["", "{}", "[" * 5000, '{"end": true}', '{"sample_rate": 1e400}'])
    | st.binary(max_size=400)
    | st.integers(0, 40_000).map(bytes),
    max_size=6,
)


@pytest.fixture(scope="module")
def talk(server: Served) -> Callable[[list[str | bytes]], None]:
    def check(messages: list[str | bytes]) -> None:
        stream = server.stream()
        with contextlib.suppress(ConnectionClosed):
            for message in messages:
                stream.send(message)
            stream.send('{"end": true}')
        received = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                received.append(json.loads(stream.recv(PATIENCE_S)))
        code = stream.close_code
        if "final" in received[-1]:
            assert code == 1000
        else:
            assert received[-1]["error"]["code"]
            assert received[-1]["error"]["message"]
            assert code in (1008, 1009)

    return check


def test_messages_to_a_stream_end_in_a_transcript_or_an_error(
    server: Served, talk: Callable[[list[str | bytes]], None], caplog: pytest.LogCaptureFixture
) -> None:
    @settings(
        max_examples=60, derandomize=True, database=None, deadline=None, phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(messages=MESSAGES)
    def check(messages: list[str | bytes]) -> None:
        talk(messages)

    check()
    assert not [record for record in caplog.records if record.exc_info]
    wait_for(lambda: server.live_streams() == 0)
    assert said(server, pcm(0.5)) is not None


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
