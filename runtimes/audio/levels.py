"""Warnings about the loudness of a recording."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.errors import AudioError, AudioWarning
from ds2deploy.runtimes.features import FloatArray

LOUDEST = 8.0
"""Largest sample that passes for audio in [-1, 1]: 18 dB beyond full scale. Loud float recordings
stay below it, 16-bit integers that were only made floats do not."""

CANCELLED = 1 / 32
"""Loudest sample of the channels' mean, as a share of the channels' own, below which they cancel
each other out (-30 dB). The two sides of a balanced line differ by a few per cent."""


class Levels:
    """Follows the loudest samples of a recording, block by block.

    Args:
        source: name of the recording, for errors and warnings.

    Attributes:
        count: number of samples that were seen.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self.count = 0
        self._loudest = self._channels = 0.0

    def mix_down(self, samples: npt.NDArray[Any]) -> FloatArray:
        """Take the mean of a block's channels.

        Args:
            samples: (samples,) or (samples, channels) floats.

        Returns:
            (samples,) float32, which may be the same array.

        Raises:
            AudioError: a sample is not finite.
        """
        with np.errstate(invalid="ignore", over="ignore"):  # refused below
            mono: FloatArray = samples if samples.ndim == 1 else _mean(samples)
            mono = mono.astype(np.float32, copy=False)
        if not len(mono):
            return mono
        loudest = _loudest(mono)  # NaN where there is one
        if not np.isfinite(loudest):
            raise AudioError(
                f"{self._source}: contains samples that are NaN or infinite; record or convert it "
                "again"
            )
        self.count += len(mono)
        self._loudest = max(self._loudest, loudest)
        if samples.ndim == 2 and samples.shape[1] > 1 and self._loudest < CANCELLED:
            self._channels = max(self._channels, _loudest(samples))
        return mono

    def warn(self) -> None:
        """Warn of silence and of wrong scales, when all of the recording was seen."""
        if not self.count:
            return
        if self._loudest > LOUDEST:
            message = (
                f"samples up to {self._loudest:.6g}; expected [-1, 1]: divide 16-bit integers by "
                "32768"
            )
        elif self._loudest < CANCELLED * self._channels:
            message = "its channels cancel each other out (opposite phase); keep only one of them"
        elif self._loudest == 0:
            message = "digital silence, every sample is zero; check that the microphone was on"
        else:
            return
        warnings.warn(f"{self._source}: {message}", AudioWarning, stacklevel=1)


def _mean(samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    mean: npt.NDArray[Any] = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    return mean


def _loudest(samples: npt.NDArray[Any]) -> float:
    """Largest magnitude; NaN where a sample is NaN."""
    high, low = float(samples.max()), float(samples.min())
    return high if np.isnan(high) else max(high, -low)
