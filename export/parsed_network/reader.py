"""Reads the network that TensorRT's parser made of an ONNX file into plain data.

Everything that touches TensorRT's `INetworkDefinition` is here; what comes out is Python and
numpy, so that it can be computed without TensorRT (`evaluator`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ds2deploy.export.parsed_network.layers import NOT_BUILT, Layer, ParsedNetwork
from ds2deploy.export.parsed_network.parser_errors import explain_parser_errors
from ds2deploy.runtimes.errors import ModelFileError
from ds2deploy.runtimes.tensorrt.library import TensorRt

Weights = npt.NDArray[Any]

# Attributes by kind of layer: the class that has them, and their names.
LAYERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ACTIVATION": ("IActivationLayer", ("type", "alpha", "beta")),
    "CAST": ("ICastLayer", ("to_type",)),
    "CONCATENATION": ("IConcatenationLayer", ("axis",)),
    "CONSTANT": ("IConstantLayer", ("weights", "shape")),
    "CONVOLUTION": (
        "IConvolutionLayer",
        (
            "kernel", "bias", "kernel_size_nd", "num_output_maps", "num_groups", "stride_nd",
            "dilation_nd", "padding_mode", "pre_padding", "post_padding",
        ),
    ),
    "ELEMENTWISE": ("IElementWiseLayer", ("op",)),
    "FILL": ("IFillLayer", ("operation", "shape", "alpha", "beta")),
    "GATHER": ("IGatherLayer", ("axis", "mode", "num_elementwise_dims")),
    "IDENTITY": ("IIdentityLayer", ()),
    "ITERATOR": ("IIteratorLayer", ("axis", "reverse", "loop")),
    "LOOP_OUTPUT": ("ILoopOutputLayer", ("axis", "kind", "loop")),
    "MATRIX_MULTIPLY": ("IMatrixMultiplyLayer", ("op0", "op1")),
    "RECURRENCE": ("IRecurrenceLayer", ("loop",)),
    "REDUCE": ("IReduceLayer", ("op", "axes", "keep_dims")),
    "SCALE": ("IScaleLayer", ("mode", "shift", "scale", "power", "channel_axis")),
    "SELECT": ("ISelectLayer", ()),
    "SHAPE": ("IShapeLayer", ()),
    "SHUFFLE": (
        "IShuffleLayer",
        ("first_transpose", "reshape_dims", "second_transpose", "zero_is_placeholder"),
    ),
    "SLICE": ("ISliceLayer", ("start", "shape", "stride", "axes", "mode")),
    "SOFTMAX": ("ISoftMaxLayer", ("axes",)),
    "SQUEEZE": ("ISqueezeLayer", ()),
    "TRIP_LIMIT": ("ITripLimitLayer", ("kind", "loop")),
    "UNARY": ("IUnaryLayer", ("op",)),
    "UNSQUEEZE": ("IUnsqueezeLayer", ()),
}  # fmt: skip


class TensorRtParse:
    """A parsed ONNX file: the network, and what must live as long as it.

    Args:
        path: path of the ONNX file.
        library: TensorRT or TensorRT-RTX.

    Raises:
        ModelFileError: the parser refuses the file; names the part of the model and the reason.
    """

    def __init__(self, path: Path, library: TensorRt) -> None:
        trt = library.module
        self._logger = _quiet_logger(trt)
        self._builder = trt.Builder(self._logger)
        # Its number differs between the releases: never a literal.
        flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self._builder.create_network(flag)
        self._parser = trt.OnnxParser(self.network, self._logger)
        if not self._parser.parse(path.read_bytes()):  # a name need not be UTF-8
            raise ModelFileError(explain_parser_errors(path, self._parser, library))


def read_network(path: str | Path, library: TensorRt) -> ParsedNetwork:
    """Parse an ONNX file with TensorRT and read the network that comes of it.

    Raises:
        ModelFileError: the parser refuses the file, or makes a layer of a kind that is not known
            here; names it.
    """
    path = Path(path)
    parsed = TensorRtParse(path, library)
    network = parsed.network
    read_weights = _weights_reader(path)
    layers, dtypes = [], {}
    for index in range(network.num_layers):
        layer, types = _read_layer(network.get_layer(index), library, read_weights, path)
        layers.append(layer)
        dtypes.update(types)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    dtypes.update({tensor.name: tensor.dtype.name for tensor in inputs})
    return ParsedNetwork(
        title=library.title,
        inputs=tuple(tensor.name for tensor in inputs),
        outputs=tuple(tensor.name for tensor in outputs),
        layers=tuple(layers),
        dtypes=dtypes,
    )


def _read_layer(
    layer: Any, library: TensorRt, read_weights: Callable[..., Weights], path: Path
) -> tuple[Layer, dict[str, str]]:
    # Before the class is set: an activation layer has another `type`, which hides this one.
    kind = layer.type.name
    if kind not in LAYERS:
        raise ModelFileError(
            f"{path}: {library.title} made the layer {layer.name!r} of kind {kind}, which the "
            f"check of the parsed network does not support, {NOT_BUILT}"
        )
    class_name, names = LAYERS[kind]
    layer.__class__ = getattr(library.module, class_name)
    inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
    outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
    attributes = {name: _plain(getattr(layer, name)) for name in names}
    for name in {"kernel", "bias", "weights", "shift", "scale", "power"} & set(names):
        attributes[name] = read_weights(attributes[name], layer.name, name)
    return (
        Layer(
            kind=kind,
            name=layer.name,
            inputs=tuple(None if tensor is None else tensor.name for tensor in inputs),
            outputs=tuple(tensor.name for tensor in outputs),
            attributes=attributes,
        ),
        {tensor.name: tensor.dtype.name for tensor in outputs},
    )


def _plain(value: Any) -> Any:
    """TensorRT's enums by their names, its shapes and permutations as tuples, a loop by name."""
    if value is None or isinstance(value, (bool, int, float, str, np.ndarray)):
        return value
    if hasattr(value, "__members__"):
        return value.name
    if type(value).__name__ == "ILoop":
        return value.name
    if type(value).__name__ == "Weights":
        return value
    try:
        return tuple(int(item) for item in value)
    except ValueError:  # shapes of unknown rank have a negative length
        return None


