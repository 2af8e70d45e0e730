"""Endpoints of OpenAI's API: `POST /v1/audio/transcriptions` and `GET /v1/models`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, File, Form, Request, UploadFile
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from ds2deploy.serve.hot_words import check_hot_words
from ds2deploy.serve.limits import RefusedError
from ds2deploy.serve.middleware import error_body
from ds2deploy.serve.models import Model
from ds2deploy.serve.openai_forms import (
    FORMATS,
    MEDIA_TYPES,
    json_body,
    list_field,
    plain_body,
    token_logprobs,
    verbose_body,
)
from ds2deploy.serve.recognition import PROTOCOL, Recognition
from ds2deploy.serve.server import Server
from ds2deploy.serve.upload_request import UploadRequest, UploadRoute

router = APIRouter()
uploads = APIRouter(route_class=UploadRoute)

T = TypeVar("T")


@router.get("/v1/models", summary="List the models")
async def models(request: Request) -> dict[str, Any]:
    """List the models of this server."""
    server: Server = request.app.state.server
    return {"object": "list", "data": [_model(one) for one in server.models.values()]}


@router.get("/v1/models/{name}", summary="Describe a model")
async def model(request: Request, name: str) -> dict[str, Any]:
    """Describe one model."""
    server: Server = request.app.state.server
    return _model(server.model(name))


@uploads.post("/v1/audio/transcriptions", summary="Recognise a recording", response_model=None)
async def transcriptions(
    request: Request,
    file: Annotated[UploadFile, File(description="Recording in any supported format.")],
    model: Annotated[str, Form(description="Name of the model; empty selects the first.")] = "",
    response_format: Annotated[str, Form(description=", ".join(FORMATS))] = "json",
    stream: Annotated[bool, Form(description="Send events during recognition.")] = False,
) -> Response:
    """Recognise a recording; other fields of OpenAI's API are accepted and ignored.

    `keywords[]` are hot words; they require a model that is served with a beam search.
    """
    server: Server = request.app.state.server
    form = await request.form()
    granularities = list_field(form, "timestamp_granularities")
    _check(response_format, granularities)
    found = server.model(model)
    keywords = _keywords(form, found)
    logprobs = _logprobs(form)
    assert isinstance(request, UploadRequest)
    recognition = request.recognition(found, keywords, file)
    if stream:
        events = _events(recognition, logprobs)
        first = await _unless_gone(request, found.name, anext(events))
        return StreamingResponse(_from(server, first, events), media_type="text/event-stream")
    transcript = await _unless_gone(request, found.name, recognition.task)
    if response_format == "json":
        return JSONResponse(json_body(transcript, logprobs))
    if response_format == "verbose_json":
        return JSONResponse(verbose_body(transcript, granularities))
    return PlainTextResponse(
        plain_body(transcript, response_format), media_type=MEDIA_TYPES[response_format]
    )


async def _unless_gone(request: Request, model: str, work: Awaitable[T]) -> T:
    """Await work for a client, and cancel it if the client leaves.

    Raises:
        RefusedError: the client left, so that nobody can read the result.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        request.app.state.server.count(model, PROTOCOL, "client_left")
        raise RefusedError(499, "the client left before the end", "client_left")
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    """Wait until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(recognition: Recognition, logprobs: bool) -> AsyncIterator[dict[str, Any]]:
    """Yield OpenAI's events of a streamed transcription."""
    sent = ""
    try:
        while (update := await recognition.updates.get()) is not None:
            words = " ".join(word.text for word in update.words)
            if words:
                delta = f" {words}" if sent else words
                sent += delta
                yield {"type": "transcript.text.delta", "delta": delta}
        transcript = await recognition.task
        if rest := transcript.text[len(sent) :] if transcript.text.startswith(sent) else "":
            yield {"type": "transcript.text.delta", "delta": rest}
        done: dict[str, Any] = {"type": "transcript.text.done", "text": transcript.text}
        if logprobs:
            done["logprobs"] = token_logprobs(transcript)
        yield done
    finally:
        recognition.cancel()


async def _from(
    server: Server, first: dict[str, Any], events: AsyncIterator[dict[str, Any]]
) -> AsyncIterator[bytes]:
    """Write events; an error after the first event is sent as an event."""
    yield _event(first)
    try:
        async for event in events:
            yield _event(event)
    except RefusedError as error:
        server.refuse_http(error)
        yield _event({"type": "error", **error_body(error)})


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def _check(response_format: str, granularities: tuple[str, ...]) -> None:
    if response_format not in FORMATS:
        raise RefusedError(
            400, f"response_format {response_format[:40]!r}: expected one of {', '.join(FORMATS)}",
            "invalid_value", "response_format",
        )  # fmt: skip
    unknown = [value for value in granularities if value not in ("word", "segment")]
    if unknown or (granularities and response_format != "verbose_json"):
        raise RefusedError(
            400,
            "timestamp_granularities: expected word or segment, with response_format=verbose_json",
            "invalid_value",
            "timestamp_granularities",
        )


def _keywords(form: Any, model: Model) -> tuple[str, ...]:
    if "hot_words" in form:
        raise RefusedError(
            400, "hot_words: send keywords[] instead, once for each phrase", "invalid_value",
            "hot_words",
        )  # fmt: skip
    keywords = list_field(form, "keywords")
    check_hot_words(keywords, "keywords", model)
    return keywords


def _logprobs(form: Any) -> bool:
    include = list_field(form, "include")
    if unknown := [value for value in include if value != "logprobs"]:
        raise RefusedError(
            400, f"include {unknown[0][:40]!r}: expected logprobs", "invalid_value", "include"
        )
    return bool(include)


def _model(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": STARTED,
        "owned_by": "ds2deploy",
        "streaming": model.streaming,
        "hot_words": model.takes_hot_words,
    }


STARTED = int(time.time())
"""Creation time of the models that `GET /v1/models` lists: the start of the process."""
