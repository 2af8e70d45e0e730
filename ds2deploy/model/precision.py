"""Full float32 precision of PyTorch on CUDA during the computations of a session."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Float32:
    """Switch that turns TF32 off while at least one thread computes, and then restores it.

    With TF32, torch's default for convolutions and recurrent layers, factors keep only 10 bits.
    Torch's setting applies to the whole process; the threads are counted for this reason.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore: Callable[[], None] = lambda: None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Compute without TF32."""
        with self._lock:
            if self._inside == 0:
                self._restore = _without_tf32()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._restore()


FLOAT32 = Float32()
"""TF32 switch of this process, which all sessions share."""


def _without_tf32() -> Callable[[], None]:
    """Turn TF32 off, and return a function that restores it.

    Torch has old and new settings for TF32, and refuses to compute if they contradict each other.
    Both are set for this reason.
    """
    from torch.backends import cuda, cudnn

    library: Any = cudnn  # torch's annotations lack attributes that it sets at import
    operations = (library.conv, library.rnn)
    before = [operation.fp32_precision for operation in operations]
    products = cuda.matmul.fp32_precision == "tf32"
    cudnn.allow_tf32 = False
    for operation in operations:
        operation.fp32_precision = "ieee"
    if products:
        cuda.matmul.allow_tf32 = False

    def restore() -> None:
        cudnn.allow_tf32 = before == ["tf32", "tf32"]
        for operation, precision in zip(operations, before, strict=True):
            operation.fp32_precision = precision
        if products:
            cuda.matmul.allow_tf32 = True

    return restore
