"""What every runtime offers: features in, log-probabilities out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.errors import FeaturesError
from ds2deploy.runtimes.features import FloatArray, IntArray


class Session(Protocol):
    """A model on a runtime.

    Attributes:
        description: of the model.
        runtime: its name, such as `onnxruntime cpu`.
    """

    description: ArtifactDescription
    runtime: str

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
