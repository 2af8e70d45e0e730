"""Full float32 precision of PyTorch on CUDA, while a session computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Float32:
    """Switches TF32 off while at least one thread computes, and then back as it was.

    With TF32, torch's default for convolutions and recurrent layers, their factors keep 10 bits.
    The switches are torch's and hold for the whole process, hence the count of threads.
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
"""The switches of this process, which all sessions share."""


def _without_tf32() -> Callable[[], None]:
    """Switch TF32 off; return a function that switches it back.

    Torch has switches of two generations, and refuses to compute where they contradict each other:
    both are set.
    """
    from torch.backends import cuda, cudnn

    library: Any = cudnn  # torch's annotations lack what it sets when it is imported
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
