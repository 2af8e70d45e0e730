"""Faults of clients, networks and engines: each ends in an error, and frees its place."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import soundfile
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from wyoming.audio import AudioChunk
from wyoming.client import AsyncClient

import ds2deploy
from ds2deploy.runtimes.decoding.transcript import Transcript, Update
from ds2deploy.runtimes.errors import DeviceError
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.serve import run
from ds2deploy.serve.limits import Limits
from ds2deploy.serve.live import pcm16
from ds2deploy.serve.metrics import Metrics
from ds2deploy.serve.opening import open_model
from ds2deploy.serve.streaming_model import StreamingModel
from ds2deploy.serve.turn import Turn
from tests.ds2deploy.serve.serving import (
    PATIENCE_S,
    RATE,
    Client,
    Process,
    Served,
    close_code,
    error,
    final,
    pcm,
    process,
    said,
    say,
    served,
    wait_for,
    wav,
)

IDLE_S = 3.0
END = '{"end": true}'


@pytest.fixture(scope="module")
def load(streaming_onnx: Path) -> Callable[[], Recognizer]:
    return lambda: ds2deploy.load(streaming_onnx, threads=1)


@pytest.fixture(scope="module")
def one_place(load: Callable[[], Recognizer]) -> Iterator[Served]:
    """Server of one stream, which closes silent clients soon."""
    limits = Limits(streams=1, idle_s=IDLE_S, audio_s=30.0, upload_mb=4.0)
    with served(load, limits) as server:
        yield server


@pytest.fixture(scope="module")
def alone(load: Callable[[], Recognizer]) -> Callable[[bytes], str]:
    """Text that the library makes of PCM, without a server."""
    recognizer = load()
    return lambda content: recognizer.transcribe(pcm16(content), RATE).text


def begin(client: Client, seconds: float = 1.0) -> ClientConnection:
    """Open a stream and wait for its first update, so that it holds a place."""
    stream = client.stream()
    say(stream, pcm(seconds))
    stream.recv(60)
    return stream


def vanish(stream: ClientConnection) -> None:
    """Reset the connection, without a close frame."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.shutdown(socket.SHUT_RD)  # wakes the thread that reads, which closes
    stream.recv_events_thread.join()


def files_open(pid: int) -> int:
    return psutil.Process(pid).num_fds()


def test_vanished_client_frees_its_place(one_place: Served, alone: Callable[[bytes], str]) -> None:
    stream = begin(one_place)
    with one_place.stream() as other:
        other.send(pcm(0.1))
        assert error(other)["code"] == "overloaded"
    vanish(stream)
    wait_for(lambda: one_place.live_streams() == 0)
    # It was not its silence that freed the place.
    wait_for(lambda: one_place.metric("ds2deploy_requests_total", outcome="vanished") == 1)
    assert said(one_place, pcm(2, voice=1)) == alone(pcm(2, voice=1))


def test_half_open_connection_frees_its_place(one_place: Served) -> None:
    stream = begin(one_place)
    started = time.monotonic()
    assert close_code(stream) == 1008  # nothing is sent meanwhile
    assert time.monotonic() - started >= IDLE_S / 2
    assert one_place.live_streams() == 0
    assert said(one_place, pcm(0.5)) is not None


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/stream", {"origin": "https://elsewhere.example"}, 403),
        ("/nowhere", {}, 404),
        ("/stream", {"additional_headers": {"Authorization": "Bearer wrong"}}, 401),
        ("/stream", {"subprotocols": ["ds2deploy-key.wrong"]}, 401),
        ("/stream", {}, 401),
    ],
)
def test_failed_handshake_counts_nothing(
    load: Callable[[], Recognizer], path: str, options: dict[str, object], status: int
) -> None:
    key = None if status in (403, 404) else "right"
    with served(load, Limits(streams=1), api_key=key) as server:
        for _ in range(3):
            with pytest.raises(InvalidStatus) as raised:
                server.stream(path, **options)
            assert raised.value.response.status_code == status
        if key:
            server.http.headers["Authorization"] = f"Bearer {key}"
        assert server.live_streams() == 0
        right = {"Authorization": "Bearer right"}
        with server.stream(additional_headers=right) as stream:
            say(stream, pcm(0.5))
            stream.send(END)
            final(stream)


