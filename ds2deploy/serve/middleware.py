"""What stands before every request: key, origin, size, request id, and one line of log."""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ds2deploy.serve import page
from ds2deploy.serve.limits import RefusedError
from ds2deploy.serve.server import Server

log = logging.getLogger("ds2deploy.serve")

OPEN_PATHS = ("/health", "/ready", *page.PATHS)
"""Paths that need no key: probes, and the page, which asks for it."""

KEY_PROTOCOLS = ("openai-insecure-api-key.", "ds2deploy-key.")
"""Prefixes of WebSocket subprotocols that carry the key; a browser can send no other header.

With the second one the key is percent-encoded: a subprotocol has no `/` and no `=`.
"""

FORM_BYTES = 1 << 20
"""Room for the fields of a form beside its file."""


class Gate:
    """ASGI middleware that admits a request, or refuses it.

    Args:
        app: application behind it.
        server: server with the key and the limits.
    """

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server
        self._most = int(server.limits.upload_mb * 1e6) + FORM_BYTES
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.monotonic()
        body = _Body(receive, self._most, self._too_large)
        answer = _Answer(scope, send, request_id, body, self._server)
        self._open += 1
        try:
            self._check(scope, headers)
            await self._app(scope, body if scope["type"] == "http" else receive, answer)
        except RefusedError as error:
            self._server.refuse_http(error)
            await _refuse(scope, answer, error)
        finally:
            self._open -= 1
            log.info(
                "request",
                extra={
                    "request_id": request_id,
                    "path": scope["path"],
                    "status": answer.status,
                    "took_s": round(time.monotonic() - started, 4),
                },
            )

    def _check(self, scope: Scope, headers: Headers) -> None:
        key = self._server.api_key
        if scope["type"] == "websocket":
            _check_origin(headers)
        if key is not None and scope["path"] not in OPEN_PATHS:
            given = _given_key(headers)
            if given is None or not hmac.compare_digest(given.encode(), key.encode()):
                raise RefusedError(
                    401, "no API key, or a wrong one: send Authorization: Bearer KEY",
                    "invalid_api_key",
                )  # fmt: skip
        most = self._server.limits.connections
        if self._open > most and scope["path"] not in OPEN_PATHS:
            raise RefusedError(
                503, f"{most} requests and WebSockets are open: try again", "overloaded", None, 2
            )
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._most:
            raise self._too_large()

    def _too_large(self) -> RefusedError:
        most = self._server.limits.upload_mb
        return RefusedError(
            413, f"upload larger than {most:g} MB: split the recording, or compress it",
            "upload_too_large", "file",
        )  # fmt: skip


class _Body:
    """Counts the bytes of a body that does not say how long it is.

    Attributes:
        error: error that was raised; None before.
    """

    def __init__(self, receive: Receive, most: int, too_large: Callable[[], RefusedError]) -> None:
        self._receive, self._most, self._too_large = receive, most, too_large
        self._count = 0
        self.error: RefusedError | None = None

    async def __call__(self) -> Message:
        message = await self._receive()
        self._count += len(message.get("body", b""))
        if self._count > self._most:
            self.error = self._too_large()
            raise self.error
        return message


class _Answer:
    """Sends an answer with the request id.

    The framework answers 400 to whatever is raised while it reads a form; the error of the body
    takes the place of that answer.

    Attributes:
        status: HTTP status that was sent; 101 of a WebSocket, 500 where nothing was sent.
    """

    def __init__(
        self, scope: Scope, send: Send, request_id: str, body: _Body, server: Server
    ) -> None:
        self._scope, self._send, self._request_id, self._body = scope, send, request_id, body
        self._server = server
        self._replaced = False
        self.status = 101 if scope["type"] == "websocket" else 500

    async def __call__(self, message: Message) -> None:
        if self._replaced:
            return
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            if self._body.error is not None:
                error, self._body.error = self._body.error, None
                self._server.refuse_http(error)
                await _refuse(self._scope, self, error)
                self._replaced = True
                return
            self.status = message["status"]
            headers = message.setdefault("headers", [])
            headers.append((b"x-request-id", self._request_id.encode()))
        await self._send(message)


def error_body(error: RefusedError) -> dict[str, Any]:
    """Make the body of an error, as OpenAI's clients expect it."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_headers(error: RefusedError) -> dict[str, str]:
    """Make the headers of an error: when to retry, and whether."""
    if error.retry_after_s is None:
        return {"x-should-retry": "false"}
    return {"retry-after": f"{error.retry_after_s:.0f}", "x-should-retry": "true"}


async def _refuse(scope: Scope, send: Send, error: RefusedError) -> None:
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get(
        "extensions", {}
    ):
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:120]})
        return
    headers = {"content-type": "application/json", **error_headers(error)}
    await send(
        {
            "type": f"{kind}.start",
            "status": error.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": f"{kind}.body", "body": json.dumps(error_body(error)).encode()})


def _request_id(headers: Headers) -> str:
    """Take the client's request id if it is harmless in a log, or make one."""
    given = headers.get("x-request-id", "")
    return given if re.fullmatch(r"[\w.-]{1,64}", given) else uuid.uuid4().hex


def _given_key(headers: Headers) -> str | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        for prefix in KEY_PROTOCOLS:
            if protocol.strip().startswith(prefix):
                key = protocol.strip()[len(prefix) :]
                return unquote(key) if prefix == KEY_PROTOCOLS[1] else key
    return None


def _check_origin(headers: Headers) -> None:
    """Refuse WebSockets that another site's page opens in somebody's browser."""
    origin = headers.get("origin")
    if origin and origin != "null" and urlsplit(origin).netloc != headers.get("host"):
        raise RefusedError(
            403, f"origin {origin[:100]}: pages of other sites are not served", "wrong_origin"
        )
