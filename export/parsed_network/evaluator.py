"""Computes the network that TensorRT parsed, on the CPU.

What TensorRT is about to compile can thus be compared with what was trained before any engine is
built, on a machine without a GPU: every layer as the parser made it, loops included, each value
rounded to the type that the network gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ds2deploy.export.parity.check import check_parity
from ds2deploy.export.parity.reference import Reference
from ds2deploy.export.parity.report import ParityReport, Progress
from ds2deploy.export.parsed_network.layers import Array, Layer, Operation, ParsedNetwork
from ds2deploy.export.parsed_network.loops import find_loops, in_order
from ds2deploy.export.parsed_network.operations import operation
from ds2deploy.export.parsed_network.reader import read_network
from ds2deploy.export.parsed_network.rounding import rounder
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.streaming.state import BaseSession
from ds2deploy.runtimes.tensorrt.library import TensorRt
from ds2deploy.runtimes.tensors import Tensors


class NetworkEvaluator:
    """A parsed network that can be computed.

    Args:
        network: a network from `read_network`.

    Raises:
        ModelFileError: it holds a layer that is not known here; names it.
    """

    def __init__(self, network: ParsedNetwork) -> None:
        self._network = network
        loops = find_loops(network)
        inside = {layer for loop in loops for layer in loop.layers}
        steps: list[_Step] = [_Step(loop.inputs, loop.outputs, loop.run) for loop in loops]
        for index, layer in enumerate(network.layers):
            if index not in inside:
                steps.append(_single(layer, network.dtypes))
        self._steps = in_order(steps)
        self._last_use = {
            name: number for number, step in enumerate(self._steps) for name in step.inputs
        }

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Compute the network.

        Args:
            inputs: an array for each input tensor.

        Returns:
            An array for each output tensor: float32, int64 or bool.
        """
        values: dict[str, Array] = dict(inputs)
        # Saturated sigmoids and log(0) are what the device computes too.
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            for number, step in enumerate(self._steps):
                values.update(step.compute(values))
                for name in step.inputs:  # the largest arrays are hundreds of megabytes
                    if self._last_use[name] == number and name not in self._network.outputs:
                        values.pop(name, None)
        return {name: values[name] for name in self._network.outputs}


class NetworkSession(BaseSession):
    """The parsed network of an ONNX artifact, as a session.

    Args:
        path: the artifact.
        library: whose parser reads it.
        description: metadata of the artifact.

    Raises:
        ModelFileError: the parser refuses the file, or a layer is not known here.
    """

    def __init__(self, path: Path, library: TensorRt, description: ArtifactDescription) -> None:
        network = read_network(path, library)
        self._evaluator = NetworkEvaluator(network)
        self.description = description
        self.runtime = f"network parsed by {network.title}, on the CPU"

    def compute(self, tensors: Tensors) -> Tensors:
        """Run the network once; see `Session.compute`."""
        return self._evaluator.run(dict(tensors))


def check_network(
    onnx: Path,
    description: ArtifactDescription,
    library: TensorRt,
    reference: Reference,
    progress: Progress = lambda message: None,
) -> ParityReport:
    """Compare the network that TensorRT parsed, computed on the CPU, with the reference.

    Returns:
        The report; whether a disagreement is an error is the caller's decision.

    Raises:
        ModelFileError: the parser refuses the file, or a layer is not known here.
    """
    progress(f"parsing the network with {library.title}")
    session = NetworkSession(onnx, library, description)
    return check_parity(
        session, reference, lambda what: progress(f"comparing the parsed network, {what}")
    )


class _Step(NamedTuple):
    """Something that is computed once: a layer outside of loops, or a whole loop."""

    inputs: frozenset[str]
    outputs: tuple[str, ...]
    compute: Callable[[dict[str, Array]], dict[str, Array]]


def _single(layer: Layer, dtypes: dict[str, str]) -> _Step:
    compute: Operation = operation(layer)
    output = layer.outputs[0]
    to_type = rounder(layer, dtypes)

    def run(values: dict[str, Array]) -> dict[str, Array]:
        arguments = [None if name is None else values[name] for name in layer.inputs]
        return {output: to_type(compute(arguments))}

    return _Step(frozenset(filter(None, layer.inputs)), layer.outputs, run)