def send_raw(client: Client, head: str, pieces: Iterator[bytes]) -> bytes:
    """Send a request as it is, stop where the server answers, and return the answer."""
    url = httpx.URL(client.url)
    with socket.create_connection((url.host, url.port)) as raw:
        raw.settimeout(60)
        raw.sendall(head.encode())
        with contextlib.suppress(OSError):
            for piece in pieces:
                raw.sendall(piece)
                if select.select([raw], [], [], 0)[0]:
                    break
        answer = b""
        with contextlib.suppress(OSError):
            while b"\r\n\r\n" not in answer and (more := raw.recv(65536)):
                answer += more
        return answer


FORM = (
    "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: a\r\n"
    "Content-Type: multipart/form-data; boundary=b\r\n"
)
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'


def test_upload_of_100_mb_is_refused_at_once_by_its_length(one_place: Served) -> None:
    head = FORM + "Content-Length: 100000000\r\n\r\n"
    answer = send_raw(one_place, head, iter([PART]))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_upload_of_100_mb_without_a_length_is_refused_on_the_way(one_place: Served) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        yield b"%x\r\n%s\r\n" % (len(PART), PART)
        for _ in range(100):
            sent += 1
            yield b"%x\r\n%s\r\n" % (1_000_000, bytes(1_000_000))

    memory = psutil.Process().memory_info().rss
    answer = send_raw(one_place, FORM + "Transfer-Encoding: chunked\r\n\r\n", pieces())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert sent < 50
    assert psutil.Process().memory_info().rss - memory < 64e6


def test_error_of_too_large_an_upload_reaches_a_client(one_place: Served) -> None:
    found = one_place.transcribe(bytes(8_000_000))
    assert found.status_code == 413
    assert found.json()["error"]["code"] == "upload_too_large"
    assert "split the recording" in found.json()["error"]["message"]


