"""ASGI application with the routes of all protocols."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.websockets import WebSocket

from ds2deploy.serve import page, plain_socket, realtime, transcriptions, vosk
from ds2deploy.serve.limits import RefusedError
from ds2deploy.serve.middleware import Gate, error_body, error_headers
from ds2deploy.serve.server import Server
from ds2deploy.version import __version__

log = logging.getLogger("ds2deploy.serve")


API_PATHS = ("/v1/audio/transcriptions", "/v1/models")
"""Paths of OpenAI's API, which clients add to their base URL without the beginning."""

NO_FILE = "expected an upload; with curl, -F file=@speech.wav"


def make_app(make_server: Callable[[], Server], wyoming: socket.socket | None = None) -> FastAPI:
    """Make the ASGI application.

    Args:
        make_server: function that makes the server; called once.
        wyoming: listening TCP socket for Wyoming clients; None turns Wyoming off.

    Returns:
        The application; its lifespan opens and closes the models.
    """
    server = make_server()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await server.start()
        try:
            async with _wyoming(server, wyoming):
                yield
        finally:
            await server.stop()

    app = FastAPI(
        title="ds2deploy", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.server = server
    app.include_router(transcriptions.router)
    app.include_router(transcriptions.uploads)
    app.include_router(plain_socket.router)
    app.include_router(realtime.router)
    app.include_router(vosk.router)
    app.include_router(page.router)
    _add_probes(app, server)
    app.add_api_websocket_route("/{path:path}", _nowhere)
    _add_errors(app, server)
    app.add_middleware(Gate, server=server)
    return app


def _wyoming(
    server: Server, listening: socket.socket | None
) -> contextlib.AbstractAsyncContextManager[None]:
    if listening is None:
        return contextlib.nullcontext()
    from ds2deploy.serve.wyoming import WyomingServer

    return WyomingServer(server, listening).running()


async def _nowhere(websocket: WebSocket) -> None:
    path = websocket.url.path[:100]
    raise RefusedError(
        404, f"{path}: no WebSocket here; expected /stream, /v1/realtime or /vosk", "not_found"
    )


def _add_probes(app: FastAPI, server: Server) -> None:
    @app.get("/health", summary="Check that the process is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Check that requests can be served", response_model=None)
    async def ready() -> Response:
        problem = server.problem()
        if problem is None:
            return JSONResponse({"status": "ready"})
        status = "draining" if server.draining.is_set() else "not ready"
        return JSONResponse({"status": status, "reason": problem}, 503)

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI, server: Server) -> None:
    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        request.scope["state"]["model"] = error.model
        if error.code != "client_left":
            server.refuse_http(error)
        return _response(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = str(first["loc"][-1])
        reason = NO_FILE if name == "file" else first["msg"]
        refused = RefusedError(422, f"{name}: {reason}", "invalid_value", name)
        server.refuse_http(refused)
        return _response(request, refused)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = str(error.detail)
        if error.status_code == 404 and f"/v1{request.url.path}" in API_PATHS:
            detail = f"{request.url.path}: not found; the base URL of clients ends with /v1"
        refused = RefusedError(error.status_code, detail, "invalid_request")
        response = _response(request, refused)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.error("internal error", exc_info=error, extra={"path": request.url.path})
        return _response(request, RefusedError(500, "internal error", "internal_error"))


def _response(request: Request, error: RefusedError) -> JSONResponse:
    """Make the response of an error, and note the error's code for the log."""
    request.scope["state"]["outcome"] = error.code
    return JSONResponse(error_body(error), error.status, error_headers(error))
