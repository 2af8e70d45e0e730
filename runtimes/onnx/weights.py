"""Finds weights of an ONNX file that are not numbers, piece by piece, without onnx.

A runtime computes with NaN as with any number, and a clip may even turn it into one: the text that
comes out is wrong, or empty. The weights are read as they lie in the file (onnx.proto3): ModelProto
holds a graph, GraphProto initializers, TensorProto a name, a type and the bytes of its values.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.errors import ModelFileError
from ds2deploy.runtimes.onnx.metadata import BYTES, fields

GRAPH, INITIALIZER = 7, 5
"""Numbers of the fields of ModelProto and of GraphProto."""

TYPE, FLOATS, NAME, RAW = 2, 4, 8, 9
"""Numbers of the fields of TensorProto."""

PIECE = 1 << 18
"""Bytes that are looked at together: they fit a core's cache."""


class Kind(NamedTuple):
    """A type of numbers: how they lie in the file, and a check for those that are none."""

    dtype: np.dtype[Any]
    is_bad: Callable[[npt.NDArray[Any]], bool]


def check_weights(path: Path) -> None:
    """Refuse a file with a weight that is NaN or infinite.

    Faults of the file's format are left to the runtime that opens it.

    Args:
        path: the ONNX file.

    Raises:
        ModelFileError: names the first such weight.
    """
    with path.open("rb") as file:
        try:
            name = _first_bad(file, path.stat().st_size)
        except (EOFError, UnicodeDecodeError):
            return
    if name is not None:
        raise ModelFileError(
            f"{path}: weights {name!r} contain NaN or infinity; the file is damaged: export it "
            "again"
        )


def _first_bad(file: BinaryIO, size: int) -> str | None:
    for number, kind, length in fields(file, size):
        if number == GRAPH and kind == BYTES:
            for inner, inner_kind, inner_length in fields(file, file.tell() + length):
                if inner == INITIALIZER and inner_kind == BYTES:
                    name = _bad_tensor(file, file.tell() + inner_length)
                    if name is not None:
                        return name
    return None


def _bad_tensor(file: BinaryIO, end: int) -> str | None:
    """Return the name of the tensor at the file's position if a value is not a number."""
    name, numbers, values = "", None, (0, 0)
    for number, kind, value in fields(file, end):
        if number == TYPE:
            numbers = KINDS.get(value)
        elif number == NAME and kind == BYTES:
            name = file.read(value).decode()
        elif number in (RAW, FLOATS) and kind == BYTES:
            values = file.tell(), value
    if numbers is None:
        return None
    file.seek(values[0])
    left = values[1]
    while left > 0:
        piece = file.read(min(left, PIECE))
        if not piece or len(piece) % numbers.dtype.itemsize:
            raise EOFError
        if numbers.is_bad(np.frombuffer(piece, numbers.dtype)):
            return name
        left -= len(piece)
    return None


def _floats_are_bad(values: npt.NDArray[Any]) -> bool:
    """Find NaN and infinity: a sum is quick and hides neither, but may overflow by itself."""
    with np.errstate(all="ignore"):
        return not np.isfinite(values.sum()) and not np.isfinite(values).all()


def _half_are_bad(exponent: int) -> Callable[[npt.NDArray[Any]], bool]:
    """Make a check of 16-bit numbers: NaN and infinity have all bits of the exponent set."""
    return lambda values: bool(((values & exponent) == exponent).any())


KINDS = {
    1: Kind(np.dtype("<f4"), _floats_are_bad),
    10: Kind(np.dtype("<u2"), _half_are_bad(0x7C00)),
    11: Kind(np.dtype("<f8"), _floats_are_bad),
    16: Kind(np.dtype("<u2"), _half_are_bad(0x7F80)),
}
"""Types of numbers by their TensorProto.DataType: float32, float16, float64, bfloat16."""
