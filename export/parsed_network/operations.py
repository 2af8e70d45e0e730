"""Operations of TensorRT's kinds of layers, in numpy.

Semantics are those of NVIDIA's documentation of the operators; values of floating point are
computed in float32 and rounded to the layer's own type afterwards (`rounding`); layers that
only move values are in `shapes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ds2deploy.export.parsed_network.convolution import convolve
from ds2deploy.export.parsed_network.layers import Array, Inputs, Layer, Operation, unknown
from ds2deploy.export.parsed_network.shapes import SHAPE_OPERATIONS


def operation(layer: Layer) -> Operation:
    """Find the function that a layer computes: its inputs to its output, before rounding.

    Raises:
        ModelFileError: a layer, or a variant of one, that is not known; names it.
    """
    if layer.kind not in OPERATIONS:
        raise unknown(layer, "kind")
    return OPERATIONS[layer.kind](layer)


def _choose(layer: Layer, attribute: str, table: dict[str, Any]) -> Any:
    """Find the entry for an attribute; a value that is not in the table is not known."""
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
    """Compute the sigmoid with the relative precision of float32, also where it is nearly 0.

    A gate of 0.01 through 0.5 * tanh(x / 2) + 0.5 has an error of 6e-6 of itself, which batch norms
    of small units multiply by more than 100.
    """
    decay = np.exp(-np.abs(x))  # overflows nowhere
    return np.asarray(np.where(x >= 0, np.float32(1), decay) / (np.float32(1) + decay))


def _elementwise(layer: Layer) -> Operation:
    function = _choose(layer, "op", ELEMENTWISE)
    return lambda inputs: np.asarray(function(inputs[0], inputs[1]))


def divide(x: Array, y: Array) -> Array:
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


def _function(function: Callable[..., Any]) -> Callable[[Layer], Operation]:
    return lambda layer: lambda inputs: np.asarray(function(*inputs))


ELEMENTWISE: dict[str, Callable[[Array, Array], Any]] = {
    "SUM": np.add, "SUB": np.subtract, "PROD": np.multiply, "DIV": divide,
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
    "CONSTANT": _constant,
    "CONVOLUTION": _convolution,
    "ELEMENTWISE": _elementwise,
    "IDENTITY": _function(lambda x: x),
    "MATRIX_MULTIPLY": _matrix_multiply,
    "REDUCE": _reduce,
    "SCALE": _scale,
    "SELECT": _function(np.where),
    "SHAPE": _function(np.shape),
    "SOFTMAX": _softmax,
    "UNARY": _unary,
    **SHAPE_OPERATIONS,
}
