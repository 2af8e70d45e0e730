"""Middleware of every request: API key, origin, size, request id, and one log line."""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import re
import time
import uuid
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ds2deploy.serve import page
from ds2deploy.serve.body import Body
from ds2deploy.serve.limits import RefusedError, draining_error
from ds2deploy.serve.server import Server

log = logging.getLogger("ds2deploy.serve")

METRICS = "/metrics"

OPEN_PATHS = ("/health", "/ready", *page.PATHS)
"""Paths that need no key: probes, and the page, which asks the user for the key."""

KEY_PROTOCOLS = ("openai-insecure-api-key.", "ds2deploy-key.")
"""Prefixes of WebSocket subprotocols that contain the key: a browser can send no other header.

After the second prefix the key is percent-encoded, because a subprotocol cannot contain `/` or `=`.
"""

FORM_BYTES = 1 << 20
"""Maximum size of the form fields around the file, in bytes."""


class Gate:
    """ASGI middleware that admits or refuses a request.

    Args:
        app: application to protect.
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
        body = Body(receive, self._most, self._too_large, self._server)
        answer = _Answer(scope, send, request_id, body, self._server)
        self._open += 1
        try:
            self._check(scope, headers)
            if scope["type"] == "http":
                with self._work(scope):
                    await self._app(scope, body, answer)
            else:
                await self._app(scope, receive, answer)
        except RefusedError as error:
            self._server.refuse_http(error)
            await _refuse(scope, answer, error)
        finally:
            self._open -= 1
            facts = {
                "request_id": request_id,
                "client": (scope.get("client") or ("",))[0],
                "path": scope["path"],
                "status": answer.status,
                "took_s": round(time.monotonic() - started, 4),
            }
            known = {name: scope["state"].get(name) for name in ("model", "outcome")}
            log.info("request", extra=facts | {k: v for k, v in known.items() if v})

    def _work(self, scope: Scope) -> contextlib.AbstractContextManager[None]:
        """Let the shutdown wait for a request, even while its body arrives."""
        return contextlib.nullcontext() if _stays_open(scope) else self._server.work()

    def _check(self, scope: Scope, headers: Headers) -> None:
        key = self._server.api_key
        if scope["type"] == "websocket":
            _check_origin(headers)
        if key is not None and scope["path"] not in OPEN_PATHS:
            given = _given_key(headers)
            if given is None or not hmac.compare_digest(given.encode(), key.encode()):
                raise RefusedError(
                    401, "missing or wrong API key: send Authorization: Bearer KEY",
                    "invalid_api_key",
                )  # fmt: skip
        most = self._server.limits.connections
        if self._open > most and scope["path"] not in OPEN_PATHS:
            raise RefusedError(
                503,
                f"{most} requests and WebSockets are open, the maximum: try again",
                "overloaded",
                None,
                2,
            )
        if scope["type"] == "http" and self._server.draining.is_set() and not _stays_open(scope):
            raise draining_error()
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._most:
            raise self._too_large()

    def _too_large(self) -> RefusedError:
        most = self._server.limits.upload_mb
        return RefusedError(
            413, f"upload larger than {most:g} MB: split the recording, or compress it",
            "upload_too_large", "file",
        )  # fmt: skip


class _Answer:
    """Sender of a response, which adds the request id.

    The framework turns any error during the reading of a form into status 400; the error of the
    body replaces that response.

    Attributes:
        status: HTTP status that was sent; 101 for an accepted WebSocket, 500 if nothing was sent.
    """

    def __init__(
        self, scope: Scope, send: Send, request_id: str, body: Body, server: Server
    ) -> None:
        self._scope, self._send, self._request_id, self._body = scope, send, request_id, body
        self._server = server
        self._replaced = False
        self.status = 500

    async def __call__(self, message: Message) -> None:
        if self._replaced:
            return
        if message["type"] == "websocket.accept":
            self.status = 101
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
    """Make the body of an error response, as OpenAI's clients expect it."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_headers(error: RefusedError) -> dict[str, str]:
    """Make the headers of an error response, which say whether and when to retry."""
    if error.retry_after_s is None:
        return {"x-should-retry": "false"}
    return {"retry-after": f"{error.retry_after_s:.0f}", "x-should-retry": "true"}


async def _refuse(scope: Scope, send: Send, error: RefusedError) -> None:
    scope["state"]["outcome"] = error.code
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get(
        "extensions", {}
    ):
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:120]})
        return
    body = json.dumps(error_body(error)).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **error_headers(error),
    }
    await send(
        {
            "type": f"{kind}.start",
            "status": error.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": f"{kind}.body", "body": body})


def _stays_open(scope: Scope) -> bool:
    """Return True for paths that are served while the server shuts down: probes and the page."""
    return scope["path"] in (METRICS, *OPEN_PATHS)


def _request_id(headers: Headers) -> str:
    """Return the client's request id if it is safe to log, or make one."""
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
    """Refuse WebSockets that a page of another site opens in a user's browser."""
    origin = headers.get("origin")
    if origin and origin != "null" and urlsplit(origin).netloc != headers.get("host"):
        raise RefusedError(
            403, f"origin {origin[:100]}: other sites may not connect", "wrong_origin"
        )
