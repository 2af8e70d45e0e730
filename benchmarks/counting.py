"""Operations and bytes of a DeepSpeech 2 network, stage by stage, and a lower bound of its time.

**Operations.** A product of (m, k) with (k, n) has 2 m k n operations, counting multiplications and
additions; a convolution is counted the same way, including its zero padding. Gates, batch norms
(which are folded), masks and the log-softmax are not counted. Any implementation that multiplies
directly must do the counted operations.

**Bytes.** Every stage reads its weights and its input once, and writes its output once. There is
one important exception: a recurrent product depends on the previous step, so that its weights are
read again at every step, for each direction. The weights of one direction are its *working set*,
which is read from a cache if it fits, else from memory. All utterances of a batch share one
reading.

**Least time.** A stage takes at least the time of its operations at the machine's best rate, and at
least the time to read its bytes at the rate for its working set. The larger of the two is the
limit. Stages run one after another, so the network takes at least their sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from ds2deploy.runtimes.alphabet import ENGLISH
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.geometry import (
    CONV1,
    CONV2,
    conv1_bins,
    conv2_bins,
    conv_features,
    output_length,
)

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
FLOAT_BYTES = 4
WEIGHT_BYTES = {"fp32": 4, "int8": 1}


class Stage(NamedTuple):
    """Part of the network; the parts run one after another.

    Attributes:
        name: name of the part, such as `rnn1 recurrent`.
        precision: precision of the products.
        operations: number of multiplications and additions.
        bytes: number of bytes that are read and written.
        working_set: number of bytes that are read repeatedly.
    """

    name: str
    precision: str
    operations: float
    bytes: float
    working_set: float


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Best rates of a machine.

    Attributes:
        multiply: operations per second, by precision.
        read: bytes per second, by the size of the working set in bytes.
    """

    multiply: Mapping[str, float]
    read: Mapping[int, float]

    def reading(self, working_set: float) -> float:
        """Find the bytes per second for a working set: the best rate of those at least as large."""
        as_large = [rate for size, rate in self.read.items() if size >= working_set]
        return max(as_large) if as_large else self.read[max(self.read)]


class Least(NamedTuple):
    """Lower bound of the time of a stage.

    Attributes:
        stage: stage of the network.
        seconds: lower bound of its time.
        binds: limit that determines the bound, `arithmetic` or `reading`.
    """

    stage: Stage
    seconds: float
    binds: str


def network_stages(
    shape: ModelShape, bins: int, labels: int, batch: int, frames: int, precision: str = "fp32"
) -> list[Stage]:
    """Count the operations and bytes of a run of the network.

    Args:
        shape: shape of the network.
        bins: number of frequency bins of the features.
        labels: number of labels, including the blank.
        batch: number of utterances, all of the same length.
        frames: number of feature frames of each utterance.
        precision: `fp32`, or `int8` for the recurrent layers and the second convolution.

    Returns:
        The stages in their order.
    """
    time = output_length(frames)
    rows = batch * time
    first, second = conv1_bins(bins), conv2_bins(bins)
    kernel1 = CONV1.maps * math.prod(CONV1.kernel)
    kernel2 = CONV1.maps * CONV2.maps * math.prod(CONV2.kernel)
    inner = rows * CONV1.maps * first
    found = [
        _product("conv1", rows * first, kernel1, batch * bins * frames, inner),
        _product("conv2", rows * second, kernel2, inner, rows * conv_features(bins), precision),
    ]
    inputs = conv_features(bins)
    for number in range(1, shape.layers + 1):
        found += _recurrent(f"rnn{number}", shape, inputs, batch, time, precision)
        inputs = shape.hidden
    if not shape.bidirectional:
        weights = shape.hidden * shape.lookahead
        found.append(_product("lookahead", rows, weights, rows * inputs, rows * inputs))
    weights = shape.hidden * labels
    return [*found, _product("output", rows, weights, rows * inputs, rows * labels)]


def stages_of_speech(
    shape: ModelShape, batch: int, seconds: float, precision: str = "fp32"
) -> list[Stage]:
    """Count a run on utterances of a duration in seconds, with default features and labels."""
    features = FeatureConfig()
    frames = features.frames(int(seconds * features.sample_rate))
    return network_stages(shape, features.bins, len(ENGLISH), batch, frames, precision)


def _product(
    name: str, times: float, weights: float, read: float, written: float, precision: str = "fp32"
) -> Stage:
    """Count a product whose weights are used `times` times; `read` and `written` count numbers."""
    of_weights = WEIGHT_BYTES[precision] * weights
    size = of_weights + FLOAT_BYTES * (read + written)
    return Stage(name, precision, 2.0 * times * weights, size, of_weights)


def _recurrent(
    name: str, shape: ModelShape, inputs: int, batch: int, time: int, precision: str
) -> list[Stage]:
    directions = 2 if shape.bidirectional else 1
    units, size = GATES[shape.rnn] * shape.hidden, WEIGHT_BYTES[precision]
    rows = batch * time
    projection, recurrent = inputs * units * directions, shape.hidden * units * directions
    return [
        Stage(
            f"{name} input",
            precision,
            2.0 * rows * projection,
            size * projection + FLOAT_BYTES * rows * inputs,
            size * projection / directions,
        ),
        Stage(
            f"{name} recurrent",
            precision,
            2.0 * rows * recurrent,
            size * recurrent * time + FLOAT_BYTES * rows * shape.hidden,
            size * recurrent / directions,
        ),
    ]


def least_times(stages: Sequence[Stage], rates: Rates) -> list[Least]:
    """Compute the lower bound of the time of every stage."""
    found = []
    for stage in stages:
        arithmetic = stage.operations / rates.multiply[stage.precision]
        reading = stage.bytes / rates.reading(stage.working_set)
        binds = "arithmetic" if arithmetic >= reading else "reading"
        found.append(Least(stage, max(arithmetic, reading), binds))
    return found


def least_time(stages: Sequence[Stage], rates: Rates) -> float:
    """Compute the lower bound of the time of the whole network, in seconds."""
    return sum(item.seconds for item in least_times(stages, rates))


def what_binds(stages: Sequence[Stage], rates: Rates) -> str:
    """Describe the stages with the largest shares of the bound, and their limits."""
    parts: dict[str, float] = {}
    for stage, seconds, binds in least_times(stages, rates):
        kind = stage.name.rpartition(" ")[2] if stage.name.startswith("rnn") else "convolutions"
        if not stage.name.startswith(("rnn", "conv")):
            kind = "output layer"
        titles = {"input": "input products", "recurrent": "recurrent products"}
        how = f"{stage.precision} arithmetic" if binds == "arithmetic" else "reading their weights"
        title = f"{titles.get(kind, kind)} ({how})"
        parts[title] = parts.get(title, 0.0) + seconds
    total = sum(parts.values())
    shares = sorted(((seconds / total, title) for title, seconds in parts.items()), reverse=True)
    return ", ".join(f"{share:.0%} {title}" for share, title in shares if share >= 0.01)
