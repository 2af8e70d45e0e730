"""Structured logs: one JSON object per line on standard error, without audio or text."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import sys
import warnings

from ds2deploy.runtimes.errors import AudioWarning

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
"""Attributes that every log record has; any others come from `extra`."""


class JsonLines(logging.Formatter):
    """Formatter of log records as JSON objects: time, level, message and the `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        found: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        found |= {name: value for name, value in vars(record).items() if name not in STANDARD}
        if record.exc_info:
            found["error"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


def configure_logs() -> None:
    """Send the server's logs, and uvicorn's warnings and errors, to standard error.

    Warnings about a client's audio (silence, clipping) are dropped: they would name its file, and
    Python keeps each distinct warning in memory for ever.
    """
    warnings.simplefilter("ignore", AudioWarning)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(_is_no_cancellation)
    handler.addFilter(_is_no_refused_handshake)
    for name, level in {"ds2deploy.serve": logging.INFO, "uvicorn": logging.WARNING}.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _is_no_refused_handshake(record: logging.LogRecord) -> bool:
    """Drop uvicorn's error of each WebSocket that was refused with an HTTP status.

    The status is in the log line of the request.
    """
    return record.getMessage() != "ASGI callable returned without completing handshake."


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Drop uvicorn's tracebacks of tasks that a second signal cancels."""
    kind = record.exc_info[0] if record.exc_info else None
    if kind is not None and issubclass(kind, asyncio.CancelledError):
        return False
    return not record.getMessage().rstrip().endswith("CancelledError")
