"""The deployed network as an ONNX graph, written node by node.

`torch.onnx.export` unrolls or freezes time in a recurrent layer, so the graph is written here:
batch and time stay symbolic, every node has a name that a person recognises in an error of a
device's parser, and the operators are those that ONNX Runtime and TensorRT both take.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ds2deploy.export.lowering import GATE_COLUMNS, DeployModel
from ds2deploy.model import LARGEST_ACTIVATION
from ds2deploy.runtimes.artifact import (
    CONV_MAPS,
    FEATURES,
    LENGTHS,
    LOG_PROBS,
    OUTPUT_LENGTHS,
    TIME_STRIDE,
    Precision,
    conv_bins,
)

OPSETS: dict[Precision, int] = {"fp32": 18, "fp16": 18, "bf16": 22}
"""18 is what every supported runtime reads; Conv and the RNNs take bfloat16 from 22 on."""

IR_VERSIONS: dict[int, int] = {18: 8, 22: 10}
"""Of an opset, the IR version that came with it: no newer than what its readers know."""

DTYPES: dict[Precision, Any] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
}
OPERATORS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


class GraphBuilder:
    """Collects nodes and initializers; values are referred to by their names.

    Args:
        precision: of weights and activations.
    """

    def __init__(self, precision: Precision) -> None:
        self.dtype = DTYPES[precision]
        self._opset = OPSETS[precision]
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, which bears its name."""
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add an array in the graph's precision."""
        return self.constant(name, array.astype(self.dtype, copy=False))

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add an array as it is; the same name twice is the same array."""
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def scalar(self, value: float) -> str:
        """A constant of the graph's precision, shared by its users."""
        return self.constant(f"value_{value:g}", np.array(value, self.dtype))

    def integers(self, *values: int) -> str:
        """An int64 vector, shared by its users: axes, shapes."""
        return self.constant("_".join(map(str, ("int", *values))), np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """An int64 scalar, shared by its users."""
        return self.constant(f"int_scalar_{value}", np.array(value, np.int64))

    def model(
        self, inputs: Iterable[onnx.ValueInfoProto], outputs: Iterable[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes, "deepspeech2", list(inputs), list(outputs), list(self._constants.values())
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._opset)])
        model.ir_version = IR_VERSIONS[self._opset]
        model.producer_name = "ds2deploy"
        return model


def build_graph(deploy: DeployModel, precision: Precision) -> onnx.ModelProto:
    """Write the deployed network.

    Args:
        deploy: from `lower`.
        precision: of weights and activations; inputs, the output layer and log-softmax stay fp32.

    Returns:
        A model with inputs features (batch, 1, bins, time) float32 and lengths (batch,) int64,
        outputs log_probs (batch, time', labels) float32 and output_lengths (batch,) int64.
    """
    g = GraphBuilder(precision)
    x = _masked_input(g, precision)
    output_lengths = g.node(
        "Div", OUTPUT_LENGTHS, g.node("Add", "lengths/plus_one", LENGTHS, g.integer(1)),
        g.integer(TIME_STRIDE),
    )  # fmt: skip
    x = _convolution(g, deploy, 0, x)
    valid = g.node("Cast", "valid/mask", _valid(g, "valid", x, output_lengths), to=_onnx_type(g))
    mask = g.node("Unsqueeze", "valid/maps", valid, g.integers(1, 2))
    x = g.node("Mul", "conv1/mask", x, mask)
    x = g.node("Mul", "conv2/mask", _convolution(g, deploy, 1, x), mask)
    rows = CONV_MAPS * conv_bins(deploy.bins)
    x = g.node("Reshape", "rnn/rows", x, g.integers(0, rows, -1))
    x = g.node("Transpose", "rnn/time_first", x, perm=[2, 0, 1])
    x = _recurrent_layers(g, deploy, x, valid)
    _labels(g, deploy, x, precision)
    float_, int_ = TensorProto.FLOAT, TensorProto.INT64
    batch, time = "batch", "time"
    return g.model(
        [
            helper.make_tensor_value_info(FEATURES, float_, [batch, 1, deploy.bins, time]),
            helper.make_tensor_value_info(LENGTHS, int_, [batch]),
        ],
        [
            helper.make_tensor_value_info(LOG_PROBS, float_, [batch, "output_time", deploy.labels]),
            helper.make_tensor_value_info(OUTPUT_LENGTHS, int_, [batch]),
        ],
    )


def _masked_input(g: GraphBuilder, precision: Precision) -> str:
    """Zero what stands past a length: a device may hand over a buffer that it used before.

    A selection, not a product: what stands there may be NaN.
    """
    valid = g.node(
        "Unsqueeze", "input/maps", _valid(g, "input", FEATURES, LENGTHS), g.integers(1, 2)
    )
    zero = g.constant("input/zero", np.array(0, np.float32))
    x = g.node("Where", "input/mask", valid, FEATURES, zero)
    return x if precision == "fp32" else g.node("Cast", "input/cast", x, to=_onnx_type(g))


def _valid(g: GraphBuilder, name: str, x: str, lengths: str) -> str:
    """Whether a frame of x (batch, maps, bins, time) is before its length: (batch, time)."""
    time = g.node("Shape", f"{name}/time", x, start=3, end=4)
    time = g.node("Squeeze", f"{name}/frames", time)
    frames = g.node("Range", f"{name}/range", g.integer(0), time, g.integer(1))
    column = g.node("Unsqueeze", f"{name}/lengths", lengths, g.integers(1))
    return g.node("Less", f"{name}/before_end", frames, column)


