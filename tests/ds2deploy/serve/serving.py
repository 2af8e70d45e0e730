"""Servers for tests: in a thread of the test, and as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ds2deploy.export.parity.speech import synthesize
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.serve.app import make_app
from ds2deploy.serve.limits import Limits
from ds2deploy.serve.run import Address, _config, _listen, _Runner, _url
from ds2deploy.serve.server import Server

RATE = 16_000
PATIENCE_S = 120.0
"""Longer than any answer takes on a slow machine."""

COMMAND = "import sys; sys.argv[0] = 'ds2deploy'; from ds2deploy.cli.app import main; main()"


def pcm(seconds: float, voice: int = 0) -> bytes:
    """Synthetic speech as 16-bit PCM at 16 kHz."""
    samples = synthesize(RATE, int(seconds * RATE), seed=voice)
    return (samples * 32767).astype("<i2").tobytes()


def wav(content: bytes) -> bytes:
    """16-bit PCM at 16 kHz as a WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.frombuffer(content, "<i2"), RATE, format="WAV")
    return buffer.getvalue()


def wait_for(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition; fail after a time that no machine needs."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {patience_s} s"
        time.sleep(0.02)


class Client:
    """Client of a server.

    Attributes:
        url: URL of the server.
        http: HTTP client with that URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_S)

    def stream(self, path: str = "/stream", **options: Any) -> ClientConnection:
        """Open a WebSocket."""
        url = self.url.replace("http", "ws", 1) + path
        return connect(url, max_size=None, open_timeout=PATIENCE_S, **options).__enter__()

    def transcribe(self, content: bytes, name: str = "a.wav", **fields: str) -> httpx.Response:
        """Upload a recording."""
        return self.http.post(
            "/v1/audio/transcriptions", files={"file": (name, content)}, data=fields
        )

    def metric(self, name: str, **labels: str) -> float:
        """Sum the samples of a metric that have these labels."""
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            full, _, value = line.rpartition(" ")
            found, _, rest = full.partition("{")
            if found == name and all(f'{key}="{label}"' in rest for key, label in labels.items()):
                total += float(value)
        return total

    def live_streams(self) -> float:
        """Count the live streams."""
        return self.metric("ds2deploy_live_streams")


class Served(Client):
    """Server in a thread of this process.

    Attributes:
        server: the server's state.
        wyoming_port: TCP port of the Wyoming protocol.
    """

    def __init__(self, url: str, server: Server, wyoming_port: int) -> None:
        super().__init__(url)
        self.server, self.wyoming_port = server, wyoming_port


@contextlib.contextmanager
def served(
    load: Callable[[], Recognizer], limits: Limits | None = None, **options: Any
) -> Iterator[Served]:
    """Serve a model as `m` in a thread, with the settings of the command."""
    address = Address(port=0)
    listening = _listen(address.host, address.port, "--port")
    wyoming = _listen(address.host, 0, "--wyoming-port")
    app = make_app(lambda: Server({"m": load}, limits, **options), wyoming)
    runner = _Runner(_config(app, app.state.server, address), app.state.server)
    thread = threading.Thread(target=lambda: asyncio.run(runner.serve([listening])))
    with contextlib.closing(listening), contextlib.closing(wyoming):
        thread.start()
        try:
            wait_for(lambda: runner.started or not thread.is_alive())
            assert runner.started
            port = wyoming.getsockname()[1]
            found = Served(_url(address, listening), app.state.server, port)
            with found.http:
                yield found
        finally:
            runner.should_exit = True
            thread.join()


class Process(Client):
    """Server in a process of its own.

    Attributes:
        process: the process.
        port: TCP port.
    """

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        super().__init__(url)
        self.process, self._log = process, log
        self.port = int(url.rpartition(":")[2])

    def log(self) -> str:
        """Read what the server wrote to standard error."""
        return self._log.read_text()

    def wait(self) -> int:
        """Wait for the end of the process; returns its exit code."""
        return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def process(folder: Path, *arguments: object) -> Iterator[Process]:
    """Run `ds2deploy serve` in a process of its own, on a free port unless one is given."""
    options = [str(one) for one in arguments]
    if "--port" not in options:
        options += ["--port", "0"]
    log = folder / f"server-{time.monotonic_ns()}.log"
    with log.open("wb") as stderr:
        started = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "serve", *options],
            stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
    try:
        wait_for(lambda: "serving " in log.read_text() or started.poll() is not None)
        assert started.poll() is None, log.read_text()
        line = next(line for line in log.read_text().splitlines() if "serving " in line)
        found = Process(line.split(" at ")[1].strip(), started, log)
        with found.http:
            yield found
    finally:
        started.kill()
        started.wait()


def say(socket: ClientConnection, content: bytes, piece: int = 6400) -> None:
    """Send PCM in pieces."""
    for start in range(0, len(content), piece):
        socket.send(content[start : start + piece])


def final(socket: ClientConnection) -> dict[str, Any]:
    """Read messages up to the final transcript."""
    while "final" not in (found := json.loads(socket.recv(PATIENCE_S))):
        assert "error" not in found, found
    return found


def said(client: Client, content: bytes) -> str:
    """Send PCM through a stream, and return the text of its final transcript."""
    with client.stream() as socket:
        say(socket, content)
        socket.send('{"end": true}')
        return str(final(socket)["text"])


def error(socket: ClientConnection) -> dict[str, Any]:
    """Read messages up to an error."""
    while "error" not in (found := json.loads(socket.recv(PATIENCE_S))):
        pass
    return dict(found["error"])


def close_code(socket: ClientConnection) -> int:
    """Read messages up to the end of the connection; 1006 if it ends without a close frame."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            socket.recv(PATIENCE_S)
    return socket.close_code or 1006
