"""WebSockets: admission, idle timeout, and the end at shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.serve.limits import RefusedError, draining_error, refusal
from ds2deploy.serve.middleware import KEY_PROTOCOLS
from ds2deploy.serve.server import Server
from ds2deploy.serve.streaming_model import StreamingModel

log = logging.getLogger("ds2deploy.serve")

GOING_AWAY, POLICY, TOO_BIG, INTERNAL, TRY_AGAIN = 1001, 1008, 1009, 1011, 1013
"""Close codes (RFC 6455, and IANA's registry for 1013)."""

REASON_BYTES = 120
"""Maximum length of the reason in a close frame, in bytes; the protocol allows 123."""

Message = str | bytes


class Socket:
    """WebSocket of a client.

    Args:
        socket: the WebSocket.
        server: server with the limits.

    Attributes:
        model: name of the model that the client asked for, for metrics; empty before.
    """

    def __init__(self, socket: WebSocket, server: Server) -> None:
        self._socket, self._server = socket, server
        self.model = ""
        self._ended = asyncio.Event()

    async def accept(self) -> None:
        """Complete the handshake with a subprotocol that the client offered."""
        offered = self._socket.scope.get("subprotocols", [])
        usable = [name for name in offered if not name.startswith(KEY_PROTOCOLS)]
        await self._socket.accept(usable[0] if usable else None)

    def streaming_model(self, name: str | None) -> StreamingModel:
        """Find a model that streams, and remember it; see `Server.streaming_model`."""
        found = self._server.streaming_model(name)
        self.model = found.name
        return found

    async def messages(self) -> AsyncIterator[Message]:
        """Yield the client's messages until `end` is called or the server shuts down.

        Raises:
            RefusedError: the client sent nothing for too long.
            WebSocketDisconnect: the connection was lost.
        """
        ends = [
            asyncio.ensure_future(event.wait()) for event in (self._server.draining, self._ended)
        ]
        try:
            while not (self._server.draining.is_set() or self._ended.is_set()):
                receiving = asyncio.ensure_future(self._socket.receive())
                done, _ = await asyncio.wait(
                    {receiving, *ends},
                    timeout=self._server.limits.idle_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if receiving not in done:
                    receiving.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await receiving
                    if done:
                        return
                    raise RefusedError(
                        408, f"no message for {self._server.limits.idle_s:g} s", "idle"
                    )
                message = receiving.result()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message.get("code", 1006))
                found = message.get("bytes")
                yield found if found is not None else message.get("text") or ""
        finally:
            for end in ends:
                end.cancel()

    def end(self) -> None:
        """End `messages`, even if the client would send more or is silent."""
        self._ended.set()

    async def send(self, text: str) -> None:
        """Send a text message, unless the client has left.

        Raises:
            WebSocketDisconnect: the connection was closed in the meantime.
        """
        if self._socket.client_state is WebSocketState.CONNECTED:
            try:
                await self._socket.send_text(text)
            except RuntimeError:  # the server's closing handshake, or its ping timeout, came first
                raise WebSocketDisconnect(1006) from None

    async def send_json(self, value: object) -> None:
        """Send a value as JSON; see `send`."""
        await self.send(msgspec.json.encode(value).decode())

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection; further calls do nothing."""
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await self._socket.close(code, reason.encode()[:REASON_BYTES].decode(errors="ignore"))


async def serve_socket(
    websocket: WebSocket,
    protocol: str,
    talk: Callable[[Socket, Server], Awaitable[None]],
    send_error: Callable[[Socket, RefusedError], Awaitable[None]],
) -> None:
    """Run a protocol on a WebSocket, and close it with the code of its outcome.

    Args:
        websocket: WebSocket before its handshake.
        protocol: name of the protocol, for metrics.
        talk: function that runs the protocol to its end.
        send_error: function that sends an error in the protocol's format.
    """
    server: Server = websocket.app.state.server
    socket = Socket(websocket, server)
    await socket.accept()
    outcome, code, reason = "ok", 1000, ""
    try:
        if server.draining.is_set():
            raise draining_error()
        with server.work():
            await server.unless_cut_off(talk(socket, server))
        if server.draining.is_set():
            code, reason = GOING_AWAY, "the server is shutting down"
    except WebSocketDisconnect:
        outcome = "vanished"
    except (RefusedError, Ds2Error) as error:
        refused = refusal(error)
        outcome, code, reason = refused.code, close_code(refused), refused.message
        server.refuse(socket.model, refused.code)
        with contextlib.suppress(Exception):
            await send_error(socket, refused)
    except Exception:
        log.exception("failure in a WebSocket", extra={"protocol": protocol})
        outcome, code, reason = "internal_error", INTERNAL, "internal error"
    finally:
        server.count(socket.model, protocol, outcome)
        websocket.scope["state"] |= {"outcome": outcome, "model": socket.model}
        await socket.close(code, reason)


def close_code(error: RefusedError) -> int:
    """Choose the close code of a refusal."""
    if error.status == 413:
        return TOO_BIG
    if error.code == "draining":
        return GOING_AWAY
    if error.retry_after_s is not None:
        return TRY_AGAIN
    return INTERNAL if error.status >= 500 else POLICY
