"""Layers that move values without computing: slices, shuffles, concatenations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ds2deploy.export.parsed_network.layers import Array, Inputs, Layer, Operation, unknown


def _concatenation(layer: Layer) -> Operation:
    """Join tensors along an axis."""
    axis = layer.attributes["axis"]
    return lambda inputs: np.concatenate([x for x in inputs if x is not None], axis)


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
    """Take slices by their indices."""
    if layer.attributes["mode"] != "DEFAULT" or layer.attributes["num_elementwise_dims"]:
        raise unknown(layer, "mode")
    return lambda inputs: np.take(inputs[0], inputs[1], axis=layer.attributes["axis"])


def _fill(layer: Layer) -> Operation:
    """Fill a vector with numbers at equal distances."""
    if layer.attributes["operation"] != "LINSPACE" or len(layer.inputs) != 3:
        raise unknown(layer, "operation")

    def fill(inputs: Inputs) -> Array:
        shape, start, delta = (np.asarray(x) for x in inputs)
        if shape.shape != (1,):
            raise unknown(layer, "shape")
        return np.asarray(start.reshape(()) + np.arange(int(shape[0])) * delta.reshape(()))

    return fill


def _axes(x: Array | None) -> tuple[int, ...]:
    """Axes of an input that names them; none where it is not there."""
    return () if x is None else tuple(int(axis) for axis in np.atleast_1d(x))


def _squeeze(layer: Layer) -> Operation:
    """Remove axes of one element."""

    def squeeze(inputs: Inputs) -> Array:
        axes = _axes(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else None
        return np.asarray(np.squeeze(inputs[0], axis=axes))

    return squeeze


def _unsqueeze(layer: Layer) -> Operation:
    return lambda inputs: np.expand_dims(inputs[0], _axes(inputs[1]))


SHAPE_OPERATIONS: dict[str, Callable[[Layer], Operation]] = {
    "CONCATENATION": _concatenation,
    "FILL": _fill,
    "GATHER": _gather,
    "SHUFFLE": _shuffle,
    "SLICE": _slice,
    "SQUEEZE": _squeeze,
    "UNSQUEEZE": _unsqueeze,
}
