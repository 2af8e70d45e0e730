"""Writes an ONNX model node by node; every node and every value has a name that a person knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ds2deploy.runtimes.artifact import ModelShape, Precision
from ds2deploy.runtimes.errors import ParityError
from ds2deploy.runtimes.tensors import Tensor

OPSETS: dict[Precision, int] = {"fp32": 18, "fp16": 18, "bf16": 22, "int8": 18}
"""18 is what every supported runtime reads; Conv and the RNNs take bfloat16 from 22 on."""

IR_VERSIONS: dict[int, int] = {18: 8, 22: 10}
"""IR version that came with each opset: no newer than what its readers know."""

DTYPES: dict[Precision, Any] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "int8": np.float32,
}
"""Types of the graph's values; in int8 some layers multiply integers, see `quantization`."""

MICROSOFT = "com.microsoft"
"""Domain of the operators that ONNX Runtime adds to the standard's."""


class GraphBuilder:
    """Collects nodes and initializers; values are referred to by their names.

    Args:
        precision: number format of weights and activations.
    """

    def __init__(self, precision: Precision) -> None:
        self.dtype = DTYPES[precision]
        self._float32 = DTYPES[precision] is np.float32
        self._opset = OPSETS[precision]
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, which bears its name."""
        return self.node_of(operator, name, (name,), *inputs, **attributes)[0]

    def node_of(
        self, operator: str, name: str, outputs: tuple[str, ...], *inputs: str, **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node with several outputs; an empty name is one that nobody needs."""
        self._nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs

    def lowered(self, name: str, x: str) -> str:
        """X, which is float32, in the graph's type."""
        return x if self._float32 else self.number(name, x)

    def raised(self, name: str, x: str) -> str:
        """X, which is of the graph's type, in float32."""
        if self._float32:
            return x
        return self.node("Cast", name, x, to=TensorProto.FLOAT)

    def renamed(self, name: str, x: str, already: bool = False) -> str:
        """X in float32, which it may be already, under the name of an output."""
        if already or self._float32:
            return self.node("Identity", name, x)
        return self.raised(name, x)

    def number(self, name: str, x: str) -> str:
        """X of any type as numbers of the graph's."""
        to = int(helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))
        return self.node("Cast", name, x, to=to)

    def weight(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add an array in the graph's precision.

        Raises:
            ParityError: a number is larger than that precision can hold.
        """
        with np.errstate(over="ignore"):
            rounded = array.astype(self.dtype, copy=False)
        if not np.isfinite(rounded.astype(np.float32, copy=False)).all():
            raise ParityError(
                f"weights {name!r} are as large as {np.abs(array).max():.3g}, beyond the range of "
                f"{np.dtype(self.dtype).name}; choose --precision fp32"
            )
        return self.constant(name, rounded)

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add an array as it is; the same name twice is the same array."""
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def scalar(self, value: float) -> str:
        """Add a constant of the graph's precision, shared by its users."""
        return self.constant(f"value_{value:g}", np.array(value, self.dtype))

    def float32(self, value: float) -> str:
        """Add a float32 constant, whatever the graph's precision, shared by its users."""
        return self.constant(f"float_{value:g}", np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        """Add an int64 vector, shared by its users: axes, shapes."""
        return self.constant("_".join(map(str, ("int", *values))), np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """Add an int64 scalar, shared by its users."""
        return self.constant(f"int_scalar_{value}", np.array(value, np.int64))

    def slice(self, name: str, x: str, axis: int, start: int, end: int | None = None) -> str:
        """Cut a part of one axis; to its end if none is given."""
        last = np.iinfo(np.int64).max if end is None else end
        return self.node(
            "Slice", name, x, self.integers(start), self.integers(last), self.integers(axis)
        )

    def model(self, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> onnx.ModelProto:
        """Return the finished model."""
        graph = helper.make_graph(
            self._nodes,
            "deepspeech2",
            [_value_info(tensor) for tensor in inputs],
            [_value_info(tensor) for tensor in outputs],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", self._opset)]
        if any(node.domain == MICROSOFT for node in self._nodes):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = IR_VERSIONS[self._opset]
        model.producer_name = "ds2deploy"
        return model


def _value_info(tensor: Tensor) -> onnx.ValueInfoProto:
    kind = TensorProto.FLOAT if tensor.dtype == "float32" else TensorProto.INT64
    return helper.make_tensor_value_info(tensor.name, kind, tensor.dims)


def recurrent_operator(
    g: GraphBuilder,
    shape: ModelShape,
    units: int,
    operator: str,
    name: str,
    inputs: list[str],
    states: tuple[str, ...],
    **attributes: Any,
) -> str:
    """One layer: (time, batch, features) to (time, batch, hidden), directions summed.

    Args:
        g: the graph.
        shape: directions.
        units: units of the layer, per direction.
        operator: its type.
        name: name of the layer.
        inputs: inputs of the operator, the frames first.
        states: names for the states that it ends with; empty where nobody needs them.
        attributes: further attributes of the operator.
    """
    x, *_ = g.node_of(
        operator,
        name,
        (name, *states),
        *inputs,
        hidden_size=units,
        direction="bidirectional" if shape.bidirectional else "forward",
        **attributes,
    )
    if not shape.bidirectional:
        return g.node("Squeeze", f"{name}/direction", x, g.integers(1))
    return g.node("ReduceSum", f"{name}/sum", x, g.integers(1), keepdims=0)
