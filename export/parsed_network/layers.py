"""A parsed network as plain data: layers, tensors, types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy.typing as npt

from ds2deploy.runtimes.errors import ModelFileError

Array: TypeAlias = npt.NDArray[Any]

Inputs: TypeAlias = Sequence[Any]
"""Arrays; None for an optional input that is not there."""

Operation = Callable[[Inputs], Array]


class Layer(NamedTuple):
    """One layer as TensorRT holds it.

    Attributes:
        kind: name of its `LayerType`.
        name: name that the parser gave it; that of the ONNX node if there is one.
        inputs: tensors; None for an optional one that is not there.
        outputs: tensors.
        attributes: other parameters of its computation.
    """

    kind: str
    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


class ParsedNetwork(NamedTuple):
    """A network, as plain data.

    Attributes:
        title: name and version of the parser's library.
        inputs: tensors.
        outputs: tensors.
        layers: layers in the order of the network, which is not that of computation.
        dtypes: name of the `DataType` of every tensor.
    """

    title: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    dtypes: dict[str, str]


NOT_BUILT = "no engine was built; try another release of TensorRT"
"""End of the message of a network that cannot be checked."""


def unknown(layer: Layer, what: str) -> ModelFileError:
    """Make the error for a layer that cannot be computed."""
    return ModelFileError(
        f"TensorRT's layer {layer.name!r} ({layer.kind}): the check of the parsed network does not "
        f"support {what} = {layer.attributes.get(what, layer.kind)}, {NOT_BUILT}"
    )
