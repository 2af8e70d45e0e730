"""The network as a device computes it: batch norms folded, recurrent layers that know padding.

Everything here is numpy: weights in float32, what is folded into them computed in float64.

**Padding.** An RNN must not see padded frames, yet `sequence_lens` parses in TensorRT in fp32
only. So every recurrent layer gets a few columns more than its input has, of which the first
tells valid frames from padded ones, and weights that make padding harmless:

* LSTM and tanh RNN: the column is 1 on *valid* frames and carries the whole bias. On a padded
  frame input and bias are then zero, and a state of zero stays exactly zero: the cell adds
  sigmoid(0) * tanh(0). A backward pass that begins in padding thus begins from zero. What a
  forward pass computes past the last valid frame is never looked at.
* GRU: its candidate has a bias inside the reset gate, which no input column can reach. The column
  is 1 on *padded* frames and drives the update gate to one, which holds the state as it is.

ONNX Runtime's int8 operator takes `sequence_lens` in every type, and would round such a column: for
it the network is lowered without (`columns=False`; see `quantization`).

Seven more columns of zeros keep matrix sizes multiples of eight, as tensor cores like them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from ds2deploy.model.network import DeepSpeech2, RecurrentLayer
from ds2deploy.runtimes.artifact import ModelShape

Array = npt.NDArray[np.floating[Any]]

GATE_COLUMNS = 8
HOLD = 1e4
"""Into the update gate: sigmoid(1e4) is 1 in every precision, and fp16 ends at 65504."""

# PyTorch's order of the gates in its stacked weights, in ONNX's order.
GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


class ConvolutionWeights(NamedTuple):
    """weight (maps, channels, bins, time) and bias (maps,), batch norm folded in.

    mean and deviation (maps,) are those of what it gave in training, before the clip.
    """

    weight: Array
    bias: Array
    mean: Array
    deviation: Array
    stride: tuple[int, int]
    padding: tuple[int, int]


class Recurrence(NamedTuple):
    """Weights of one layer as the ONNX operators LSTM, GRU and RNN take them.

    W (directions, gates * hidden, inputs + GATE_COLUMNS, or inputs alone),
    R (directions, gates * hidden, hidden), B (directions, 2 * gates * hidden).
    """

    W: Array
    R: Array
    B: Array


class DeployModel(NamedTuple):
    """All arrays of the deployed network, in the order in which they are used.

    projections are (inputs, rank) each, or None where the input side of a layer is whole;
    lookahead is (hidden, 1, context), output_weight (hidden, labels), output_bias (labels,).
    """

    shape: ModelShape
    bins: int
    labels: int
    convolutions: tuple[ConvolutionWeights, ...]
    recurrences: tuple[Recurrence, ...]
    projections: tuple[Array | None, ...]
    lookahead: Array | None
    output_weight: Array
    output_bias: Array


def lower(network: DeepSpeech2, columns: bool = True) -> DeployModel:
    """Fold a trained network.

    Args:
        network: trained network, in any mode; the running statistics of its batch norms are used.
        columns: True to give recurrent layers the columns that mark padding.
    """
    conv1, norm1, _, conv2, norm2, _ = network.conv.layers
    scale, shift = scale_shift(network.output_norm)
    output = _array(network.output.weight)
    layers = [layer for layer in network.rnns if isinstance(layer, RecurrentLayer)]
    return DeployModel(
        shape=network.shape,
        bins=network.bins,
        labels=network.labels,
        convolutions=(_convolution(conv1, norm1), _convolution(conv2, norm2)),
        recurrences=tuple(_recurrence(layer, network.shape, columns) for layer in layers),
        projections=tuple(map(_projection, layers)),
        lookahead=None if network.lookahead is None else _array(network.lookahead.conv.weight),
        output_weight=_scaled(output, scale).T,
        output_bias=output @ shift,
    )


def _convolution(conv: nn.Module, norm: nn.Module) -> ConvolutionWeights:
    """Fold a convolution with its norm; the clip and mask that follow replace a mask between."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert conv.bias is not None
    scale, shift = scale_shift(norm)
    return ConvolutionWeights(
        weight=_scaled(_array(conv.weight), scale[:, None, None, None]),
        bias=_array(conv.bias) * scale + shift,
        mean=_array(norm.bias),
        deviation=np.abs(_array(norm.weight)),
        stride=(conv.stride[0], conv.stride[1]),
        padding=(int(conv.padding[0]), int(conv.padding[1])),
    )


def _recurrence(layer: RecurrentLayer, shape: ModelShape, columns: bool) -> Recurrence:
    suffixes = ("", "_reverse") if shape.bidirectional else ("",)
    directions = [_direction(layer, shape.rnn, suffix, columns) for suffix in suffixes]
    return Recurrence(*(np.stack(arrays) for arrays in zip(*directions, strict=True)))


def _projection(layer: RecurrentLayer) -> Array | None:
    """First factor of the input side, its batch norm's scale folded in: (inputs, rank)."""
    if layer.projection is None:
        return None
    factor = _array(layer.projection.weight)
    if layer.batch_norm is not None:
        factor = _scaled(factor, scale_shift(layer.batch_norm)[0])
    return np.ascontiguousarray(factor.T)


def _direction(
    layer: RecurrentLayer, kind: str, suffix: str, with_columns: bool
) -> tuple[Array, Array, Array]:
    def stacked(name: str) -> Array:
        parts = np.split(_array(getattr(layer.rnn, f"{name}_l0{suffix}")), len(GATES[kind]))
        return np.concatenate([parts[gate] for gate in GATES[kind]])

    W, R = stacked("weight_ih"), stacked("weight_hh")
    input_bias, state_bias = stacked("bias_ih"), stacked("bias_hh")
    if layer.batch_norm is not None:
        scale, shift = scale_shift(layer.batch_norm)
        if layer.projection is None:
            input_bias = input_bias + W @ shift
            W = _scaled(W, scale)
        else:
            input_bias = input_bias + W @ (_array(layer.projection.weight) @ shift)
    if not with_columns:
        return W, R, np.concatenate([input_bias, state_bias])
    columns = np.zeros((len(W), GATE_COLUMNS), np.float32)
    if kind == "gru":
        columns[: layer.rnn.hidden_size, 0] = HOLD  # the update gate comes first in ONNX
    else:
        columns[:, 0] = input_bias + state_bias
        input_bias, state_bias = np.zeros_like(input_bias), np.zeros_like(state_bias)
    biases = np.concatenate([input_bias, state_bias])
    return np.concatenate([W, columns], axis=1), R, biases


def scale_shift(norm: nn.Module) -> tuple[Array, Array]:
    """Fold a batch norm in evaluation mode: x * scale + shift."""
    assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias, mean, variance = (
        _array(tensor).astype(np.float64)
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = weight / np.sqrt(variance + norm.eps)
    return scale, bias - mean * scale


def _scaled(weight: Array, scale: Array) -> Array:
    return np.multiply(weight, scale.astype(np.float32))


def _array(tensor: Tensor) -> Array:
    array: npt.NDArray[np.float32] = tensor.detach().cpu().float().numpy()
    return array
