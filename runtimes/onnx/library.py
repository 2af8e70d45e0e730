"""ONNX Runtime, imported in one place: it collects nothing, and prints errors only."""

from __future__ import annotations

import os
from typing import Any

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""Read once, when the library starts. Without it, releases from 1.29 on write a device id and a
database under the user's home, and send what they gather to their maker."""

ERRORS_ONLY = 3
"""Severity of its log. One level below, a session on CUDA is announced by a warning that has no
cause: `No registered plugin EP device found for 'CUDAExecutionProvider'`."""


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, without its telemetry, in this process and those that it starts.

    Raises:
        ImportError: it is not installed, or does not load.
    """
    os.environ[NO_TELEMETRY] = "1"
    import onnxruntime

    # Too late for what the library does when it starts; for a program that imported it before.
    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    return onnxruntime
