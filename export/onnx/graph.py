"""The deployed network as an ONNX graph, written node by node.

`torch.onnx.export` unrolls or freezes time in a recurrent layer, so the graph is written here:
the batch stays symbolic, and for whole utterances time too; every node has a name that a person
recognises in an error of a device's parser, and the operators are those that ONNX Runtime and
TensorRT both take.
"""

from __future__ import annotations

import numpy as np
import onnx

from ds2deploy.export.onnx.front_end import features_of_waveform
from ds2deploy.export.onnx.graph_builder import GraphBuilder, recurrent_operator
from ds2deploy.export.onnx.lowering import GATE_COLUMNS, Array, DeployModel
from ds2deploy.export.onnx.quantization import quantized_convolution, quantized_layers
from ds2deploy.export.onnx.stream_blocks import StreamBlocks
from ds2deploy.export.onnx.time_axis import TimeAxis, WholeUtterances
from ds2deploy.model.network import LARGEST_ACTIVATION
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.geometry import TIME_STRIDE, conv_features
from ds2deploy.runtimes.tensors import (
    FEATURES,
    LENGTHS,
    LOG_PROBS,
    OUTPUT_LENGTHS,
    input_tensors,
    output_tensors,
)

OPERATORS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


def build_graph(deploy: DeployModel, description: ArtifactDescription) -> onnx.ModelProto:
    """Write the deployed network.

    Args:
        deploy: network from `lower`; for int8 without columns.
        description: metadata of the artifact: input, whole utterances or blocks, precision of
            weights and activations; inputs, outputs, feature extractor, output layer and
            log-softmax are float32 in every precision.

    Returns:
        A model with the inputs and outputs that `tensors` declares for the description.
    """
    g = GraphBuilder(description.precision)
    time: TimeAxis
    time = (WholeUtterances if description.blocks is None else StreamBlocks)(g, description)
    x, lengths = FEATURES, LENGTHS
    if description.input == "waveform":
        x, lengths = features_of_waveform(g, description, time)
    rounded_up = g.node("Add", "lengths/plus_one", lengths, g.integer(TIME_STRIDE - 1))
    output_lengths = g.node("Div", OUTPUT_LENGTHS, rounded_up, g.integer(TIME_STRIDE))
    x = _masked_input(g, time, x, lengths)
    valid = ""
    convolution = quantized_convolution if description.precision == "int8" else _convolution
    for layer, name in enumerate((FEATURES, "conv1"), start=1):
        x = convolution(g, deploy, time, layer, name, x)
        valid = time.valid_frames(layer, x, output_lengths)
        mask = g.node("Unsqueeze", f"conv{layer}/maps", valid, g.integers(1, 2))
        x = g.node("Mul", f"conv{layer}/mask", x, mask)
    rows = conv_features(deploy.bins, deploy.shape.maps[1])
    x = g.node("Reshape", "rnn/rows", x, g.integers(0, rows, -1))
    x = g.node("Transpose", "rnn/time_first", x, perm=[2, 0, 1])
    time_first = g.node("Transpose", "valid/time_first", valid, perm=[1, 0])
    mask = g.node("Unsqueeze", "valid/frames_mask", time_first, g.integers(2))
    if description.precision == "int8":
        x = quantized_layers(g, deploy, time, x, mask, output_lengths)
    else:
        x = _recurrent_layers(g, deploy, time, x, mask)
    _labels(g, deploy, time, x)
    time.finish()
    return g.model(input_tensors(description), output_tensors(description))


def _masked_input(g: GraphBuilder, time: TimeAxis, x: str, lengths: str) -> str:
    """Zero what stands past a length: a device may hand over a buffer that it used before.

    A selection, not a product: what stands there may be NaN.
    """
    valid = g.node("Unsqueeze", "input/maps", time.valid_features(x, lengths), g.integers(1, 2))
    return g.lowered("input/cast", g.node("Where", "input/mask", valid, x, g.float32(0)))


