"""A logger that keeps TensorRT's errors for messages instead of printing them."""

from __future__ import annotations

import logging
from typing import Any

from ds2deploy.runtimes.tensorrt.library import TensorRt

LOG = logging.getLogger("ds2deploy")


def make_log(library: TensorRt) -> Any:
    """Make a TensorRT logger that prints nothing and keeps the last error, for the messages."""
    trt = library.module

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]  # known when it runs
        def __init__(self) -> None:
            super().__init__()  # pybind11 demands it
            self._last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._last = message
            LOG.debug("%s: %s", library.title, message)

        def take(self) -> str:
            """Return the last error as an addition to a message; empty if there was none since."""
            last, self._last = self._last, ""
            return f" ({' '.join(last.split())[:200]})" if last else ""

    return Log()