def _weights_reader(path: Path) -> Callable[..., Weights]:
    """Read weights into arrays of their own.

    TensorRT's Python API hands out no bfloat16: numpy has no such type. Those are taken from the
    ONNX file, by the name of the node or initializer that stands behind the layer.
    """
    stored: dict[str, Weights] | None = None

    def read(weights: Any, layer: str, role: str) -> Weights:
        nonlocal stored
        if isinstance(weights, np.ndarray):
            return weights.astype(np.float32 if weights.dtype.kind == "f" else weights.dtype)
        if weights.size == 0:
            return np.zeros(0, np.float32)
        if stored is None:
            stored = _stored_weights(path)
        found = stored.get(layer if role == "weights" else f"{layer} {role}")
        if found is None or found.size != weights.size:
            raise ModelFileError(
                f"{path}: the bfloat16 {role} of layer {layer!r} were not found in it, and the "
                f"parsed network cannot be checked without them, {NOT_BUILT}"
            )
        return found

    return read


def _stored_weights(path: Path) -> dict[str, Weights]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    found: dict[str, Weights] = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float32)
        for tensor in graph.initializer
    }
    for node in graph.node:
        if node.op_type == "Conv":
            roles = zip(("kernel", "bias"), node.input[1:], strict=False)
            found.update({f"{node.name} {role}": found[name] for role, name in roles})
    return found


def _quiet_logger(trt: Any) -> Any:
    """Make a logger that prints almost nothing: the parser's messages come through its errors."""
    return trt.Logger(trt.Logger.INTERNAL_ERROR)
