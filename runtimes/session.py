"""Interface of every runtime: features or samples in, log-probabilities out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.engine_description import Profile, frames_of
from ds2deploy.runtimes.errors import FeaturesError, NotFiniteError
from ds2deploy.runtimes.features import (
    FeatureConfig,
    FloatArray,
    IntArray,
    pad_features,
    pad_waveforms,
)
from ds2deploy.runtimes.tensors import LENGTHS, Tensors, input_tensors, named_sizes


class Session(Protocol):
    """A model on a runtime; several threads may run it at the same time.

    What every session owes, as `tests/runtimes/test_sessions.py` checks it for all that run on a
    CPU (`backends.BACKENDS`):

    - A file that is missing is a `MissingFileError`. One that is empty, cut off, or has weights
      that are not numbers is a `ModelFileError`. A message is one line, and begins with the path.
    - A description that does not fit the graph is a `ModelFileError` at loading, not at the first
      run (`onnx.graph_check.check_description`).
    - A precision that it does not compute, and an engine that is not installed, is a
      `RuntimeUnavailableError` that names the file to give, or the extra to install. Nothing else
      runs instead, and nothing is computed in another precision than the table of
      `docs/choosing-a-runtime.md` says.
    - Names of files that are not UTF-8 can be opened.
    - A number of threads is obeyed, or is a `RuntimeUnavailableError`.
    - A run that fails is a `DeviceError` with the shape of the sound; a shape that the description
      excludes may be a `FeaturesError`. It never crashes the process.
    - Inputs stay as they are, and outputs belong to the caller: the next run does not change them.
    - `close` may be called twice.

    Attributes:
        description: description of the model.
        runtime: name of the runtime and device, such as `onnxruntime cpu`.
        profile: shapes that an engine accepts; None if there is no limit.
        at_once: number of utterances that are run at a time; None runs all of a batch.
    """

    description: ArtifactDescription
    runtime: str
    profile: Profile | None
    at_once: int | None

    def compute(self, tensors: Tensors) -> Tensors:
        """Run the network once.

        Args:
            tensors: every input that the description names, as `tensors.input_tensors` has them.

        Returns:
            Every output, as `tensors.output_tensors` has them.
        """
        ...

    def run(self, sound: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        """Run the network on whole utterances; a streaming model block by block.

        Args:
            sound: features (batch, 1, bins, time) or a waveform (batch, samples), float32; what
                stands past a length is ignored.
            lengths: (batch,) int64, valid frames or samples, from 1.

        Returns:
            log_probs (batch, time', labels) float32, meaningless past output_lengths, and
            output_lengths (batch,) int64.
        """
        ...

    def streaming(self) -> Session | None:
        """Return a session of the same model that takes blocks; None if there is none."""
        ...

    def close(self) -> None:
        """Free the memory of the device; a session on a GPU cannot run afterwards."""
        ...


def prepare_sound(
    session: Session,
    extract: Callable[[FloatArray], FloatArray],
    waveforms: Sequence[FloatArray],
) -> tuple[FloatArray, IntArray]:
    """Make the input of `Session.run` from utterances: features, or the samples themselves.

    Args:
        session: session of the model.
        extract: function from samples to features (bins, time), if the input is features.
        waveforms: arrays (samples,) float32 at the model's rate.
    """
    if session.description.input == "waveform":
        return pad_waveforms(waveforms)
    return pad_features([extract(waveform) for waveform in waveforms])


def beyond_profile(duration_s: float, profile: Profile, features: FeatureConfig) -> str | None:
    """Describe why audio is too long for an engine; None if it fits.

    What is shorter than the profile's least is padded by the session, and fits.
    """
    if frames_of(duration_s, features) <= profile.frames[2]:
        return None
    low, usual, high = profile.seconds(features)
    low = low or 0.1  # a single frame is what no person asks for
    enough = 10 * math.ceil(duration_s / 10)
    shown = math.ceil(duration_s * 10 - 1e-6) / 10
    return (
        f"{shown:.1f} s of audio; this engine accepts {low:g} to {high:g} s: split the recording, "
        f"or rebuild the engine with --seconds {low:g},{usual:g},{enough}"
    )


def check_batch(
    features: npt.ArrayLike, lengths: npt.ArrayLike, bins: int
) -> tuple[FloatArray, IntArray]:
    """Validate a batch of features from outside.

    Raises:
        FeaturesError: a shape, a type or a length that no session can take.
    """
    batch = np.ascontiguousarray(features, np.float32)
    if batch.ndim != 4 or batch.shape[1:3] != (1, bins) or 0 in batch.shape:
        raise FeaturesError(f"features {batch.shape}: expected (batch, 1, {bins}, time)")
    given = np.asarray(lengths)
    if not np.issubdtype(given.dtype, np.integer):
        raise FeaturesError(f"lengths of type {given.dtype}: expected integers (frames)")
    valid = np.ascontiguousarray(given, np.int64)
    if valid.shape != (len(batch),):
        raise FeaturesError(f"lengths {valid.shape}: expected one per utterance, ({len(batch)},)")
    if valid.min() < 1 or valid.max() > batch.shape[3]:
        raise FeaturesError(
            f"lengths {valid.min()} to {valid.max()}: expected 1 to {batch.shape[3]} frames"
        )
    return batch, valid


def check_finite(session: Session, log_probs: FloatArray) -> None:
    """Refuse log-probabilities without a likeliest label, which would be read as silence.

    Args:
        session: the one that computed them.
        log_probs: (frames, labels), valid frames only; a label may be as unlikely as log(0).

    Raises:
        NotFiniteError: NaN, or a frame in which every label is impossible.
    """
    if np.isfinite(log_probs.max(axis=1, initial=-np.inf)).all():
        return
    description = session.description
    precision = description.precision
    half = "export it with --precision fp32" if precision in ("fp16", "bf16") else "export it again"
    raise NotFiniteError(
        f"{description.source.name}: its {precision} model on {session.runtime} computed "
        f"log-probabilities that are NaN (a damaged weight, or an overflow of {precision}); "
        f"{half}, or compare it with its checkpoint: ds2deploy verify"
    )


def check_tensors(description: ArtifactDescription, tensors: Tensors) -> Tensors:
    """Validate what goes into a network, as a device must have it.

    Returns:
        The same, contiguous and of the right types.

    Raises:
        FeaturesError: a shape, a type or a length that no session can take.
    """
    declared = input_tensors(description)
    sound = declared[0].name
    if description.input == "features" and description.blocks is None:
        batch, valid = check_batch(tensors[sound], tensors[LENGTHS], description.features.bins)
        return {sound: batch, LENGTHS: valid}
    checked = {
        tensor.name: np.ascontiguousarray(tensors[tensor.name], tensor.dtype) for tensor in declared
    }
    check_shapes(description, checked)
    if checked[LENGTHS].min() < 1:
        raise FeaturesError(
            f"lengths: the smallest is {checked[LENGTHS].min()}; expected 1 or more frames"
        )
    return checked


def check_shapes(description: ArtifactDescription, tensors: Tensors) -> None:
    """Compare the shapes of a network's inputs with those that its description declares.

    Raises:
        FeaturesError: names the tensor, its shape and the expected one.
    """
    declared = input_tensors(description)
    shape = tensors[declared[0].name].shape
    sizes = named_sizes(description, shape[0], shape[-1])
    for tensor in declared:
        if tensors[tensor.name].shape != tensor.shape(**sizes) or 0 in shape:
            raise FeaturesError(
                f"{tensor.name} {tensors[tensor.name].shape}: expected {tensor.dims}"
            )


def usable_cores() -> int:
    """Cores that this process may run on, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


C = TypeVar("C", bound="Closing")


class Closing:
    """Base class of context managers with a method `close`."""

    def close(self) -> None:
        """Release all resources; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self: C) -> C:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
