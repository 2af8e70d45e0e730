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
"""Minimum standard deviation of a bin, relative to the root mean square over all bins."""


def global_statistics(
    cuts: CutSet, recipe: Recipe, utterances: int = 2000
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation of every bin over at most `utterances` utterances.

    Bins without energy in the training data, such as those above 4 kHz in telephone speech, would
    have a standard deviation near zero, and normalisation would amplify any sound in them without
    limit. No bin therefore gets less than `LEAST_DEVIATION` times the overall deviation.
    """
    mean, square = _moments(cuts, recipe, utterances)
    variance = np.maximum(square - mean**2, 0)
    least = LEAST_DEVIATION * np.sqrt(max(variance.mean(), SMALLEST_DEVIATION**2))
    deviation = np.maximum(np.sqrt(variance), least)
    return tuple(mean.tolist()), tuple(deviation.tolist())


def pooled_statistics(cuts: CutSet, recipe: Recipe, utterances: int = 2000) -> tuple[float, float]:
    """Measure one mean and one standard deviation over all bins.

    They are for a network that was trained with per-utterance normalisation, which uses the same
    mean and deviation for all bins. Statistics per bin would change the proportions of the bins.
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
        except FILE_ERRORS as error:  # the training reports and counts it
            first = first or error
            continue
        spectrogram = extract(samples).astype(float)
        total = total + spectrogram.sum(axis=1)
        square = square + (spectrogram**2).sum(axis=1)
        frames += spectrogram.shape[1]
    if first is not None and frames == 0:
        raise first
    return total / frames, square / frames
