"""Shutdown after SIGTERM: live work ends, and new work is refused meanwhile."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import ds2deploy
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.serve.limits import Limits
from tests.ds2deploy.serve.serving import (
    PATIENCE_S,
    Client,
    Process,
    close_code,
    error,
    pcm,
    process,
    say,
    wait_for,
    wav,
)


class HalfSent:
    """Upload of which the server has read the first half, and waits for the rest."""

    def __init__(self, client: Client, content: bytes) -> None:
        request = httpx.Request(
            "POST", f"{client.url}/v1/audio/transcriptions", files={"file": ("a.wav", content)}
        )
        body = request.read()
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        self._rest = body[len(body) // 2 :]
        self._socket = socket.create_connection((request.url.host, request.url.port or 80))
        self._socket.settimeout(PATIENCE_S)
        self._socket.sendall(
            f"POST {request.url.path} HTTP/1.1\r\n{head}Expect: 100-continue\r\n\r\n".encode()
        )
        assert self._socket.recv(100).startswith(b"HTTP/1.1 100 ")
        self._socket.sendall(body[: len(body) // 2])

    def complete(self) -> None:
        """Send the second half."""
        self._socket.sendall(self._rest)

    def answer(self) -> tuple[int, dict[str, object]]:
        """Read the status and the JSON of the answer."""
        with self._socket, self._socket.makefile("rb") as file:
            status = int(file.readline().split()[1])
            length = 0
            while (line := file.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            return status, json.loads(file.read(length))


def is_draining(server: Client) -> bool:
    found = server.http.get("/ready")
    return found.status_code == 503 and found.json()["status"] == "draining"


def levels(server: Process) -> set[str]:
    lines = (line for line in server.log().splitlines() if line.startswith("{"))
    return {json.loads(line)["level"] for line in lines}


def test_draining_server_says_so_and_refuses_new_work_in_the_protocols_forms(
    streaming_onnx: Path, tmp_path: Path
) -> None:
    with process(tmp_path, streaming_onnx, "--streams", 2, "--drain", PATIENCE_S) as server:
        content = wav(pcm(2))
        text = server.transcribe(content).json()["text"]
        upload = HalfSent(server, content)
        server.process.terminate()
        wait_for(lambda: is_draining(server))
        with httpx.Client(base_url=server.url) as another:
            assert another.get("/ready").status_code == 503
            assert another.get("/health").status_code == 200
            assert another.get("/metrics").status_code == 200
        refused = server.transcribe(content)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert refused.headers["retry-after"]
        for path in ("/stream", "/v1/realtime", "/vosk"):
            with server.stream(path) as stream:
                first = json.loads(stream.recv(PATIENCE_S))
                found = first if path == "/vosk" else first["error"]
                assert found["code"] == "draining"
                assert close_code(stream) == 1001
        upload.complete()
        status, body = upload.answer()
        assert (status, body["text"]) == (200, text)
        assert server.wait() == 0
        assert levels(server) == {"info"}


def test_upload_that_does_not_arrive_in_time_is_refused(
    streaming_onnx: Path, tmp_path: Path
) -> None:
    with process(tmp_path, streaming_onnx, "--streams", 2, "--drain", 0.5) as server:
        upload = HalfSent(server, wav(pcm(2)))
        server.process.terminate()
        status, body = upload.answer()
        assert status == 503
        assert body["error"]["code"] == "draining"  # type: ignore[index]
        assert server.wait() == 0
        assert levels(server) == {"info", "warning"}


def test_server_without_work_ends_at_once(streaming_onnx: Path, tmp_path: Path) -> None:
    with process(tmp_path, streaming_onnx, "--streams", 2, "--drain", 10 * PATIENCE_S) as server:
        assert server.http.get("/ready").status_code == 200  # the connection stays open
        server.process.terminate()
        assert server.wait() == 0


class Stuck:
    """Model whose computations begin when they are released."""

    def __init__(self, path: Path) -> None:
        self._path, self.released = path, threading.Event()
        self.begun = threading.Event()

    def __call__(self) -> Recognizer:
        """Open the model."""
        found = ds2deploy.load(self._path, threads=1)
        compute = found.session.compute

        def delayed(tensors: object) -> object:
            self.begun.set()
            assert self.released.wait(PATIENCE_S)
            return compute(tensors)  # type: ignore[arg-type]

        found.session.compute = delayed  # type: ignore[assignment, method-assign]
        return found


@pytest.fixture
def stuck(
    streaming_onnx: Path,
    serving: Callable[..., contextlib.AbstractContextManager[str]],
) -> Iterator[Callable[[Callable[[Client], None]], None]]:
    """Runs a client in a thread of its own, against a server that shuts down and is stuck."""
    model = Stuck(streaming_onnx)

    def run(talk: Callable[[Client], None]) -> None:
        failures: list[BaseException] = []

        def client() -> None:
            try:
                talk(Client(url))
            except BaseException as failure:
                failures.append(failure)
            finally:
                model.released.set()

        limits = Limits(streams=2, drain_s=0.2)
        thread = threading.Thread(target=client)
        with serving({"m": model}, limits=limits) as url:
            thread.start()
            assert model.begun.wait(PATIENCE_S)
        thread.join(PATIENCE_S)
        assert not failures, failures

    yield run
    model.released.set()


def test_stream_that_does_not_end_in_time_is_told(
    stuck: Callable[[Callable[[Client], None]], None],
) -> None:
    def talk(client: Client) -> None:
        with client.stream() as stream:
            say(stream, pcm(1))
            assert error(stream)["code"] == "draining"
            assert close_code(stream) == 1001

    stuck(talk)


@pytest.mark.parametrize("streamed", ["false", "true"])
def test_upload_that_is_not_recognised_in_time_is_told(
    stuck: Callable[[Callable[[Client], None]], None], streamed: str
) -> None:
    def talk(client: Client) -> None:
        found = client.transcribe(wav(pcm(2)), stream=streamed)
        assert found.status_code == 503
        assert found.json()["error"]["code"] == "draining"

    stuck(talk)
