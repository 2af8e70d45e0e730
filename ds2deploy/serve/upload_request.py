"""Requests whose recording is recognised while it arrives."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, BinaryIO, cast

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import Response

from ds2deploy.runtimes.audio.arriving import ArrivingFile
from ds2deploy.serve.hot_words import check_hot_words
from ds2deploy.serve.limits import RefusedError
from ds2deploy.serve.models import Model
from ds2deploy.serve.openai_forms import list_field
from ds2deploy.serve.recognition import Recognition
from ds2deploy.serve.server import Server

FILE = "file"
"""Name of the form's part that contains the recording."""


class UploadRoute(APIRoute):
    """Route that begins to recognise a recording before its form is complete."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which receives an `UploadRequest`."""
        handle = super().get_route_handler()

        async def handle_upload(request: Request) -> Response:
            upload = UploadRequest(request.scope, request.receive)
            try:
                return await handle(upload)
            except BaseException:
                upload.abandon()
                raise

        return handle_upload


class UploadRequest(Request):
    """Request with a form that may contain a recording."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._complete: FormData | None = None
        self._early: Recognition | None = None
        self._arriving: list[ArrivingFile] = []

    async def form(self, **limits: Any) -> FormData:  # type: ignore[override]
        """Read the form, and begin to recognise its recording meanwhile."""
        if self._complete is None:
            if self.headers.get("content-type", "").startswith("multipart/form-data"):
                self._complete = await self._read()
            else:
                self._complete = await super().form(**limits)
        return self._complete

    def recognition(
        self, model: Model, keywords: tuple[str, ...], upload: UploadFile
    ) -> Recognition:
        """Return the recognition of a recording, once the form is complete.

        The early one is replaced if fields after the recording ask for something else.
        """
        early = self._early
        if early is not None:
            if early.model is model and early.keywords == keywords and early.upload is upload:
                return early
            early.cancel()
        self._early = Recognition(self.app.state.server, model, upload, keywords)
        return self._early

    def abandon(self) -> None:
        """End the early recognition of a request that failed."""
        for file in self._arriving:
            file.abort()
        if self._early is not None:
            self._early.cancel()

    async def _read(self) -> FormData:
        try:
            async with aclosing(self.stream()) as stream:
                form = await _Parser(self.headers, stream, on_file=self._begin).parse()
        except MultiPartException as error:
            raise HTTPException(400, error.message) from None
        for file in self._arriving:
            file.complete()
        return form

    def _begin(self, name: str, upload: UploadFile, fields: FormData) -> None:
        """Begin to recognise a file whose first bytes arrive, if the server has room for it.

        Only streaming models can begin. Errors are left to the complete form.
        """
        file = ArrivingFile(upload.file)
        upload.file = cast(BinaryIO, file)
        self._arriving.append(file)
        server: Server = self.app.state.server
        if name != FILE or self._early is not None:
            return
        try:
            keywords = list_field(fields, "keywords")
            model = server.model(str(fields.get("model", "")))
            check_hot_words(keywords, "keywords", model)
        except RefusedError:
            return
        if model.streaming and server.begin_early():
            self._early = Recognition(server, model, upload, keywords, early=True)


class _Parser(MultiPartParser):
    """Parser that announces files when their first bytes arrive.

    Args:
        on_file: function that receives the name of the part, the file, and the fields before it.
    """

    def __init__(
        self, *arguments: Any, on_file: Callable[[str, UploadFile, FormData], None]
    ) -> None:
        super().__init__(*arguments)
        self._on_file = on_file

    def on_headers_finished(self) -> None:
        """Announce a part that is a file."""
        super().on_headers_finished()
        # Not part of Starlette's API: without it, recordings are recognised when they are complete.
        part = getattr(self, "_current_part", None)
        if part is not None and part.file is not None:
            self._on_file(part.field_name, part.file, FormData(self.items))
