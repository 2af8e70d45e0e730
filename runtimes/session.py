"""What every runtime offers: features in, log-probabilities out."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.engine_description import Profile, frames_of
from ds2deploy.runtimes.errors import FeaturesError
from ds2deploy.runtimes.features import FeatureConfig, FloatArray, IntArray


class Session(Protocol):
    """A model on a runtime.

    Attributes:
        description: of the model.
        runtime: its name, such as `onnxruntime cpu`.
        profile: the shapes that an engine takes; None where any will do.
    """

    description: ArtifactDescription
    runtime: str
    profile: Profile | None

    def run(self, features: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        """Run the network.

        Args:
            features: (batch, 1, bins, time) float32; what stands past a length is ignored.
            lengths: (batch,) int64, valid frames, from 1 to time.

        Returns:
            log_probs (batch, time', labels) float32, meaningless past output_lengths, and
            output_lengths (batch,) int64.
        """
        ...

    def close(self) -> None:
        """Give back what it holds of a device; a session on a GPU cannot run afterwards."""
        ...


def beyond_profile(duration_s: float, profile: Profile, features: FeatureConfig) -> str | None:
    """What to say of audio that is too long for an engine; None where it fits.

    What is shorter than the profile's least is padded by the session, and fits.
    """
    if frames_of(duration_s, features) <= profile.frames[2]:
        return None
    low, usual, high = profile.seconds(features)
    low = low or 0.1  # a single frame is what no person asks for
    enough = 10 * math.ceil(duration_s / 10)
    shown = math.ceil(duration_s * 10 - 1e-6) / 10
    return (
        f"{shown:.1f} s of audio; this engine takes {low:g} to {high:g} s: split it, "
        f"or rebuild with --seconds {low:g},{usual:g},{enough}"
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
        raise FeaturesError(f"lengths of type {given.dtype}: expected frames, whole numbers")
    valid = np.ascontiguousarray(given, np.int64)
    if valid.shape != (len(batch),):
        raise FeaturesError(f"lengths {valid.shape}: expected one per utterance, ({len(batch)},)")
    if valid.min() < 1 or valid.max() > batch.shape[3]:
        raise FeaturesError(
            f"lengths {valid.min()} to {valid.max()}: expected 1 to {batch.shape[3]} frames"
        )
    return batch, valid
