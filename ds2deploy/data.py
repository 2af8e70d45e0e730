"""From manifests to batches: lhotse's bucketing sampler and the one feature extractor."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler, SimpleCutSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ds2deploy.augmentation import augment_audio, mask_features
from ds2deploy.config import AugmentConfig, Recipe
from ds2deploy.manifest import join_utterances, read_audio, transcript
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.features import (
    SMALLEST_DEVIATION,
    FeatureExtractor,
    FloatArray,
    pad_features,
)

QUIET = AugmentConfig()

LEAST_DEVIATION = 0.5
"""Of a bin, as a share of the root mean square over all bins, in global statistics."""


class Batch(NamedTuple):
    """Utterances of similar length.

    Attributes:
        features: (batch, 1, bins, time) float32.
        lengths: (batch,) int64, valid frames.
        targets: (labels of all utterances,) int64, one after the other.
        target_lengths: (batch,) int64.
        texts: transcripts, as the labels spell them.
    """

    features: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    texts: list[str]


class SpeechDataset(Dataset[Batch]):
    """Loads, augments and extracts a batch; the sampler decides which utterances.

    Args:
        recipe: features, labels and augmentation.
        augment: whether to augment.
        epoch: changes what augmentation draws.
    """

    def __init__(self, recipe: Recipe, augment: bool, epoch: int = 0) -> None:
        self._alphabet = Alphabet(recipe.labels)
        self._extract = FeatureExtractor(recipe.features)
        self._augment = recipe.augment if augment else QUIET
        self._silence_s = recipe.data.silence_s if augment else (0.0, 0.0)
        self._seed = (recipe.training.seed, epoch)

    def __getitem__(self, cuts: CutSet) -> Batch:
        """The batch of the utterances that lhotse's sampler chose."""
        texts = [self._alphabet.normalize(transcript(cut)) for cut in cuts]
        return collate([self._features(cut) for cut in cuts], texts, self._alphabet)

    def _features(self, cut: object) -> FloatArray:
        rate = self._extract.config.sample_rate
        # Seeded by the utterance, not by its place: the same whatever the number of workers.
        seed = (*self._seed, zlib.crc32(cut.id.encode()))  # type: ignore[attr-defined]
        random = np.random.default_rng(seed)
        samples = read_audio(cut, rate)
        if self._silence_s[1]:
            samples = np.pad(samples, [int(s * rate) for s in random.uniform(*self._silence_s, 2)])
        samples = augment_audio(samples, rate, self._augment, random)
        return mask_features(self._extract(samples), self._augment, random)


def collate(utterances: Sequence[FloatArray], texts: list[str], alphabet: Alphabet) -> Batch:
    """A batch of utterances of any lengths.

    Args:
        utterances: features of each, (bins, time) float32.
        texts: what is said in each, normalised.
        alphabet: of the labels.
    """
    features, lengths = pad_features(utterances)
    targets = [alphabet.encode(text) for text in texts]
    return Batch(
        torch.from_numpy(features),
        torch.from_numpy(lengths),
        torch.tensor([label for labels in targets for label in labels]),
        torch.tensor([len(labels) for labels in targets]),
        texts,
    )


def training_loader(cuts: CutSet, recipe: Recipe, epoch: int) -> DataLoader[Batch]:
    """Shuffled batches of one epoch, a share of them on each process of a distributed run."""
    data = recipe.data
    seed = recipe.training.seed
    if data.join != (1, 1):
        cuts = join_utterances(cuts, data.join, data.pause_s, seed=(seed << 16) + epoch)
    limits = {"max_cuts": data.batch_size, "max_duration": data.batch_duration_s}
    buckets = min(data.buckets, len(cuts) // (2 * data.batch_size))
    if buckets < 2:  # too few utterances to part them
        sampler = SimpleCutSampler(cuts, **limits, shuffle=True, seed=seed)
    else:
        sampler = DynamicBucketingSampler(
            cuts, **limits, num_buckets=buckets, shuffle=True, seed=seed
        )
    sampler.set_epoch(epoch)
    return _loader(SpeechDataset(recipe, augment=True, epoch=epoch), sampler, data.workers)


def evaluation_loader(cuts: CutSet, recipe: Recipe) -> DataLoader[Batch]:
    """All utterances once, longest last, without augmentation."""
    ordered = CutSet.from_cuts(sorted(cuts, key=lambda cut: cut.duration))
    sampler = SimpleCutSampler(ordered, max_cuts=recipe.data.batch_size, shuffle=False)
    return _loader(SpeechDataset(recipe, augment=False), sampler, recipe.data.workers)


def global_statistics(
    cuts: CutSet, recipe: Recipe, utterances: int = 2000
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every bin over (at most so many) utterances.

    A bin that the recordings leave empty, such as those above 4 kHz in telephone speech, would
    have next to no deviation, and the first device with a better microphone would be deafening:
    no bin has less than `LEAST_DEVIATION` of the deviation of all.
    """
    mean, square = _moments(cuts, recipe, utterances)
    variance = np.maximum(square - mean**2, 0)
    least = LEAST_DEVIATION * np.sqrt(max(variance.mean(), SMALLEST_DEVIATION**2))
    deviation = np.maximum(np.sqrt(variance), least)
    return tuple(mean.tolist()), tuple(deviation.tolist())


def pooled_statistics(cuts: CutSet, recipe: Recipe, utterances: int = 2000) -> tuple[float, float]:
    """One mean and one deviation over all bins: what normalisation per utterance has of each.

    A network that was trained with that knows a spectrogram whose bins keep their proportions;
    statistics of every bin would be another one.
    """
    mean, square = _moments(cuts, recipe, utterances)
    pooled = float(mean.mean())
    variance = float(square.mean()) - pooled**2
    return pooled, max(float(np.sqrt(max(variance, 0))), SMALLEST_DEVIATION)


def _moments(
    cuts: CutSet, recipe: Recipe, utterances: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and mean square of every bin of the log spectrogram."""
    plain = msgspec.structs.replace(recipe.features, normalize="none", mean=None, deviation=None)
    extract = FeatureExtractor(plain)
    total = square = np.zeros(recipe.features.bins)
    frames = 0
    listed = list(cuts)
    chosen = np.random.default_rng(recipe.training.seed).permutation(len(listed))[:utterances]
    for i in chosen:
        spectrogram = extract(read_audio(listed[i], recipe.features.sample_rate)).astype(float)
        total = total + spectrogram.sum(axis=1)
        square = square + (spectrogram**2).sum(axis=1)
        frames += spectrogram.shape[1]
    return total / frames, square / frames


def _loader(dataset: SpeechDataset, sampler: object, workers: int) -> DataLoader[Batch]:
    return DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=workers)  # type: ignore[arg-type]
