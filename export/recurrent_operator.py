"""One recurrent layer as an operator of the graph, in whatever precision."""

from __future__ import annotations

from typing import Any

from ds2deploy.export.graph_builder import GraphBuilder
from ds2deploy.runtimes.artifact import ModelShape


def recurrent_operator(
    g: GraphBuilder,
    shape: ModelShape,
    operator: str,
    name: str,
    inputs: list[str],
    states: tuple[str, ...],
    **attributes: Any,
) -> str:
    """One layer: (time, batch, features) to (time, batch, hidden), directions summed.

    Args:
        g: the graph.
        shape: hidden size and directions.
        operator: its type.
        name: of the layer.
        inputs: of the operator, the frames first.
        states: names for the states that it ends with; empty where nobody needs them.
        attributes: that it has beside those of every recurrent operator.
    """
    x, *_ = g.node_of(
        operator,
        name,
        (name, *states),
        *inputs,
        hidden_size=shape.hidden,
        direction="bidirectional" if shape.bidirectional else "forward",
        **attributes,
    )
    if not shape.bidirectional:
        return g.node("Squeeze", f"{name}/direction", x, g.integers(1))
    return g.node("ReduceSum", f"{name}/sum", x, g.integers(1), keepdims=0)
