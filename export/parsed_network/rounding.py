"""Rounding of what a layer computes to the type that TensorRT gives it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ds2deploy.export.parsed_network.layers import NOT_BUILT, Array, Layer
from ds2deploy.runtimes.errors import ModelFileError

# Kinds that hand on values as they are: what was rounded once stays so.
MOVES = {
    "CONCATENATION", "CONSTANT", "GATHER", "IDENTITY", "SELECT", "SHUFFLE", "SLICE", "SQUEEZE",
    "UNSQUEEZE",
}  # fmt: skip


def rounder(layer: Layer, dtypes: dict[str, str]) -> Callable[[Array], Array]:
    """Round what a layer computes to the type of its output.

    Values stay in numpy's float32, int64 or bool.
    """
    dtype = dtypes[layer.outputs[0]]
    if dtype in ("HALF", "BF16") and layer.kind in MOVES:
        return lambda x: x
    if dtype == "HALF":
        return lambda x: x.astype(np.float16).astype(np.float32)
    if dtype == "BF16":
        return round_bfloat16
    kept = {"FLOAT": np.float32, "INT32": np.int64, "INT64": np.int64, "BOOL": np.bool_}
    if dtype not in kept:
        raise ModelFileError(
            f"TensorRT's layer {layer.name!r} has the type {dtype}, which the check of the parsed "
            f"network does not support, {NOT_BUILT}"
        )
    return lambda x: np.asarray(x, kept[dtype])


def round_bfloat16(x: Array) -> Array:
    """Return the upper half of a float32, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), np.float32(np.nan), rounded.view(np.float32)).reshape(np.shape(x))
