"""The tensors of an artifact: names, types and shapes, declared once for exporter and runtimes.

Every tensor has the batch first, states too: servers such as Triton, and `StreamPool`, gather
streams along it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.engine_description import Profile
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.geometry import (
    CONV1,
    CONV2,
    TIME_STRIDE,
    conv1_bins,
    output_length,
    window_history,
)

FEATURES = "features"
WAVEFORM = "waveform"
LENGTHS = "lengths"
LOG_PROBS = "log_probs"
OUTPUT_LENGTHS = "output_lengths"
STATE = "state."
NEXT = "next."
"""Prefixes of a state: what goes in as `state.X` comes out as `next.X`, and they sort alike. Triton
pairs the implicit states of a model by their sorted names, not as they are configured (its issue
8586)."""

POSITION = STATE + "position"
NEXT_POSITION = NEXT + "position"

BATCH = "batch"
TIME = "time"
SAMPLES = "samples"
OUTPUT_TIME = "output_time"

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Minimum, optimum and maximum shape of an input."""

Tensors = Mapping[str, npt.NDArray[Any]]
"""Arrays by the names of their tensors."""


class Tensor(NamedTuple):
    """One input or output.

    Attributes:
        name: name of the tensor.
        dtype: type of the values.
        dims: shape of the tensor; an axis that is not fixed has a name.
    """

    name: str
    dtype: Literal["float32", "int64"]
    dims: tuple[int | str, ...]

    def shape(self, **sizes: int) -> tuple[int, ...]:
        """Return its shape where the named axes have these sizes."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)


def input_tensors(description: ArtifactDescription) -> tuple[Tensor, ...]:
    """Return the inputs: sound, lengths, and for a stream its position and its states."""
    blocks, features = description.blocks, description.features
    if description.input == "waveform":
        samples = SAMPLES if blocks is None else blocks.frames * features.stride
        sound = Tensor(WAVEFORM, "float32", (BATCH, samples))
    else:
        frames = TIME if blocks is None else blocks.frames
        sound = Tensor(FEATURES, "float32", (BATCH, 1, features.bins, frames))
    lengths = Tensor(LENGTHS, "int64", (BATCH,))
    if blocks is None:
        return sound, lengths
    return sound, lengths, Tensor(POSITION, "int64", (BATCH, 1)), *_states(description, STATE)


def output_tensors(description: ArtifactDescription) -> tuple[Tensor, ...]:
    """Return the outputs: log-probabilities, lengths, and for a stream the next states."""
    blocks, labels = description.blocks, len(description.labels)
    frames = OUTPUT_TIME if blocks is None else blocks.frames // TIME_STRIDE
    log_probs = Tensor(LOG_PROBS, "float32", (BATCH, frames, labels))
    lengths = Tensor(OUTPUT_LENGTHS, "int64", (BATCH,))
    if blocks is None:
        return log_probs, lengths
    position = Tensor(NEXT_POSITION, "int64", (BATCH, 1))
    return log_probs, lengths, position, *_states(description, NEXT)


def memory_names(names: Iterable[str]) -> list[str]:
    """List what a stream remembers beside its position, by the inputs' names without prefix."""
    return [
        name.removeprefix(STATE) for name in names if name.startswith(STATE) and name != POSITION
    ]


def check_state_names(inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Check that the states of a stream pair by their sorted names.

    Raises:
        ConfigError: a state has no successor, or they sort otherwise.
    """
    states = sorted(name for name in inputs if name.startswith(STATE))
    following = sorted(name for name in outputs if name.startswith(NEXT))
    if [NEXT + name.removeprefix(STATE) for name in states] != following:
        raise ConfigError(
            f"states {', '.join(states)} do not pair with {', '.join(following)}: the output of "
            f"{STATE}X must be named {NEXT}X"
        )


def profile_shapes(tensor: Tensor, profile: Profile, features: FeatureConfig) -> Shapes:
    """Minimum, optimum and maximum shape of an input of an engine."""
    smallest, optimum, largest = (
        tensor.shape(
            **{BATCH: batch, TIME: frames, SAMPLES: samples_of(frames, features), OUTPUT_TIME: 0}
        )
        for batch, frames in zip(profile.batch, profile.frames, strict=True)
    )
    return smallest, optimum, largest


def named_sizes(description: ArtifactDescription, batch: int, size: int) -> dict[str, int]:
    """Return the sizes of the axes that are not fixed.

    Args:
        description: description of the artifact.
        batch: utterances.
        size: frames, or samples of an artifact that takes those, of the longest one.
    """
    waveform = description.input == "waveform"
    frames = description.features.frames(size) if waveform else size
    return {BATCH: batch, TIME: size, SAMPLES: size, OUTPUT_TIME: output_length(frames)}


def samples_of(frames: int, features: FeatureConfig) -> int:
    """Return the most samples that have so many frames."""
    return frames * features.stride - 1


def with_tensors(description: ArtifactDescription) -> ArtifactDescription:
    """Return the description with the names of its tensors.

    Raises:
        ConfigError: see `check_state_names`.
    """
    inputs = tuple(tensor.name for tensor in input_tensors(description))
    outputs = tuple(tensor.name for tensor in output_tensors(description))
    check_state_names(inputs, outputs)
    return msgspec.structs.replace(description, inputs=inputs, outputs=outputs)


def first_state(description: ArtifactDescription) -> dict[str, npt.NDArray[np.float32]]:
    """Return the states of a stream before its first block: zeros, without the batch axis."""
    return {
        tensor.name.removeprefix(STATE): np.zeros(tensor.shape(**{BATCH: 1})[1:], np.float32)
        for tensor in _states(description, STATE)
    }


def _states(description: ArtifactDescription, prefix: str) -> tuple[Tensor, ...]:
    model, features = description.model, description.features
    shapes: dict[str, tuple[int, ...]] = {}
    if description.input == "waveform":
        shapes[WAVEFORM] = (window_history(features),)
    shapes[FEATURES] = (1, features.bins, CONV1.history)
    shapes["conv1"] = (model.maps[0], conv1_bins(features.bins), CONV2.history)
    if isinstance(model.hidden, int):
        shapes["rnn"] = (model.layers, model.hidden)
    else:  # layer after layer
        shapes["rnn"] = (sum(model.units),)
    if model.rnn == "lstm":
        shapes["cell"] = shapes["rnn"]
    if model.lookahead_delay:
        shapes["lookahead"] = (model.units[-1], model.lookahead_delay)
    return tuple(
        Tensor(prefix + name, "float32", (BATCH, *shape)) for name, shape in shapes.items()
    )
