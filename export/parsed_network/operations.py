"""What each kind of TensorRT layer computes, in numpy.

Semantics are those of NVIDIA's documentation of the operators; values of floating point are
computed in float32 and rounded to the layer's own type afterwards (`rounder`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ds2deploy.export.parsed_network.convolution import convolve
from ds2deploy.export.parsed_network.reader import Layer
from ds2deploy.runtimes.errors import ModelFileError

Array: TypeAlias = npt.NDArray[Any]
Inputs: TypeAlias = Sequence[Any]
"""Arrays; None for an optional input that is not there."""

Operation = Callable[[Inputs], Array]


def operation(layer: Layer) -> Operation:
    """The function that a layer computes: its inputs to its output, before rounding.

    Raises:
        ModelFileError: a layer, or a variant of one, that is not known; names it.
    """
    if layer.kind not in OPERATIONS:
        raise unknown(layer, "kind")
    return OPERATIONS[layer.kind](layer)


def unknown(layer: Layer, what: str) -> ModelFileError:
    """The error for a layer that cannot be computed."""
    return ModelFileError(
        f"TensorRT's layer {layer.name!r} is a {layer.kind} whose {what} the check of the parsed "
        f"network cannot compute ({layer.attributes.get(what, layer.kind)}); nothing is built"
    )


# Kinds that hand on values as they are: what was rounded once stays so.
MOVES = {
    "CONCATENATION", "CONSTANT", "GATHER", "IDENTITY", "SELECT", "SHUFFLE", "SLICE", "SQUEEZE",
    "UNSQUEEZE",
}  # fmt: skip


def rounder(layer: Layer, dtypes: dict[str, str]) -> Callable[[Array], Array]:
    """Rounds what a layer computes to the type of its output.

    Values stay in numpy's float32, int64 or bool.
    """
    dtype = dtypes[layer.outputs[0]]
    if dtype in ("HALF", "BF16") and layer.kind in MOVES:
        return lambda x: x
    if dtype == "HALF":
        return lambda x: x.astype(np.float16).astype(np.float32)
    if dtype == "BF16":
        return _round_bfloat16
    kept = {"FLOAT": np.float32, "INT32": np.int64, "INT64": np.int64, "BOOL": np.bool_}
    if dtype not in kept:
        raise ModelFileError(
            f"TensorRT gave its layer {layer.name!r} the type {dtype}, which the check of the "
            "parsed network cannot compute; nothing is built"
        )
    return lambda x: np.asarray(x, kept[dtype])


def _round_bfloat16(x: Array) -> Array:
    """The upper half of a float32, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), np.float32(np.nan), rounded.view(np.float32)).reshape(np.shape(x))


def _choose(layer: Layer, attribute: str, table: dict[str, Any]) -> Any:
    """The entry for an attribute; a value that is not in the table is not known."""
    chosen = layer.attributes[attribute]
    if chosen not in table:
        raise unknown(layer, attribute)
    return table[chosen]


def _activation(layer: Layer) -> Operation:
    low, high = layer.attributes["alpha"], layer.attributes["beta"]
    function = _choose(
        layer,
        "type",
        {
            "RELU": lambda x: np.maximum(x, 0),
            "SIGMOID": _sigmoid,
            "TANH": np.tanh,
            "CLIP": lambda x: np.clip(x, np.float32(low), np.float32(high)),
        },
    )
    return lambda inputs: np.asarray(function(inputs[0]))


def _sigmoid(x: Array) -> Array:
    # A tanh is the same function, and overflows nowhere.
    return np.asarray(np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5))


def _elementwise(layer: Layer) -> Operation:
    function = _choose(layer, "op", ELEMENTWISE)
    return lambda inputs: np.asarray(function(inputs[0], inputs[1]))


def _divide(x: Array, y: Array) -> Array:
    """Integers are divided as in C++: towards zero."""
    if x.dtype.kind == "f":
        return np.asarray(x / y)
    return np.asarray(np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y)))


def _unary(layer: Layer) -> Operation:
    function = _choose(layer, "op", UNARY)
    return lambda inputs: np.asarray(function(inputs[0]))


def _constant(layer: Layer) -> Operation:
    value = layer.attributes["weights"].reshape(layer.attributes["shape"])
    return lambda inputs: value


