"""Recurrent layers and the second convolution in int8: a quarter of the file, a third of the time.

The first convolution and the output layer stay float32: together they are 6 % of a network's
operations, and the first, of a single map, takes as long in int8. (The second: 18 ms against 76 for
10 s of audio, 125 against 358 for eight times that, two cores with AVX-512 and VNNI.) Four things
are particular:

* **Padding.** A column of the input, which marks padding in the other precisions, would be rounded
  as coarsely as the rest. So the operator is told how many frames are valid: `sequence_lens`, which
  ONNX Runtime takes. A stream that begins in the middle of a block has invalid frames *in front*;
  its frames are moved to the front before the first layer, and back after the last one. No frame
  before the first is ever read, and the beginning is as exact as without quantisation.
* **Sums that fit.** On x86 without VNNI, ONNX Runtime adds the products of two neighbours (unsigned
  activation times signed weight) in 16 bits, and cuts off what passes 32767. So the weights of two
  neighbours of one sign add up to 128 at most, and 255 * 128 fits. Every processor then computes
  the same sums, and what was accepted here holds there. (Measured without this: 12,000 of 96,000
  loud sums wrong, with an AVX2 processor.)
* **A scale for every row and every column.** A row of a gate has a scale of its own. Folded batch
  norms leave columns that are a hundred times as large as others, and would decide the scale of
  every row; so a column is divided by a power of its largest weight, and the layer's input
  multiplied by it (Xiao et al., *SmoothQuant*, 2022, without their calibration). Recurrent weights
  have no such columns.

* **A step for every map.** What a map of the convolutions gave in training has the mean and the
  deviation of its batch norm: no data is needed to know how large it gets. The first convolution
  gives it in steps of its own, 0 to 127, which are folded into the weights on both sides: products
  of two such numbers fit in 16 bits twice, see above. The clip at zero is the rounding's own.

The recurrent layers' activations are quantised while the network runs, by the range of all that
goes in at once: what else is in the batch moves an utterance's numbers a little. So such an
artifact is judged by its words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ds2deploy.export.onnx.graph_builder import MICROSOFT, GraphBuilder, recurrent_operator
from ds2deploy.export.onnx.lowering import Array, ConvolutionWeights, DeployModel, Recurrence
from ds2deploy.export.onnx.time_axis import TimeAxis
from ds2deploy.model.network import LARGEST_ACTIVATION

LARGEST = 127
"""Largest sum of two neighbouring weights of one sign, before both are rounded, up at worst; and so
the largest weight."""

LARGEST_BYTE = 255

COLUMN_POWER = 0.6
"""Exponent of a column's largest weight. Measured on 2,400 words of digit strings, differing from
float32: 2 and 3 (offline and streaming model); with 0, 7 and 11 (all weights up to 64)."""


DEVIATIONS = 10.0
"""Largest distance from a map's mean, in standard deviations, that is not clipped."""


class QuantizedMatrix(NamedTuple):
    """Weights as DynamicQuantizeLSTM takes them: about `values * scale`.

    values (directions, inputs, gates * hidden) int8, scale and zero_point (directions,
    gates * hidden) float32 and int8.
    """

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int8]


def quantize(weights: Array) -> QuantizedMatrix:
    """Round a matrix to integers, each row on a scale of its own.

    Args:
        weights: (directions, gates * hidden, inputs), as the ONNX operators have them.
    """
    largest = _pair_sums(weights)
    scale = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    values = np.rint(weights / scale[:, :, None]).astype(np.int8)
    return QuantizedMatrix(
        values=np.ascontiguousarray(values.transpose(0, 2, 1)),
        scale=scale,
        zero_point=np.zeros(scale.shape, np.int8),
    )


def _pair_sums(weights: Array) -> Array:
    """Largest sum of one sign of two neighbours, which meet in 16 bits: (directions, rows)."""
    padded = np.pad(weights, ((0, 0), (0, 0), (0, weights.shape[2] % 2)))
    pairs = padded.reshape(*weights.shape[:2], -1, 2)
    positive = np.maximum(pairs, 0).sum(axis=3).max(axis=2)
    negative = np.maximum(-pairs, 0).sum(axis=3).max(axis=2)
    return np.asarray(np.maximum(positive, negative))


def column_scale(weights: Array) -> Array:
    """Factors of a layer's inputs, by which its weights are divided: (inputs,) float32.

    Args:
        weights: (directions, gates * hidden, inputs).
    """
    largest = np.abs(weights).max(axis=(0, 1))
    scale = np.where(largest > 0, largest, 1) ** COLUMN_POWER
    return np.asarray(scale / np.exp(np.log(scale).mean()), np.float32)


def quantized_convolution(
    g: GraphBuilder, deploy: DeployModel, time: TimeAxis, layer: int, state: str, x: str
) -> str:
    """Write a convolution with its clip; the first in float32, in the steps of the second.

    Args:
        g: the graph.
        deploy: the network.
        time: time axis of the graph: whole utterances or blocks.
        layer: 1 or 2.
        state: its name in a stream.
        x: (batch, maps, bins, time) float32, zero on invalid frames.

    Returns:
        The same; of the first layer in steps.
    """
    conv, name = deploy.convolutions[layer - 1], f"conv{layer}"
    bins, frames = conv.padding
    x, (before, after) = time.beside(state, x, axis=3, before=frames, after=frames)
    options = {"strides": conv.stride, "pads": [bins, before, bins, after]}
    if layer == 1:
        step = map_steps(conv, LARGEST)
        weight = g.weight(f"{name}/weight", conv.weight / step[:, None, None, None])
        x = g.node("Conv", name, x, weight, g.weight(f"{name}/bias", conv.bias / step), **options)
        return g.node("Clip", f"{name}/clip", x, g.scalar(0), g.scalar(LARGEST))
    return _second_convolution(g, deploy, name, x, options)


