"""Convolution in numpy, fast enough to check a whole network: large matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from ds2deploy.export.parsed_network.layers import Array


def convolve(x: Array | None, attributes: dict[str, Any]) -> Array:
    """Compute a convolution over one or two axes, as TensorRT's layer describes it.

    Args:
        x: (batch, channels, height, width) float32, or without the height.
        attributes: kernel (values), bias (values, or none), kernel_size_nd, num_output_maps,
            num_groups, stride_nd, dilation_nd, pre_padding, post_padding.

    Returns:
        (batch, maps, height', width') float32, or without the height.
    """
    assert x is not None
    flat = x.ndim == 3
    kernel_size = attributes["kernel_size_nd"]
    geometry = [attributes[name] for name in ("stride_nd", "dilation_nd")]
    padding = list(zip(attributes["pre_padding"], attributes["post_padding"], strict=True))
    if flat:
        x, kernel_size, padding = x[:, :, None], (1, *kernel_size), [(0, 0), *padding]
        geometry = [(1, *values) for values in geometry]
    maps, groups = attributes["num_output_maps"], attributes["num_groups"]
    kernel = attributes["kernel"].reshape(maps, x.shape[1] // groups, *kernel_size)
    x = np.pad(x, [(0, 0), (0, 0), *padding])
    result = np.stack([_convolve_one(item, kernel, groups, *geometry) for item in x])
    if attributes["bias"].size:
        result += attributes["bias"].reshape(1, -1, 1, 1)
    return result[:, :, 0] if flat else result


def _convolve_one(
    x: Array, kernel: Array, groups: int, stride: tuple[int, int], dilation: tuple[int, int]
) -> Array:
    """One padded item (channels, height, width) to (maps, height', width')."""
    channels, height, width = x.shape
    maps, depth, rows, columns = kernel.shape
    high = (height - (rows - 1) * dilation[0] - 1) // stride[0] + 1
    wide = (width - (columns - 1) * dilation[1] - 1) // stride[1] + 1
    result = np.zeros((maps, high, wide), np.float32)
    if depth == 1 and groups == channels == maps:  # depthwise: nothing to sum over channels
        for row in range(rows):
            for column in range(columns):
                part = _shifted(x, (row, column), (high, wide), stride, dilation)
                result += kernel[:, 0, row, column, None, None] * part
        return result
    per_group = maps // groups
    for group in range(groups):
        inside = slice(group * depth, (group + 1) * depth)
        chosen = slice(group * per_group, (group + 1) * per_group)
        _sum_of_products(x[inside], kernel[chosen], stride, dilation, result[chosen])
    return result


def _sum_of_products(
    x: Array, kernel: Array, stride: tuple[int, int], dilation: tuple[int, int], result: Array
) -> None:
    """Add to the result (maps, height', width'), one row of it at a time.

    All the rows that an output row sees, stacked, are one matrix (channels * rows, width); each
    column of the kernel multiplies a window of it, which is a view.
    """
    maps, _, rows, columns = kernel.shape
    _, high, wide = result.shape
    weights = [np.ascontiguousarray(kernel[..., c]).reshape(maps, -1) for c in range(columns)]
    for i in range(high):
        first = i * stride[0]
        seen = x[:, first : first + (rows - 1) * dilation[0] + 1 : dilation[0]]
        stacked = np.ascontiguousarray(seen).reshape(-1, x.shape[2])
        for column, weight in enumerate(weights):
            start = column * dilation[1]
            window = stacked[:, start : start + (wide - 1) * stride[1] + 1 : stride[1]]
            result[:, i] += weight @ window


def _shifted(
    x: Array,
    start: tuple[int, int],
    size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Array:
    picks = [
        slice(first * apart, first * apart + (count - 1) * step + 1, step)
        for first, count, step, apart in zip(start, size, stride, dilation, strict=True)
    ]
    return x[:, picks[0], picks[1]]
