"""Multiply-adds of a network, layer by layer."""

from __future__ import annotations

import math

from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.geometry import CONV1, CONV2, conv1_bins, conv2_bins, conv_features

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def multiply_adds(shape: ModelShape, bins: int, labels: int) -> dict[str, int]:
    """Count the multiply-adds of one output frame.

    Args:
        shape: dimensions of the network.
        bins: frequency bins of the features.
        labels: number of labels, blank included.

    Returns:
        Counts by layer: `conv1`, `conv2`, `rnn1`, ..., `lookahead`, `output`.
    """
    first, second = shape.maps
    found = {
        "conv1": first * conv1_bins(bins) * math.prod(CONV1.kernel),
        "conv2": first * second * conv2_bins(bins) * math.prod(CONV2.kernel),
    }
    inputs = conv_features(bins, second)
    directions = 2 if shape.bidirectional else 1
    sizes = zip(shape.units, shape.input_ranks, strict=True)
    for number, (units, rank) in enumerate(sizes, start=1):
        rows = directions * GATES[shape.rnn] * units
        found[f"rnn{number}"] = rank * inputs + rows * ((rank or inputs) + units)
        inputs = units
    if not shape.bidirectional:
        found["lookahead"] = inputs * shape.lookahead
    found["output"] = inputs * labels
    return found