def _second_convolution(
    g: GraphBuilder, deploy: DeployModel, name: str, x: str, options: dict[str, Any]
) -> str:
    """Write the second convolution; its input is rounded to steps of the first one's maps."""
    first, conv = deploy.convolutions
    weights = conv.weight * map_steps(first, LARGEST)[:, None, None]
    largest = np.abs(weights).max(axis=(1, 2, 3))
    scale = np.where(largest > 0, largest / LARGEST, 1)
    step = map_steps(conv, LARGEST_BYTE)
    arrays: dict[str, npt.NDArray[Any]] = {
        "weight": np.rint(weights / scale[:, None, None, None]).astype(np.int8),
        "weight_scale": (scale / step).astype(np.float32),
        "weight_zero_point": np.zeros(len(scale), np.int8),
        "bias": np.rint(conv.bias / scale).astype(np.int32),
        "step": step.astype(np.float32),
        "zero_points": np.zeros(len(scale), np.uint8),
    }
    weight, weight_scale, weight_zero, bias, steps, zeros = (
        g.constant(f"{name}/{key}", array) for key, array in arrays.items()
    )
    # A scale of one and a zero of zero: the steps are in the weights.
    unit = [g.constant("step", np.array(1, np.float32)), g.constant("zero", np.array(0, np.uint8))]
    x = g.node("QuantizeLinear", f"{name}/steps", x, *unit)
    inputs = [x, *unit, weight, weight_scale, weight_zero, *unit, bias]
    x = g.node("QLinearConv", name, *inputs, **options)
    return g.node("DequantizeLinear", f"{name}/clip", x, steps, zeros, axis=1)


def map_steps(conv: ConvolutionWeights, count: int) -> Array:
    """Size of one of so many steps from zero to a map's largest value: (maps,)."""
    largest = np.minimum(conv.mean + DEVIATIONS * conv.deviation, LARGEST_ACTIVATION)
    return np.where(largest > 0, largest, LARGEST_ACTIVATION) / count


def quantized_layers(
    g: GraphBuilder,
    deploy: DeployModel,
    time: TimeAxis,
    x: str,
    mask: str,
    output_lengths: str,
) -> str:
    """Write all recurrent layers of an LSTM.

    Args:
        g: the graph.
        deploy: the network, lowered without columns for padding.
        time: time axis of the graph: whole utterances or blocks.
        x: (time, batch, features), zero on invalid frames.
        mask: (time, batch, 1), 1 on valid frames and 0 elsewhere.
        output_lengths: (batch,) int64.

    Returns:
        (time, batch, hidden), directions summed, zero on invalid frames.
    """
    x, counts = time.valid_first(x, output_lengths)
    for index, weights in enumerate(deploy.recurrences, start=1):
        name = f"rnn{index}"
        factor = deploy.projections[index - 1]
        if factor is not None:
            x = _projected(g, f"{name}/project", x, factor)
        states = time.initial_states(index, x)
        x = _layer(
            g,
            deploy,
            deploy.shape.units[index - 1],
            name,
            x,
            weights,
            [counts, *states],
            time.final_states(index),
        )
    return g.node("Mul", "rnn/mask", time.in_place(x), mask)


def _projected(g: GraphBuilder, name: str, x: str, factor: Array) -> str:
    """X (time, batch, inputs) times factor (inputs, rank), rounded as a layer's weights are."""
    weights = factor.T[None]
    scale = column_scale(weights)
    x = g.node("Mul", f"{name}/scaled", x, g.weight(f"{name}/column_scale", scale))
    matrix = quantize(weights / scale)
    arrays = (matrix.values[0], matrix.scale[0], matrix.zero_point[0])
    keys = ("values", "scale", "zero_point")
    constants = [g.constant(f"{name}/{k}", a) for k, a in zip(keys, arrays, strict=True)]
    return g.node_of("DynamicQuantizeMatMul", name, (name,), x, *constants, domain=MICROSOFT)[0]


def _layer(
    g: GraphBuilder,
    deploy: DeployModel,
    units: int,
    name: str,
    x: str,
    weights: Recurrence,
    counts_and_states: list[str],
    states: tuple[str, ...],
) -> str:
    """One layer; what it gives past the valid frames is zero."""
    scale = column_scale(weights.W)
    x = g.node("Mul", f"{name}/scaled", x, g.weight(f"{name}/column_scale", scale))
    W = _constants(g, f"{name}/W", quantize(weights.W / scale))
    R = _constants(g, f"{name}/R", quantize(weights.R))
    bias = g.weight(f"{name}/B", weights.B)
    inputs = [x, W[0], R[0], bias, *counts_and_states, "", *W[1:], *R[1:]]
    operator = "DynamicQuantizeLSTM"
    return recurrent_operator(
        g, deploy.shape, units, operator, name, inputs, states, domain=MICROSOFT
    )


def _constants(g: GraphBuilder, name: str, matrix: QuantizedMatrix) -> list[str]:
    """Values, scale, zero point."""
    return [g.constant(f"{name}/{key}", array) for key, array in matrix._asdict().items()]
