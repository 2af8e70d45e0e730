"""The loops of a parsed network: what TensorRT makes of a recurrent layer.

A loop has a trip limit, iterators (which deal out an input step by step, forwards or backwards),
recurrences (the state), a body, and outputs that gather what every step gives. Only what depends
on the state is computed step by step; what depends on iterators alone, such as the product of the
input and its weights, is computed for all steps at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from ds2deploy.export.parsed_network.layers import (
    Array,
    Inputs,
    Layer,
    Operation,
    ParsedNetwork,
    unknown,
)
from ds2deploy.export.parsed_network.operations import operation
from ds2deploy.export.parsed_network.rounding import rounder

KINDS = ("CONCATENATE", "REVERSE")
"""Kinds of loop outputs that gather the results of all steps."""

BOUNDARIES = ("TRIP_LIMIT", "ITERATOR", "RECURRENCE", "LOOP_OUTPUT")


class Body(NamedTuple):
    """A layer inside a loop: what it computes, from what, into what."""

    compute: Operation
    inputs: tuple[str | None, ...]
    output: str


class Loop:
    """One loop of a network, ready to be computed.

    Args:
        network: the whole network.
        boundaries: indices of its trip limit, iterators, recurrences and outputs.

    Attributes:
        layers: indices of all its layers.
        inputs: tensors from outside that it needs.
        outputs: tensors that it gives.
    """

    def __init__(self, network: ParsedNetwork, boundaries: list[int]) -> None:
        def of(kind: str) -> list[Layer]:
            return [network.layers[i] for i in boundaries if network.layers[i].kind == kind]

        self._limit, *others = of("TRIP_LIMIT")
        if others or self._limit.attributes["kind"] != "COUNT":
            raise unknown(self._limit, "kind")
        self._iterators, self._recurrences = of("ITERATOR"), of("RECURRENCE")
        self._results = of("LOOP_OUTPUT")
        state_names = {layer.outputs[0] for layer in self._recurrences}
        for layer in self._results:
            # The last value of a state is that after the last step.
            last = layer.attributes["kind"] == "LAST_VALUE"
            if not (layer.inputs[0] in state_names if last else layer.attributes["kind"] in KINDS):
                raise unknown(layer, "kind")
        body = _body(network, self._iterators + self._recurrences)
        self.layers = frozenset(boundaries) | frozenset(body)
        ordered = in_order([network.layers[i] for i in body])
        over_time = {layer.outputs[0] for layer in self._iterators}
        inside = state_names | {layer.outputs[0] for layer in ordered}
        self._at_once: list[Body] = []
        self._each_step: list[Body] = []
        for layer in ordered:
            compiled = self._lifted(layer, over_time, inside, network)
            if compiled is not None:
                self._at_once.append(compiled)
                over_time.add(layer.outputs[0])
            else:
                self._each_step.append(_compiled(layer, operation(layer), network))
        self.outputs = tuple(layer.outputs[0] for layer in self._results)
        made = {name for i in self.layers for name in network.layers[i].outputs}
        needed = {name for i in self.layers for name in network.layers[i].inputs if name}
        self.inputs = frozenset(needed - made)

    def run(self, values: dict[str, Array]) -> dict[str, Array]:
        """Compute it from the values outside; gives those of its outputs."""
        steps = int(values[str(self._limit.inputs[0])].reshape(()))
        sequences = {layer.outputs[0]: _dealt(layer, values, steps) for layer in self._iterators}
        for body in self._at_once:
            arguments = [_known(name, sequences, values) for name in body.inputs]
            sequences[body.output] = body.compute(arguments)
        local = {name: values[name] for name in self.inputs}
        states = {layer.outputs[0]: values[str(layer.inputs[0])] for layer in self._recurrences}
        gathered: list[list[Array]] = [[] for _ in self._results]
        for step in range(steps):
            local.update(states)
            local.update({name: sequence[step] for name, sequence in sequences.items()})
            for body in self._each_step:
                arguments = [None if name is None else local[name] for name in body.inputs]
                local[body.output] = body.compute(arguments)
            for layer, gather in zip(self._results, gathered, strict=True):
                gather.append(local[str(layer.inputs[0])])
            # From the old states, all of them, and only then the new ones.
            states = {layer.outputs[0]: local[str(layer.inputs[1])] for layer in self._recurrences}
        return {
            layer.outputs[0]: states[str(layer.inputs[0])]
            if layer.attributes["kind"] == "LAST_VALUE"
            else _gathered(layer, items)
            for layer, items in zip(self._results, gathered, strict=True)
        }

    def _lifted(
        self, layer: Layer, over_time: set[str], inside: set[str], network: ParsedNetwork
    ) -> Body | None:
        """Compute a layer over all steps at once, time as an axis in front; None if it cannot."""
        moving = [name in over_time for name in layer.inputs]
        if layer.kind == "UNSQUEEZE" and moving == [True, False]:
            function: Operation = lambda x: np.expand_dims(x[0], tuple(int(i) + 1 for i in x[1]))  # noqa: E731
        elif layer.kind == "CONCATENATION" and all(moving):
            axis = layer.attributes["axis"] + 1
            function = lambda x: np.concatenate(x, axis)  # noqa: E731
        elif layer.kind == "MATRIX_MULTIPLY" and moving == [True, False]:
            if layer.attributes["op0"] != "NONE" or layer.inputs[1] in inside:
                return None
            function = _product_over_time(operation(layer))
        else:
            return None
        return _compiled(layer, function, network)


def find_loops(network: ParsedNetwork) -> list[Loop]:
    """All loops of a network; a loop inside a loop is not known here."""
    boundaries: dict[str, list[int]] = {}
    for index, layer in enumerate(network.layers):
        if layer.kind in BOUNDARIES:
            boundaries.setdefault(layer.attributes["loop"], []).append(index)
    return [Loop(network, indices) for indices in boundaries.values()]


def _body(network: ParsedNetwork, sources: list[Layer]) -> list[int]:
    """Find the indices of the layers that depend on an iterator or a recurrence."""
    users: dict[str, list[int]] = {}
    for index, layer in enumerate(network.layers):
        for name in filter(None, layer.inputs):
            users.setdefault(name, []).append(index)
    found: set[int] = set()
    reached = [layer.outputs[0] for layer in sources]
    while reached:
        for index in users.get(reached.pop(), []):
            layer = network.layers[index]
            if layer.kind in ("ITERATOR", "TRIP_LIMIT"):
                raise unknown(layer, "loop")
            if index not in found and layer.kind not in BOUNDARIES:
                found.add(index)
                reached.extend(layer.outputs)
    return sorted(found)


class Node(Protocol):
    """A computation on tensors by name."""

    @property
    def inputs(self) -> Iterable[str | None]:
        """Tensors that it takes; None for an optional one that is not there."""

    @property
    def outputs(self) -> Iterable[str]:
        """Tensors that it gives."""


N = TypeVar("N", bound=Node)


def in_order(nodes: Sequence[N]) -> list[N]:
    """Sort nodes, each after those whose outputs it takes."""
    made_by = {name: number for number, node in enumerate(nodes) for name in node.outputs}
    graph = {
        number: {made_by[name] for name in node.inputs if name in made_by}
        for number, node in enumerate(nodes)
    }
    return [nodes[number] for number in TopologicalSorter(graph).static_order()]


def _compiled(layer: Layer, compute: Operation, network: ParsedNetwork) -> Body:
    to_type = rounder(layer, network.dtypes)
    return Body(lambda inputs: to_type(compute(inputs)), layer.inputs, layer.outputs[0])


def _known(name: str | None, first: dict[str, Array], then: dict[str, Array]) -> Array | None:
    if name is None:
        return None
    return first[name] if name in first else then[name]


def _dealt(layer: Layer, values: dict[str, Array], steps: int) -> Array:
    """Values of an iterator, step by step: (steps, ...)."""
    sequence = np.moveaxis(values[str(layer.inputs[0])], layer.attributes["axis"], 0)
    dealt = sequence[:steps]  # backwards from the last step, not from the end of the input
    return dealt[::-1] if layer.attributes["reverse"] else dealt


def _product_over_time(multiply: Operation) -> Operation:
    """Multiply (time, directions, batch, n) with weights (directions, n, m), at once.

    With the time beside the batch it is one large product for each direction, which a CPU
    computes many times faster than a small one for each step.
    """

    def product(inputs: Inputs) -> Array:
        x, weights = inputs
        time, directions, batch, count = x.shape
        rows = x.swapaxes(0, 1).reshape(directions, time * batch, count)
        result = multiply([rows, weights])
        return result.reshape(directions, time, batch, -1).swapaxes(0, 1)

    return product


def _gathered(layer: Layer, items: list[Array]) -> Array:
    backwards = layer.attributes["kind"] == "REVERSE"
    return np.stack(items[::-1] if backwards else items, layer.attributes["axis"])
