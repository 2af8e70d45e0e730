"""A teacher beside the transcripts (Hinton et al., 2015), and trace norms that lower ranks."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ds2deploy.config import Recipe
from ds2deploy.data.batches import Batch
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.network import DeepSpeech2, RecurrentLayer
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.training.run_folder import OWN_RECIPE

TEACHER = "teacher_sha256"
"""Key of the hash of the teacher's file in `last.ckpt`."""


class Teacher(NamedTuple):
    """A trained network whose log-probabilities another one learns.

    Attributes:
        network: network in evaluation mode, its weights without gradients.
        features: features that it takes.
        sha256: hash of its file.
    """

    network: DeepSpeech2
    features: FeatureConfig
    sha256: str

    @torch.no_grad()
    def log_probs(self, batch: Batch) -> Tensor:
        """Log-probabilities (batch, time, labels) float32 of the same features."""
        found: Tensor = self.network(batch.features, batch.lengths)[0]
        return found


def load_teacher(recipe: Recipe) -> Teacher | None:
    """Load the recipe's teacher, if it has one.

    Raises:
        MissingFileError, ModelFileError: the checkpoint cannot be read.
        ConfigError: it has other labels than the recipe.
    """
    path = recipe.training.teacher
    if not path:
        return None
    checkpoint = load_checkpoint(path)
    if checkpoint.recipe.labels != recipe.labels:
        raise ConfigError(
            f"training.teacher = {path}: its labels are {checkpoint.recipe.labels!r}, but the "
            f"recipe has {recipe.labels!r}; make them equal, or choose another teacher"
        )
    network = checkpoint.network.eval().requires_grad_(False)
    return Teacher(network, checkpoint.recipe.features, checkpoint.source.sha256)


def check_features(teacher: Teacher, recipe: Recipe) -> None:
    """Check that a teacher takes the features of a training, so that frame stands by frame.

    Raises:
        ConfigError: it takes others; names the settings that differ.
    """
    theirs, ours = teacher.features, recipe.features
    names = [
        name for name in ours.__struct_fields__ if getattr(theirs, name) != getattr(ours, name)
    ]
    if names:
        raise ConfigError(
            f"training.teacher = {Path(recipe.training.teacher)}: its features differ from the "
            f"recipe's in {', '.join(names)}; make them equal, or choose another teacher"
        )


def check_same_teacher(teacher: Teacher | None, recipe: Recipe, begun: object) -> None:
    """Check that a training is resumed with the teacher that it began with.

    Args:
        teacher: the recipe's teacher.
        recipe: recipe of the training.
        begun: hash of the teacher's file in `last.ckpt`; None where there was none.

    Raises:
        ConfigError: another teacher, one more, or one less.
    """
    if (None if teacher is None else teacher.sha256) != begun:
        now = recipe.training.teacher or "none"
        raise ConfigError(
            f"training.teacher = {now}: the training began "
            f"{'without a teacher' if begun is None else 'with another teacher'}; {OWN_RECIPE}"
        )


def distillation_loss(log_probs: Tensor, taught: Tensor, output_lengths: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the teacher, summed over the valid frames of a batch.

    Args:
        log_probs: (batch, time, labels) float32 of the network.
        taught: (batch, time, labels) float32 of the teacher.
        output_lengths: (batch,) int64.
    """
    frames = F.kl_div(log_probs, taught, reduction="none", log_target=True).sum(2)
    valid = torch.arange(frames.shape[1], device=frames.device) < output_lengths[:, None]
    return frames.masked_fill(~valid, 0.0).sum()


def trace_norm(network: DeepSpeech2) -> Tensor:
    """Trace norm of the input sides of all recurrent layers (Kliegl et al., 2017).

    Of two factors it is bounded by half the sum of their squares, which is its variational form;
    of a whole input side it is the sum of the singular values of both directions together.
    """
    parts = []
    for layer in network.rnns:
        assert isinstance(layer, RecurrentLayer)
        ends = ("", "_reverse") if layer.rnn.bidirectional else ("",)
        outer = torch.cat([getattr(layer.rnn, "weight_ih_l0" + end) for end in ends]).float()
        if layer.projection is None:
            parts.append(torch.linalg.matrix_norm(outer, ord="nuc"))
        else:
            inner = layer.projection.weight.float()
            parts.append((outer.square().sum() + inner.square().sum()) / 2)
    return torch.stack(parts).sum()