def silent_flac(hours: float) -> bytes:
    """Hours of silence, in few bytes."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(int(hours * 60)):
            file.write(np.zeros(60 * 8000, np.int16))
    return buffer.getvalue()


def test_hours_of_silence_in_a_small_file_stop_at_the_limit(one_place: Served) -> None:
    content = silent_flac(3)
    assert len(content) < 1_000_000
    memory = psutil.Process().memory_info().rss
    before = one_place.metric("ds2deploy_audio_seconds_total")
    found = one_place.transcribe(content, "silence.flac")
    assert found.status_code == 413
    assert found.json()["error"]["code"] == "audio_too_long"
    assert psutil.Process().memory_info().rss - memory < 128e6
    assert one_place.metric("ds2deploy_audio_seconds_total") == before  # its header says so
    assert one_place.live_streams() == 0


def test_samples_that_are_not_finite_are_refused(one_place: Served) -> None:
    samples = np.zeros(RATE, np.float32)
    samples[5000] = np.nan
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, subtype="FLOAT", format="WAV")
    found = one_place.transcribe(buffer.getvalue(), "nan.wav")
    assert found.status_code == 400
    assert found.json()["error"]["code"] == "invalid_audio"
    message = found.json()["error"]["message"]
    assert message.startswith("nan.wav: ")
    assert "NaN or infinite" in message


def test_error_names_the_upload(one_place: Served) -> None:
    answer = one_place.transcribe(b"RIFF of no use", name="call 7.wav")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("call 7.wav: ")


@pytest.mark.parametrize("streamed", ["false", "true"])
def test_upload_of_a_client_that_left_is_given_up(
    one_place: Served, monkeypatch: pytest.MonkeyPatch, streamed: str
) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def transcribe(*_: Any) -> Any:
        begun.set()
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            cancelled.set()

    monkeypatch.setattr(one_place.server.models["m"], "transcribe", transcribe)
    host, port = one_place.url.removeprefix("http://").split(":")
    request = httpx.Request(
        "POST", f"{one_place.url}/v1/audio/transcriptions",
        files={"file": ("a.wav", wav(pcm(1)))}, data={"stream": streamed},
    )  # fmt: skip
    before = one_place.metric("ds2deploy_requests_total", outcome="client_left")
    with socket.create_connection((host, int(port))) as client:
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        body = request.read()
        client.sendall(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        assert begun.wait(PATIENCE_S)
    assert cancelled.wait(PATIENCE_S)
    wait_for(
        lambda: one_place.metric("ds2deploy_requests_total", outcome="client_left") == before + 1
    )


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"no boundary"),
        ("multipart/form-data; boundary=b", b"--c\r\nnonsense"),
        ("audio/wav", wav(pcm(0.2))),
        ("application/x-www-form-urlencoded", b"file=a"),
    ],
)
def test_wrong_content_type_is_refused(
    one_place: Served, content_type: str, content: bytes
) -> None:
    found = one_place.http.post(
        "/v1/audio/transcriptions", content=content, headers={"content-type": content_type}
    )
    assert found.status_code in (400, 415, 422)
    assert found.json()["error"]["message"]


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_connections_that_come_and_go_leave_nothing(one_place: Served, count: int) -> None:
    one_place.live_streams()
    before = files_open(os.getpid())
    for i in range(count):
        if i % 2:
            vanish(one_place.stream())
        else:
            with one_place.stream() as stream:
                stream.send(pcm(0.01))
    wait_for(lambda: one_place.live_streams() == 0)
    wait_for(lambda: files_open(os.getpid()) <= before)
    assert said(one_place, pcm(0.5)) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT is of Linux")
def test_client_that_reads_nothing_is_cut_off(
    load: Callable[[], Recognizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "UNREAD_S", 1)
    with served(load, Limits(streams=1)) as server:
        url = httpx.URL(server.url)
        before = files_open(os.getpid())
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect((url.host, url.port))
            raw.settimeout(60)
            request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 1_000_000
            with pytest.raises(ConnectionError):
                raw.sendall(request)
        wait_for(lambda: files_open(os.getpid()) <= before + 1)  # that of the HTTP client


def test_connections_are_bounded_and_probes_are_answered(load: Callable[[], Recognizer]) -> None:
    with served(load, Limits(streams=8, connections=3)) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(server.stream())
            with pytest.raises(InvalidStatus) as raised:
                server.stream()
            assert raised.value.response.status_code == 503
            assert raised.value.response.headers["retry-after"]
            assert server.http.get("/v1/models").status_code == 503
            assert server.http.get("/ready").status_code == 200
        wait_for(lambda: server.http.get("/v1/models").status_code == 200)


class Breaking:
    """Session whose next computations fail, as often as it is told to."""

    def __init__(self, load: Callable[[], Recognizer]) -> None:
        self._load, self.failures = load, 0

    def __call__(self) -> Recognizer:
        """Open the model."""
        found = self._load()
        compute = found.session.compute

        def broken(tensors: object) -> object:
            if self.failures:
                self.failures -= 1
                raise DeviceError("out of memory")
            return compute(tensors)  # type: ignore[arg-type]

        found.session.compute = broken  # type: ignore[assignment, method-assign]
        return found


def test_failed_engine_is_opened_again_once(
    load: Callable[[], Recognizer], alone: Callable[[bytes], str]
) -> None:
    breaking = Breaking(load)
    with served(breaking, Limits(streams=4)) as server:
        with server.stream() as stream, server.stream() as silent:
            for one in (stream, silent):
                say(one, pcm(1))
                one.recv(60)
            breaking.failures = 1
            with contextlib.suppress(ConnectionClosed):
                say(stream, pcm(1))
            for one in (stream, silent):  # the silent one is told, too
                found = error(one)
                assert found["code"] == "engine_failed"
                assert found["retry_after_ms"] > 0
                assert "out of memory" in found["message"]
        wait_for(lambda: server.http.get("/ready").status_code == 200)
        assert server.metric("ds2deploy_engine_restarts_total") == 1
        assert said(server, pcm(2)) == alone(pcm(2))

        breaking.failures = 1
        found_again = server.transcribe(wav(pcm(2)))
        assert found_again.status_code == 503
        assert found_again.headers["retry-after"]
        time.sleep(0.2)
        ready = server.http.get("/ready")
        assert ready.status_code == 503
        assert "out of memory" in ready.json()["reason"]
        assert server.http.get("/health").status_code == 200
        assert server.metric("ds2deploy_ready") == 0
        assert server.transcribe(wav(pcm(1))).status_code == 503
        with server.stream() as stream:
            say(stream, pcm(0.2))
            assert error(stream)["code"] == "engine_failed"


def test_stream_of_a_failed_engine_takes_no_other_with_it(load: Callable[[], Recognizer]) -> None:
    breaking = Breaking(load)

    async def scene() -> str:
        model = open_model("m", breaking, Limits(streams=4), Metrics(), Turn())
        assert isinstance(model, StreamingModel)
        model.start()
        failed = model.open(RATE)
        breaking.failures = 1
        await failed.accept(pcm16(pcm(1)))
        with pytest.raises(DeviceError):
            await failed.next()
        while model.problem() is not None:
            await asyncio.sleep(0.01)
        stream = model.open(RATE)
        failed.close()  # late, and both are the first stream of their engine
        await stream.accept(pcm16(pcm(1)))
        try:
            return (await asyncio.wait_for(stream.result(), 60)).text
        finally:
            await model.stop()

    assert asyncio.run(scene()) is not None


def test_updates_of_a_slow_reader_are_merged(load: Callable[[], Recognizer]) -> None:
    content = pcm16(pcm(10) * 3)

    async def scene() -> tuple[list[str], str]:
        model = open_model("m", load, Limits(streams=4), Metrics(), Turn())
        assert isinstance(model, StreamingModel)
        model.start()
        stream = model.open(RATE)
        await stream.accept(content)
        stream.finish()
        while stream.backlog_s:
            await model.next_tick()
        found: list[Update | Transcript] = [await stream.next()]
        while not isinstance(found[-1], Transcript):
            found.append(await stream.next())
        await model.stop()
        updates = [one for one in found if isinstance(one, Update)]
        assert len(updates) <= 2  # 94 blocks
        return [word.text for one in updates for word in one.words], found[-1].text

    words, text = asyncio.run(scene())
    assert len(words) > 1
    assert words == text.split()[: len(words)]
    assert len(words) >= len(text.split()) - 1  # the last one may come with the transcript


def test_overload_is_refused_and_over_at_once(
    load: Callable[[], Recognizer], alone: Callable[[bytes], str]
) -> None:
    with served(load, Limits(streams=4)) as server, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(server.stream()) for _ in range(12)]
        accepted = []
        for i, stream in enumerate(streams):
            with contextlib.suppress(ConnectionClosed):
                say(stream, pcm(1, voice=i))
            if "error" in (first := stream.recv(60)):
                assert '"code":"overloaded"' in str(first)
                assert '"retry_after_ms":' in str(first)
                assert close_code(stream) == 1013
            else:
                accepted.append(i)
        assert accepted == [0, 1, 2, 3]
        assert server.metric("ds2deploy_refused_total", reason="overloaded") == 8
        for i in accepted:
            streams[i].send(END)
            assert final(streams[i])["text"] == alone(pcm(1, voice=i))
        assert said(server, pcm(1)) == alone(pcm(1))


@pytest.fixture
def server_process(streaming_onnx: Path, tmp_path: Path) -> Iterator[Process]:
    with process(tmp_path, streaming_onnx, "--streams", 8, "--threads", 1) as found:
        yield found


def test_sigterm_under_load_gives_every_stream_its_transcript(
    server_process: Process, alone: Callable[[bytes], str]
) -> None:
    contents = [pcm(1 + i / 4, voice=i) for i in range(4)]
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(server_process.stream()) for _ in contents]
        for stream, content in zip(streams, contents, strict=True):
            say(stream, content)
            stream.recv(60)
        wait_for(lambda: server_process.metric("ds2deploy_oldest_waiting_seconds") < 0.5)
        server_process.process.terminate()
        for stream, content in zip(streams, contents, strict=True):
            assert final(stream)["text"] == alone(content)
            assert close_code(stream) == 1001
    assert server_process.wait() == 0
    assert "Traceback" not in server_process.log()


def test_sigterm_under_load_gives_every_wyoming_client_its_transcript(
    streaming_onnx: Path, tmp_path: Path, alone: Callable[[bytes], str]
) -> None:
    contents = [pcm(1 + i / 4, voice=i) for i in range(3)]
    form = {"rate": RATE, "width": 2, "channels": 1}

    async def talk(found: Process) -> list[str]:
        lines = [json.loads(line) for line in found.log().splitlines() if line.startswith("{")]
        port = next(line["port"] for line in lines if "port" in line)
        clients = [AsyncClient.from_uri(f"tcp://127.0.0.1:{port}") for _ in contents]
        for client, content in zip(clients, contents, strict=True):
            await client.connect()
            await client.write_event(AudioChunk(audio=content, **form).event())
            assert (await client.read_event()).type == "transcript-start"
        seconds = sum(len(content) / 2 / RATE for content in contents)
        heard = "ds2deploy_audio_seconds_total"
        await asyncio.to_thread(wait_for, lambda: found.metric(heard) > seconds - 1.5)
        found.process.terminate()
        texts = []
        for client in clients:
            while (event := await client.read_event()).type != "transcript":
                pass
            texts.append(event.data["text"])
            while await client.read_event() is not None:
                pass
        return texts

    with process(tmp_path, streaming_onnx, "--streams", 8, "--wyoming-port", 0) as found:
        assert asyncio.run(talk(found)) == [alone(content) for content in contents]
        assert found.wait() == 0
        assert "Traceback" not in found.log()


def test_second_sigterm_ends_at_once(server_process: Process) -> None:
    upload = b"".join(pcm(10, voice=i) for i in range(3)) * 10
    url = httpx.URL(server_process.url)
    body = PART + wav(upload) + b"\r\n--b--\r\n"
    with socket.create_connection((url.host, url.port)) as raw:
        raw.sendall(FORM.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: server_process.metric("ds2deploy_audio_seconds_total") > 0)
        server_process.process.terminate()
        wait_for(lambda: "shutting down" in server_process.log())
        time.sleep(0.3)
        assert server_process.process.poll() is None
        started = time.monotonic()
        server_process.process.terminate()
        server_process.wait()
    assert time.monotonic() - started < 15  # draining would take 30 s
    assert "Traceback" not in server_process.log()


def test_log_holds_json_and_nothing_of_a_recording(server_process: Process) -> None:
    assert server_process.transcribe(wav(bytes(2 * RATE)), "secret.wav").status_code == 200
    lines = server_process.log().splitlines()
    lines = [line for line in lines if "serving " not in line]
    assert {json.loads(line)["level"] for line in lines} == {"info"}
    assert "secret" not in server_process.log()


def test_killed_server_starts_again_on_its_port(streaming_onnx: Path, tmp_path: Path) -> None:
    with process(tmp_path, streaming_onnx, "--streams", 2) as first:
        stream = begin(first)
        first.process.kill()
        first.wait()
        assert close_code(stream) == 1006
    with process(tmp_path, streaming_onnx, "--streams", 2, "--port", first.port) as again:
        assert again.port == first.port
        assert said(again, pcm(0.5)) is not None