def _convolution(layer: Layer) -> Operation:
    if layer.attributes["padding_mode"] != "EXPLICIT_ROUND_DOWN":
        raise unknown(layer, "padding_mode")
    if len(layer.inputs) > 1:
        raise unknown(layer, "kernel")
    return lambda inputs: convolve(inputs[0], layer.attributes)


def _concatenation(layer: Layer) -> Operation:
    axis = layer.attributes["axis"]
    return lambda inputs: np.concatenate([x for x in inputs if x is not None], axis)


def _matrix_multiply(layer: Layer) -> Operation:
    sides = ("op0", "op1")
    for side in sides:
        if layer.attributes[side] not in ("NONE", "TRANSPOSE"):
            raise unknown(layer, side)
    left, right = (layer.attributes[side] == "TRANSPOSE" for side in sides)
    # Weights are the same array at every step of a loop. Transposed in memory once, they are
    # multiplied with a small batch in two thirds of the time (4.8 ms and 3.3 ms for 8 x 1024 by
    # 1024 x 4096).
    transposed: list[Array] = []

    def multiply(inputs: Inputs) -> Array:
        a, b = inputs[0], inputs[1]
        if right:
            if not transposed or transposed[0] is not b:
                transposed[:] = b, np.ascontiguousarray(b.swapaxes(-1, -2))
            b = transposed[1]
        return np.asarray((a.swapaxes(-1, -2) if left else a) @ b)

    return multiply


def _reduce(layer: Layer) -> Operation:
    function = _choose(layer, "op", REDUCE)
    axes, keep = _mask_axes(layer.attributes["axes"]), layer.attributes["keep_dims"]
    return lambda inputs: np.asarray(function(inputs[0], axis=axes, keepdims=keep))


def _softmax(layer: Layer) -> Operation:
    axes = _mask_axes(layer.attributes["axes"])

    def softmax(inputs: Inputs) -> Array:
        x = inputs[0]
        powers = np.exp(x - x.max(axis=axes, keepdims=True))
        return np.asarray(powers / powers.sum(axis=axes, keepdims=True))

    return softmax


def _mask_axes(mask: int) -> tuple[int, ...]:
    """TensorRT names axes by the bits of a number."""
    return tuple(axis for axis in range(8) if mask >> axis & 1)


def _shuffle(layer: Layer) -> Operation:
    """Transpose, reshape, transpose; the new shape may be an input, or left as it is."""
    zero_keeps = layer.attributes["zero_is_placeholder"]

    def shuffle(inputs: Inputs) -> Array:
        x = inputs[0]
        x = x.transpose(layer.attributes["first_transpose"][: x.ndim])
        shape = layer.attributes["reshape_dims"]
        if len(inputs) > 1 and inputs[1] is not None:
            shape = tuple(int(size) for size in inputs[1])
        if shape is not None:
            if zero_keeps:
                shape = tuple(size or x.shape[axis] for axis, size in enumerate(shape))
            x = x.reshape(shape)
        return np.asarray(x.transpose(layer.attributes["second_transpose"][: x.ndim]))

    return shuffle


def _slice(layer: Layer) -> Operation:
    """Start, size and stride per axis, each an attribute or an input; a stride of 0 repeats.

    They are those of the axes that are named, or of all.
    """
    if layer.attributes["mode"] != "STRICT_BOUNDS":
        raise unknown(layer, "mode")
    if len(layer.inputs) > 4:
        raise unknown(layer, "axes")
    axes, names = layer.attributes["axes"], ("start", "shape", "stride")

    def cut(inputs: Inputs) -> Array:
        x = inputs[0]
        start, size, stride = (
            inputs[i] if i < len(inputs) and inputs[i] is not None else layer.attributes[name]
            for i, name in enumerate(names, start=1)
        )
        named = range(x.ndim) if axes is None else (axis % x.ndim for axis in axes)
        for axis, low, count, step in zip(named, start, size, stride, strict=True):
            if (low, count, step) == (0, x.shape[axis], 1):
                continue
            picked = low + step * np.arange(count)
            if count and not (picked.min() >= 0 and picked.max() < x.shape[axis]):
                raise unknown(layer, "bounds")
            if step > 0:  # a view, where one will do
                picks = slice(int(low), int(low + count * step), int(step))
                x = x[(slice(None),) * axis + (picks,)]
            else:
                x = np.take(x, picked, axis)
        return np.asarray(x)

    return cut


