"""Mean and standard deviation of the features of a training set."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
from lhotse import CutSet

from ds2deploy.config import Recipe
from ds2deploy.data.cuts import read_audio
from ds2deploy.runtimes.errors import FILE_ERRORS
from ds2deploy.runtimes.features import SMALLEST_DEVIATION, FeatureExtractor

LEAST_DEVIATION = 0.5
"""Least standard deviation of a bin, relative to the root mean square over all bins."""


def global_statistics(
    cuts: CutSet, recipe: Recipe, utterances: int = 2000
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation of every bin over (at most so many) utterances.

    A bin that the recordings leave empty, such as those above 4 kHz in telephone speech, would
    have next to no deviation, and sound in it on a device would be scaled up without bound: no bin
    has less than `LEAST_DEVIATION` of the deviation of all.
    """
    mean, square = _moments(cuts, recipe, utterances)
    variance = np.maximum(square - mean**2, 0)
    least = LEAST_DEVIATION * np.sqrt(max(variance.mean(), SMALLEST_DEVIATION**2))
    deviation = np.maximum(np.sqrt(variance), least)
    return tuple(mean.tolist()), tuple(deviation.tolist())


def pooled_statistics(cuts: CutSet, recipe: Recipe, utterances: int = 2000) -> tuple[float, float]:
    """Measure one mean and one standard deviation over all bins.

    They replace those of each utterance for a network that was trained with normalisation per
    utterance: it knows spectrograms whose bins keep their proportions, which statistics of every
    bin would change.
    """
    mean, square = _moments(cuts, recipe, utterances)
    pooled = float(mean.mean())
    variance = float(square.mean()) - pooled**2
    return pooled, max(float(np.sqrt(max(variance, 0))), SMALLEST_DEVIATION)


def _moments(
    cuts: CutSet, recipe: Recipe, utterances: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Measure mean and mean square of every bin of the log spectrogram."""
    plain = msgspec.structs.replace(recipe.features, normalize="none", mean=None, deviation=None)
    extract = FeatureExtractor(plain)
    total = square = np.zeros(recipe.features.bins)
    frames = 0
    listed = list(cuts)
    chosen = np.random.default_rng(recipe.training.seed).permutation(len(listed))[:utterances]
    first: Exception | None = None
    for i in chosen:
        try:
            samples = read_audio(listed[i], recipe.features.sample_rate)
        except FILE_ERRORS as error:  # the training will name it, and count
            first = first or error
            continue
        spectrogram = extract(samples).astype(float)
        total = total + spectrogram.sum(axis=1)
        square = square + (spectrogram**2).sum(axis=1)
        frames += spectrogram.shape[1]
    if first is not None and frames == 0:
        raise first
    return total / frames, square / frames