def _convolution(g: GraphBuilder, deploy: DeployModel, index: int, x: str) -> str:
    conv, name = deploy.convolutions[index], f"conv{index + 1}"
    weight = g.weight(f"{name}/weight", conv.weight)
    bias = g.weight(f"{name}/bias", conv.bias)
    x = g.node("Conv", name, x, weight, bias, strides=conv.stride, pads=conv.padding * 2)
    return _hardtanh(g, f"{name}/clip", x)


def _recurrent_layers(g: GraphBuilder, deploy: DeployModel, x: str, valid: str) -> str:
    """X (time, batch, features), valid (batch, time) in the graph's type."""
    time_first = g.node("Transpose", "valid/time_first", valid, perm=[1, 0])
    mask = g.node("Unsqueeze", "valid/frames_mask", time_first, g.integers(2))
    first = np.eye(1, GATE_COLUMNS)[None]
    flag = mask
    if deploy.shape.rnn == "gru":
        flag = g.node("Sub", "valid/padded", g.scalar(1), mask)
    gate = g.node("Mul", "valid/columns", flag, g.weight("valid/first_column", first))
    state = _zero_state(g, deploy, x)
    for index, weights in enumerate(deploy.recurrences, start=1):
        name = f"rnn{index}"
        x = g.node("Concat", f"{name}/input", x, gate, axis=2)
        arrays = [g.weight(f"{name}/{key}", array) for key, array in weights._asdict().items()]
        x = _recurrent(g, deploy, name, x, [*arrays, *state])
        if index < len(deploy.recurrences) or deploy.lookahead is not None:
            x = g.node("Mul", f"{name}/mask", x, mask)
    return x


def _zero_state(g: GraphBuilder, deploy: DeployModel, x: str) -> list[str]:
    """The operators' optional inputs from sequence_lens on: initial states in the graph's type.

    Left out, they are zeros as well; but TensorRT's parser (10.1) then makes them in float32,
    which a strongly typed network in fp16 refuses.
    """
    directions = 2 if deploy.shape.bidirectional else 1
    batch = g.node("Shape", "rnn/batch", x, start=1, end=2)
    sizes = (g.integers(directions), batch, g.integers(deploy.shape.hidden))
    size = g.node("Concat", "rnn/state_shape", *sizes, axis=0)
    state = g.node("Expand", "rnn/zero_state", g.scalar(0), size)
    return ["", state, state] if deploy.shape.rnn == "lstm" else ["", state]


def _recurrent(g: GraphBuilder, deploy: DeployModel, name: str, x: str, inputs: list[str]) -> str:
    """One layer: (time, batch, features) to (time, batch, hidden), directions summed.

    The inputs are the operator's W, R, B, sequence_lens and initial states.
    """
    shape = deploy.shape
    attributes: dict[str, Any] = {"hidden_size": shape.hidden}
    if shape.rnn == "gru":
        attributes["linear_before_reset"] = 1
    if not shape.bidirectional:
        x = g.node(OPERATORS[shape.rnn], name, x, *inputs, direction="forward", **attributes)
        return g.node("Squeeze", f"{name}/direction", x, g.integers(1))
    x = g.node(OPERATORS[shape.rnn], name, x, *inputs, direction="bidirectional", **attributes)
    return g.node("ReduceSum", f"{name}/sum", x, g.integers(1), keepdims=0)


def _labels(g: GraphBuilder, deploy: DeployModel, x: str, precision: Precision) -> None:
    """(time, batch, hidden) to log_probs (batch, time, labels), from the output layer on in fp32.

    Logits of 16 and more are 1/64 apart in fp16. With this product, the smallest of all, in fp32,
    three trained models came 5, 25 and 28 % closer to PyTorch. The cast stands before the
    transposition: ONNX Runtime 1.31 crashes where it stands between that and the product.
    """
    if deploy.lookahead is not None:
        x = g.node("Transpose", "lookahead/time_last", x, perm=[1, 2, 0])
        weight = g.weight("lookahead/weight", deploy.lookahead)
        context = deploy.lookahead.shape[2]
        x = g.node("Conv", "lookahead", x, weight, group=deploy.shape.hidden, pads=[0, context - 1])
        x = _hardtanh(g, "lookahead/clip", x)
    if precision != "fp32":
        x = g.node("Cast", "output/cast", x, to=TensorProto.FLOAT)
    order = [1, 0, 2] if deploy.lookahead is None else [0, 2, 1]
    x = g.node("Transpose", "output/batch_first", x, perm=order)
    weight = g.constant("output/weight", deploy.output_weight.astype(np.float32, copy=False))
    x = g.node("MatMul", "output", x, weight)
    bias = g.constant("output/bias", deploy.output_bias.astype(np.float32, copy=False))
    x = g.node("Add", "output/add", x, bias)
    g.node("LogSoftmax", LOG_PROBS, x, axis=-1)


def _hardtanh(g: GraphBuilder, name: str, x: str) -> str:
    return g.node("Clip", name, x, g.scalar(0), g.scalar(LARGEST_ACTIVATION))


def _onnx_type(g: GraphBuilder) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(g.dtype)))
