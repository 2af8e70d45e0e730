"""Batches of features and targets, loaded according to the plan of an epoch."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor
from torch.utils.data import Dataset

from ds2deploy.config import AugmentConfig, Recipe
from ds2deploy.data.augmentation import NEUTRAL, augment_audio, mask_features
from ds2deploy.data.ctc_room import check_room, frames_needed
from ds2deploy.data.cuts import audio_path, read_audio, transcript
from ds2deploy.data.epoch_plan import ProcessBatch, plan_evaluation, plan_training, process_batches
from ds2deploy.data.workers import load
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import FILE_ERRORS, ConfigError, NoiseError
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray, pad_features
from ds2deploy.runtimes.geometry import output_length


class Batch(NamedTuple):
    """Utterances of similar length, as input of a network.

    Attributes:
        features: (batch, 1, bins, time) float32.
        lengths: (batch,) int64, number of valid frames.
        targets: (labels of all utterances,) int64, concatenated.
        target_lengths: (batch,) int64, number of labels of each utterance.
        texts: normalised transcripts.
        scale: factor of the sum of the losses; 1 / batch gives the mean. 0 if no recording could
            be used; the features are then a placeholder.
        broken: errors of the recordings that were left out.
        audio: files of the utterances.
    """

    features: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    texts: list[str]
    scale: float = 1.0
    broken: tuple[str, ...] = ()
    audio: tuple[str, ...] = ()


class SpeechDataset(Dataset[Batch]):
    """Dataset that loads the utterances of a batch, augments them, and extracts their features.

    Args:
        recipe: recipe of the training: features, labels and augmentation.
        augment: augment the utterances.
        epoch: number of the epoch, which is part of the seed of the augmentation.
    """

    def __init__(self, recipe: Recipe, augment: bool, epoch: int = 0) -> None:
        self._alphabet = Alphabet(recipe.labels)
        self._extract = FeatureExtractor(recipe.features)
        augment = augment and epoch >= recipe.augment.warm_up_epochs
        self._augment = recipe.augment if augment else NEUTRAL
        self._silence_s = recipe.data.silence_s if augment else (0.0, 0.0)
        self._seed = (recipe.training.seed, epoch)
        # Placeholder for a batch that cannot be read at all: batch norm must see speech.
        self._last = np.zeros((recipe.features.bins, 100), np.float32)

    def __getitem__(self, planned: ProcessBatch) -> Batch:
        """Load a planned batch without its unusable utterances."""
        sounds, texts, paths = [], [], []
        broken: list[str] = []
        for cut in planned.cuts:
            try:
                sounds.append(self._fitting(cut, broken))
                texts.append(self._alphabet.normalize(transcript(cut)))
                paths.append(audio_path(cut))
            except (*FILE_ERRORS, OSError) as error:
                broken.append(str(error))
        if sounds:
            self._last = sounds[0]
            batch = collate(sounds, texts, self._alphabet)
            return batch._replace(scale=planned.scale, broken=tuple(broken), audio=tuple(paths))
        return collate([self._last], [""], self._alphabet)._replace(scale=0.0, broken=tuple(broken))

    def _fitting(self, cut: Cut, broken: list[str]) -> FloatArray:
        """Extract features; omit the change of speed if it leaves too few frames for CTC."""
        labels = self._alphabet.encode(transcript(cut))
        features = self._augmented(cut, self._augment, broken)
        if frames_needed(labels) > output_length(features.shape[1]):
            steady = {"speed": NEUTRAL.speed, "tempo": NEUTRAL.tempo}
            augment = msgspec.structs.replace(self._augment, **steady)
            features = self._augmented(cut, augment, broken)
        check_room(labels, features.shape[1], audio_path(cut))
        return features

    def _augmented(self, cut: Cut, augment: AugmentConfig, broken: list[str]) -> FloatArray:
        """Extract features, and omit the noise if only its recording is broken."""
        try:
            return self._features(cut, augment)
        except NoiseError as error:
            broken.append(str(error))
            without = {"noise_folder": "", "noise_snr_db": None}
            return self._features(cut, msgspec.structs.replace(augment, **without))

    def _features(self, cut: Cut, augment: AugmentConfig) -> FloatArray:
        rate = self._extract.config.sample_rate
        # The seed depends on the utterance, not on its position or the number of workers.
        seed = (*self._seed, zlib.crc32(cut.id.encode()))
        random = np.random.default_rng(seed)
        samples = read_audio(cut, rate)
        if self._silence_s[1]:
            samples = np.pad(samples, [int(s * rate) for s in random.uniform(*self._silence_s, 2)])
        samples = augment_audio(samples, rate, augment, random)
        return mask_features(self._extract(samples), augment, random)


def collate(utterances: Sequence[FloatArray], texts: list[str], alphabet: Alphabet) -> Batch:
    """Make a batch from utterances of different lengths.

    Args:
        utterances: features of each utterance, (bins, time) float32.
        texts: normalised transcript of each utterance.
        alphabet: labels of the model.
    """
    features, lengths = pad_features(utterances)
    targets = [alphabet.encode(text) for text in texts]
    return Batch(
        torch.from_numpy(features),
        torch.from_numpy(lengths),
        torch.tensor([label for labels in targets for label in labels], dtype=torch.int64),
        torch.tensor([len(labels) for labels in targets]),
        texts,
        scale=1 / len(utterances),
    )


class Batches:
    """Batches of an epoch for one process; `skip` omits those that were already done.

    Args:
        dataset: dataset that loads a planned batch.
        plan: planned batches, in order.
        workers: number of loading processes; 0 loads in this process.
        epoch: number of the epoch, from 0.
        fingerprint: hash of the batches of all processes, which is compared when resuming.
    """

    def __init__(
        self,
        dataset: SpeechDataset,
        plan: Sequence[ProcessBatch],
        workers: int,
        epoch: int = 0,
        fingerprint: int = 0,
    ) -> None:
        self._dataset, self._plan, self._workers = dataset, plan, workers
        self.epoch, self.fingerprint = epoch, fingerprint
        self._done = 0

    def __len__(self) -> int:
        """Count the batches of the whole epoch."""
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        """Load the remaining batches."""
        return load(self._dataset, self._plan[self._done :], self._workers)

    def skip(self, done: int, fingerprint: int) -> None:
        """Skip the batches that an earlier process has done.

        Args:
            done: number of batches.
            fingerprint: fingerprint of their epoch.

        Raises:
            ConfigError: the fingerprints differ.
        """
        if fingerprint != self.fingerprint:
            raise ConfigError(
                f"last.ckpt was written in the middle of epoch {self.epoch + 1} of a training with "
                "other batches: resume with the original manifest, [data] section, seed and number "
                "of processes, or start a new training from its weights: --set training.start=FILE"
            )
        self._done = done


def training_batches(
    cuts: CutSet, recipe: Recipe, epoch: int, rank: int = 0, processes: int = 1
) -> Batches:
    """Make one process's batches of an epoch, augmented; see `plan_training`."""
    batches = plan_training(cuts, recipe, epoch, processes)
    names = [[cut.id for cut in batch] for batch in batches]
    fingerprint = zlib.crc32(msgspec.json.encode((processes, names)))
    plan = process_batches(batches, rank, processes)
    dataset = SpeechDataset(recipe, augment=True, epoch=epoch)
    return Batches(dataset, plan, recipe.data.workers, epoch, fingerprint)


def evaluation_batches(cuts: CutSet, recipe: Recipe, rank: int = 0, processes: int = 1) -> Batches:
    """Make one process's batches of all utterances, not augmented; see `plan_evaluation`."""
    plan = process_batches(plan_evaluation(cuts, recipe, processes), rank, processes)
    return Batches(SpeechDataset(recipe, augment=False), plan, recipe.data.workers)
