"""Recognition of one upload, which may begin while the upload arrives."""

from __future__ import annotations

import asyncio

from starlette.datastructures import UploadFile

from ds2deploy.runtimes.decoding.transcript import Transcript, Update
from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.serve.hot_words import naming
from ds2deploy.serve.limits import RefusedError, refusal
from ds2deploy.serve.models import Model
from ds2deploy.serve.server import Server

PROTOCOL = "openai"


class Recognition:
    """Task that recognises an upload.

    Args:
        server: server with the places for uploads.
        model: model that recognises it.
        upload: uploaded file; an `ArrivingFile` may still arrive.
        keywords: hot words.
        early: the upload still arrives, and `Server.begin_early` reserved a place for it.

    Attributes:
        model, upload, keywords: as above.
        updates: updates of a streaming model; None ends them.
        task: task with the transcript; raises `RefusedError`.
    """

    def __init__(
        self,
        server: Server,
        model: Model,
        upload: UploadFile,
        keywords: tuple[str, ...],
        early: bool = False,
    ) -> None:
        self.model, self.upload, self.keywords = model, upload, keywords
        self._server = server
        self.updates: asyncio.Queue[Update | None] = asyncio.Queue()
        self.task = asyncio.ensure_future(self._run())
        self.task.add_done_callback(lambda _: self.updates.put_nowait(None))
        if early:
            self.task.add_done_callback(lambda _: server.end_early())

    def cancel(self) -> None:
        """Cancel the task, and log nothing of its error."""
        self.task.cancel()
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _run(self) -> Transcript:
        try:
            found = await self._server.unless_cut_off(self._in_turn())
        except (Ds2Error, RefusedError) as error:
            refused = refusal(error)
            refused.model = self.model.name
            raise refused from None
        self._server.count(self.model.name, PROTOCOL, "ok")
        return found

    async def _in_turn(self) -> Transcript:
        async with self._server.upload():
            with naming("keywords", self.keywords):
                return await self.model.transcribe(
                    self.upload.file, self.upload.filename or "file", self.keywords or None,
                    self.updates.put_nowait,
                )  # fmt: skip
