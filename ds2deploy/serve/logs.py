"""Structured logs: one JSON object a line on standard error, without audio and without text."""

from __future__ import annotations

import datetime
import json
import logging
import sys

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
"""Attributes that every record has; the others are facts of this one."""


class JsonLines(logging.Formatter):
    """Formats a record as a JSON object: time, level, message, and the facts of `extra`."""

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
    """Write the logs of the server, and of uvicorn from warnings on, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in {"ds2deploy.serve": logging.INFO, "uvicorn": logging.WARNING}.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
