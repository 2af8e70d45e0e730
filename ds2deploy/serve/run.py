"""Process of a server: sockets, signals, and a shutdown that completes running work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import msgspec
import uvicorn
from fastapi import FastAPI

from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.serve.app import make_app
from ds2deploy.serve.logs import configure_logs
from ds2deploy.serve.server import Server

log = logging.getLogger("ds2deploy.serve")

LOOPBACK = ("127.0.0.1", "::1", "localhost")

MESSAGE_BYTES = 16 << 20
"""Maximum size of a WebSocket message, in bytes."""

SPARE_CONNECTIONS = 64
"""Number of additional connections, so that probes succeed when the limit is reached."""

UNREAD_S = 60
"""Time after which a connection is closed if the client does not read its data, in seconds."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Network address of a server.

    Attributes:
        host: name or address of the interface.
        port: TCP port; 0 takes a free one.
        tls_cert: certificate chain in PEM; None for plain HTTP.
        tls_key: private key of the certificate in PEM.
        wyoming_port: TCP port for Wyoming clients; 0 takes a free one, None does not listen.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tls_cert: Path | None = None
    tls_key: Path | None = None
    wyoming_port: int | None = None


def run_server(
    make_server: Callable[[], Server],
    address: Address,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish the work in progress.

    A second signal ends the process at once.

    Args:
        make_server: function that makes the server.
        address: address to listen on.
        ready: function that is called with the URL when models are loaded and connections are
            accepted.

    Raises:
        ConfigError: the address cannot be used, or the certificate cannot be read.
        Ds2Error: a model cannot be opened.
    """
    configure_logs()
    wyoming = _listen_for_wyoming(address)
    app = make_app(make_server, wyoming)
    server: Server = app.state.server
    if wyoming is not None and server.api_key is not None and address.host not in LOOPBACK:
        log.warning("Wyoming has no API keys: anyone who can reach its port can use it")
    if address.host not in LOOPBACK and server.api_key is None:
        log.warning(
            "open to the network without an API key: anyone who can reach this address can use it; "
            "set --api-key, or listen on 127.0.0.1",
            extra={"host": address.host},
        )
    listening = _listen(address.host, address.port, "--port")
    runner = _Runner(_config(app, server, address), server)
    url = _url(address, listening)
    runner.on_start = lambda: ready(url) if ready else None
    with contextlib.closing(listening):
        asyncio.run(runner.serve([listening]))
    if server.failure is not None:
        raise server.failure


class _Runner(uvicorn.Server):
    """Server of uvicorn that drains before it closes connections."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self.on_start: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open models, then accept connections."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._server.failure is not None:
            self.should_exit = True
        elif self.started:
            log.info("ready")
            self.on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT until the end; uvicorn would raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain at the first signal, and end at once at the second."""
        if self._loop is None or self._draining is not None or not self.started:
            self.should_exit = self.force_exit = True
            return
        self._loop.call_soon_threadsafe(self._begin_to_drain)

    def _begin_to_drain(self) -> None:
        if self._draining is None:
            log.info("shutting down: finishing the work in progress")
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self._server.drain()
        self.should_exit = True


def _config(app: FastAPI, server: Server, address: Address) -> uvicorn.Config:
    _check_tls(address)
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws_max_size=MESSAGE_BYTES,
        ws_ping_interval=20,
        ws_ping_timeout=20,
        limit_concurrency=server.limits.connections + SPARE_CONNECTIONS,
        timeout_graceful_shutdown=5,
        lifespan="on",
        ssl_certfile=address.tls_cert,
        ssl_keyfile=address.tls_key,
    )


def _check_tls(address: Address) -> None:
    for path in (address.tls_cert, address.tls_key):
        if path is not None and not path.is_file():
            raise ConfigError(f"{path}: no such file; expected a PEM file")


def _listen(host: str, port: int, option: str) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server(
            (host, port), family=family, backlog=2048, reuse_port=False
        )
    except OSError as error:
        raise ConfigError(
            f"{host}:{port}: cannot listen on this address ({error.strerror or error}); "
            f"choose another --host or {option}"
        ) from None
    if unread := getattr(socket, "TCP_USER_TIMEOUT", None):  # Linux; connections inherit it
        listening.setsockopt(socket.IPPROTO_TCP, unread, 1000 * UNREAD_S)
    return listening


def _listen_for_wyoming(address: Address) -> socket.socket | None:
    if address.wyoming_port is None:
        return None
    listening = _listen(address.host, address.wyoming_port, "--wyoming-port")
    log.info("listening for Wyoming", extra={"port": listening.getsockname()[1]})
    return listening


def _url(address: Address, listening: socket.socket) -> str:
    scheme = "http" if address.tls_cert is None else "https"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{scheme}://{host}:{listening.getsockname()[1]}"
