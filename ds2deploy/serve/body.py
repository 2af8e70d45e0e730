"""Reading of a request's body, within its limits of size and time."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Message, Receive

from ds2deploy.serve.limits import RefusedError
from ds2deploy.serve.server import Server


class Body:
    """Request body whose bytes are counted, and which the end of the drain time interrupts.

    Args:
        receive: function that receives the next part.
        most: maximum size, in bytes.
        too_large: function that makes the error of a larger body.
        server: server whose end interrupts the body.

    Attributes:
        error: error that was raised; None if none was.
    """

    def __init__(
        self,
        receive: Receive,
        most: int,
        too_large: Callable[[], RefusedError],
        server: Server,
    ) -> None:
        self._receive, self._most, self._too_large = receive, most, too_large
        self._server = server
        self._count = 0
        self._complete = False
        self.error: RefusedError | None = None

    async def __call__(self) -> Message:
        """Receive the next part.

        Raises:
            RefusedError: the body is too large, or the time to drain is over.
        """
        if self._complete:
            return await self._receive()
        try:
            message = await self._server.unless_cut_off(self._receive())
        except RefusedError as error:
            self.error = error
            raise
        self._complete = not message.get("more_body", False)
        self._count += len(message.get("body", b""))
        if self._count > self._most:
            self.error = self._too_large()
            raise self.error
        return message
