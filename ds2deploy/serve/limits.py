"""Limits of the server, and errors of refused requests."""

from __future__ import annotations

import msgspec

from ds2deploy.runtimes.errors import (
    AlphabetError,
    AudioError,
    BackPressureError,
    ConfigError,
    DeviceError,
    Ds2Error,
    MissingFileError,
    StreamError,
    TooLongError,
)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of the server; each is checked before the work that it limits.

    Attributes:
        streams: maximum number of live streams per model; None measures it at start-up.
        uploads: maximum number of uploads that are processed at the same time.
        waiting: maximum number of uploads that wait for a place.
        upload_mb: maximum size of an upload, in 10^6 bytes.
        audio_s: maximum duration of the audio in an upload, in seconds.
        backlog_s: maximum duration of a live stream's audio that waits, in seconds; a client that
            sends faster is read more slowly.
        idle_s: time after which a WebSocket that sends nothing is closed, in seconds.
        connections: maximum number of open requests and WebSockets, not counting probes.
        drain_s: time that streams and requests have to finish after SIGTERM, in seconds.
        stuck_s: duration of a tick after which the server reports itself as not ready, in seconds.
    """

    streams: int | None = None
    uploads: int = 8
    waiting: int = 64
    upload_mb: float = 25.0
    audio_s: float = 3600.0
    backlog_s: float = 10.0
    idle_s: float = 60.0
    connections: int = 1024
    drain_s: float = 30.0
    stuck_s: float = 30.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} = {value:g}: expected above 0")


class RefusedError(Exception):
    """Refusal of a request, with the fields of OpenAI's errors.

    Attributes:
        status: HTTP status.
        message: one line with the remedy.
        code: short name of the reason.
        param: name of the parameter; None if there is none to blame.
        retry_after_s: seconds after which a retry makes sense; None where it never does.
        model: name of the model that was asked for, for metrics; empty where none was found.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.param, self.retry_after_s = param, retry_after_s
        self.model = ""

    @property
    def type(self) -> str:
        """Type of the error, as OpenAI names it."""
        names = {401: "authentication_error", 429: "rate_limit_error"}
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        return names.get(self.status, fallback)

    @property
    def retry(self) -> dict[str, int]:
        """Field of a message that tells when to retry; empty where a retry never makes sense."""
        after_s = self.retry_after_s
        return {} if after_s is None else {"retry_after_ms": round(1000 * after_s)}


def draining_error() -> RefusedError:
    """Make the error of requests that arrive while the server shuts down."""
    return RefusedError(503, "the server is shutting down: try again", "draining", None, 5)


def refusal(error: Ds2Error | RefusedError) -> RefusedError:
    """Translate an error of the library into a refusal; return a refusal as it is.

    Args:
        error: error of a recording, hot words, a pool or the engine; or a refusal.
    """
    if isinstance(error, RefusedError):
        return error
    message = str(error)
    if isinstance(error, BackPressureError):
        return RefusedError(429, message, "overloaded", None, 1)
    if isinstance(error, DeviceError):
        return RefusedError(503, f"the engine failed: {message}", "engine_failed", None, 5)
    if isinstance(error, StreamError):
        return RefusedError(503, message, "unavailable", None, 5)
    if isinstance(error, TooLongError):
        return RefusedError(413, message, "audio_too_long", "file")
    if isinstance(error, (AudioError, MissingFileError)):
        return RefusedError(400, message, "invalid_audio", "file")
    if isinstance(error, (ConfigError, AlphabetError)):
        return RefusedError(400, message, "invalid_value")
    return RefusedError(500, message, "internal_error")