def _convolution(
    g: GraphBuilder, deploy: DeployModel, time: TimeAxis, layer: int, state: str, x: str
) -> str:
    conv, name = deploy.convolutions[layer - 1], f"conv{layer}"
    weight = g.weight(f"{name}/weight", conv.weight)
    bias = g.weight(f"{name}/bias", conv.bias)
    bins, frames = conv.padding
    x, (before, after) = time.beside(state, x, axis=3, before=frames, after=frames)
    pads = [bins, before, bins, after]
    x = g.node("Conv", name, x, weight, bias, strides=conv.stride, pads=pads)
    return _hardtanh(g, f"{name}/clip", x)


def _recurrent_layers(
    g: GraphBuilder, deploy: DeployModel, time: TimeAxis, x: str, mask: str
) -> str:
    """X (time, batch, features), mask (time, batch, 1) in the graph's type."""
    shape = deploy.shape
    options = {"linear_before_reset": 1} if shape.rnn == "gru" else {}
    first = np.eye(1, GATE_COLUMNS)[None]
    flag = mask
    if shape.rnn == "gru":
        flag = g.node("Sub", "valid/padded", g.scalar(1), mask)
    gate = g.node("Mul", "valid/columns", flag, g.weight("valid/first_column", first))
    for index, weights in enumerate(deploy.recurrences, start=1):
        name = f"rnn{index}"
        factor = deploy.projections[index - 1]
        if factor is not None:
            x = g.node("MatMul", f"{name}/project", x, g.weight(f"{name}/projection", factor))
        x = g.node("Concat", f"{name}/input", x, gate, axis=2)
        arrays = [g.weight(f"{name}/{key}", array) for key, array in weights._asdict().items()]
        inputs = [*arrays, "", *time.initial_states(index, x)]  # the operator's sequence_lens
        states = time.final_states(index)
        x = recurrent_operator(
            g,
            shape,
            shape.units[index - 1],
            OPERATORS[shape.rnn],
            name,
            [x, *inputs],
            states,
            **options,
        )
        if index < len(deploy.recurrences) or deploy.lookahead is not None:
            x = g.node("Mul", f"{name}/mask", x, mask)
    return x


def _labels(g: GraphBuilder, deploy: DeployModel, time: TimeAxis, x: str) -> None:
    """(time, batch, hidden) to log_probs (batch, time, labels), from the output layer on in fp32.

    Logits of 16 and more are 1/64 apart in fp16. With this product, the smallest of all, in fp32,
    three trained models came 5, 25 and 28 % closer to PyTorch. The cast stands before the
    transposition: ONNX Runtime 1.31 crashes where it stands between that and the product.
    """
    if deploy.lookahead is not None:
        x = g.node("Transpose", "lookahead/time_last", x, perm=[1, 2, 0])
        x = _lookahead(g, deploy.lookahead, time, x)
    x = g.raised("output/cast", x)
    order = [1, 0, 2] if deploy.lookahead is None else [0, 2, 1]
    x = g.node("Transpose", "output/batch_first", x, perm=order)
    weight = g.constant("output/weight", deploy.output_weight.astype(np.float32, copy=False))
    x = g.node("MatMul", "output", x, weight)
    bias = g.constant("output/bias", deploy.output_bias.astype(np.float32, copy=False))
    x = g.node("Add", "output/add", x, bias)
    g.node("LogSoftmax", LOG_PROBS, x, axis=-1)


def _lookahead(g: GraphBuilder, weights: Array, time: TimeAxis, x: str) -> str:
    """Write the lookahead: x (batch, hidden, time), weights (hidden, 1, context).

    The convolution has an axis of one bin: ONNX Runtime has a fast kernel for depthwise ones of two
    axes alone. Measured on a Zen 4, 1024 units, context 20, one block each of 64 streams: 4.8 ms
    instead of 16.8.
    """
    weight = g.weight("lookahead/weight", weights[:, :, None])
    x, (before, after) = time.beside("lookahead", x, axis=2, before=0, after=weights.shape[2] - 1)
    x = g.node("Unsqueeze", "lookahead/bin", x, g.integers(2))
    pads = [0, before, 0, after]
    x = g.node("Conv", "lookahead", x, weight, group=len(weights), pads=pads)
    x = _hardtanh(g, "lookahead/clip", x)
    return g.node("Squeeze", "lookahead/time", x, g.integers(2))


def _hardtanh(g: GraphBuilder, name: str, x: str) -> str:
    return g.node("Clip", name, x, g.scalar(0), g.scalar(LARGEST_ACTIVATION))