def _gather(layer: Layer) -> Operation:
    if layer.attributes["mode"] != "DEFAULT" or layer.attributes["num_elementwise_dims"]:
        raise unknown(layer, "mode")
    return lambda inputs: np.take(inputs[0], inputs[1], axis=layer.attributes["axis"])


def _fill(layer: Layer) -> Operation:
    if layer.attributes["operation"] != "LINSPACE" or len(layer.inputs) != 3:
        raise unknown(layer, "operation")

    def fill(inputs: Inputs) -> Array:
        shape, start, delta = (np.asarray(x) for x in inputs)
        if shape.shape != (1,):
            raise unknown(layer, "shape")
        return np.asarray(start.reshape(()) + np.arange(int(shape[0])) * delta.reshape(()))

    return fill


def _scale(layer: Layer) -> Operation:
    if layer.attributes["mode"] not in ("UNIFORM", "CHANNEL"):
        raise unknown(layer, "mode")

    def scale(inputs: Inputs) -> Array:
        x = inputs[0]
        shape = [1] * x.ndim
        if layer.attributes["mode"] == "CHANNEL":
            shape[layer.attributes["channel_axis"]] = -1
        factors = (layer.attributes[name] for name in ("scale", "shift", "power"))
        factor, shift, power = (f.reshape(shape) if f.size else None for f in factors)
        x = x if factor is None else x * factor
        x = x if shift is None else x + shift
        return np.asarray(x if power is None else x**power)

    return scale


def _axes(x: Array | None) -> tuple[int, ...]:
    return () if x is None else tuple(int(axis) for axis in np.atleast_1d(x))


def _squeeze(layer: Layer) -> Operation:
    def squeeze(inputs: Inputs) -> Array:
        axes = _axes(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else None
        return np.asarray(np.squeeze(inputs[0], axis=axes))

    return squeeze


def _function(function: Callable[..., Any]) -> Callable[[Layer], Operation]:
    return lambda layer: lambda inputs: np.asarray(function(*inputs))


ELEMENTWISE: dict[str, Callable[[Array, Array], Any]] = {
    "SUM": np.add, "SUB": np.subtract, "PROD": np.multiply, "DIV": _divide,
    "MAX": np.maximum, "MIN": np.minimum, "FLOOR_DIV": np.floor_divide, "POW": np.power,
    "AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor,
    "EQUAL": np.equal, "GREATER": np.greater, "LESS": np.less,
}  # fmt: skip
UNARY: dict[str, Callable[[Array], Any]] = {
    "EXP": np.exp, "LOG": np.log, "SQRT": np.sqrt, "ABS": np.abs, "NEG": np.negative,
    "NOT": np.logical_not, "FLOOR": np.floor, "CEIL": np.ceil, "RECIP": lambda x: 1 / x,
}  # fmt: skip
REDUCE: dict[str, Callable[..., Any]] = {
    "SUM": np.sum, "MAX": np.max, "MIN": np.min, "PROD": np.prod, "AVG": np.mean,
}  # fmt: skip
OPERATIONS: dict[str, Callable[[Layer], Operation]] = {
    "ACTIVATION": _activation,
    "CAST": _function(lambda x: x),
    "CONCATENATION": _concatenation,
    "CONSTANT": _constant,
    "CONVOLUTION": _convolution,
    "ELEMENTWISE": _elementwise,
    "FILL": _fill,
    "GATHER": _gather,
    "IDENTITY": _function(lambda x: x),
    "MATRIX_MULTIPLY": _matrix_multiply,
    "REDUCE": _reduce,
    "SCALE": _scale,
    "SELECT": _function(np.where),
    "SHAPE": _function(np.shape),
    "SHUFFLE": _shuffle,
    "SLICE": _slice,
    "SOFTMAX": _softmax,
    "SQUEEZE": _squeeze,
    "UNARY": _unary,
    "UNSQUEEZE": _function(lambda x, axes: np.expand_dims(x, _axes(axes))),
}
