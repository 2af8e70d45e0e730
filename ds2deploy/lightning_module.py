"""One training step, one validation, and the learning rate in between, for Lightning."""

from __future__ import annotations

import math
from typing import Any

import lightning
import msgspec
import torch
import torch.nn.functional as F
from lhotse import CutSet
from torch import Tensor
from torch.utils.data import DataLoader

from ds2deploy.checkpoint import KEY, build_network, header
from ds2deploy.config import Recipe
from ds2deploy.data import Batch, evaluation_loader, training_loader
from ds2deploy.runtimes.alphabet import BLANK, Alphabet
from ds2deploy.runtimes.decoding import greedy_text
from ds2deploy.scoring import ErrorCounts, count_errors


class SpeechRecognition(lightning.LightningModule):
    """Loss, optimiser and validation of one network.

    Args:
        recipe: everything about the training.
        train: training utterances.
        valid: validation utterances.
    """

    def __init__(self, recipe: Recipe, train: CutSet, valid: CutSet) -> None:
        super().__init__()
        self.recipe = recipe
        self.network = build_network(recipe)
        self._train, self._valid = train, valid
        self._alphabet = Alphabet(recipe.labels)
        self._counts = ErrorCounts()
        self._valid_loss = (0.0, 0)
        self.steps_per_epoch = 1

    def train_dataloader(self) -> DataLoader[Batch]:
        """The batches of the current epoch."""
        return training_loader(self._train, self.recipe, self.current_epoch)

    def val_dataloader(self) -> DataLoader[Batch]:
        """All validation utterances."""
        return evaluation_loader(self._valid, self.recipe)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """CTC loss, the mean over the utterances."""
        log_probs, output_lengths = self.network(batch.features, batch.lengths)
        return ctc_loss(log_probs, output_lengths, batch) / len(batch.lengths)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Count the errors of greedy decoding."""
        log_probs, output_lengths = self.network(batch.features, batch.lengths)
        loss = float(ctc_loss(log_probs, output_lengths, batch))
        self._valid_loss = (self._valid_loss[0] + loss, self._valid_loss[1] + len(batch.lengths))
        frames = log_probs.float().cpu().numpy()
        hypotheses = [
            greedy_text(rows[:length], self._alphabet)
            for rows, length in zip(frames, output_lengths.tolist(), strict=True)
        ]
        self._counts += count_errors(batch.texts, hypotheses)

    def on_validation_epoch_end(self) -> None:
        """Sum over the processes and publish `wer`, `cer` and `valid_loss`."""
        counts = torch.tensor(
            [*msgspec.structs.astuple(self._counts), *self._valid_loss],
            dtype=torch.float64,
            device=self.device,
        )
        counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        *errors, loss, utterances = counts.tolist()
        total = ErrorCounts(*(int(count) for count in errors))
        self.log("wer", total.wer, rank_zero_only=True)
        self.log("cer", total.cer, rank_zero_only=True)
        self.log("valid_loss", loss / max(utterances, 1), rank_zero_only=True)
        self._counts, self._valid_loss = ErrorCounts(), (0.0, 0)

    def configure_optimizers(self) -> Any:
        """The optimiser and the learning rate of every step."""
        training = self.recipe.training
        parameters = self.network.parameters()
        rate, decay = training.learning_rate, training.weight_decay
        if training.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(
                parameters, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True
            )
        else:
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        self.steps_per_epoch = steps = max(1, sum(1 for _ in self.train_dataloader().sampler))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(self.recipe, step, steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store recipe and weights as every checkpoint of ours has them."""
        prefix = "network."
        checkpoint["state_dict"] = {
            name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items()
        }
        metrics = {name: float(v) for name, v in self.trainer.callback_metrics.items()}
        checkpoint[KEY] = header(self.recipe, metrics)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Undo the renaming of `on_save_checkpoint`."""
        checkpoint["state_dict"] = {
            f"network.{name}": value for name, value in checkpoint["state_dict"].items()
        }


def ctc_loss(log_probs: Tensor, output_lengths: Tensor, batch: Batch) -> Tensor:
    """Connectionist temporal classification, summed over the batch (Graves et al., 2006).

    An utterance with more labels than output frames counts as zero, as in deepspeech.pytorch.

    Args:
        log_probs: (batch, time, labels) float32.
        output_lengths: (batch,) int64.
        batch: its targets.
    """
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        batch.targets,
        output_lengths,
        batch.target_lengths,
        blank=BLANK,
        reduction="sum",
        zero_infinity=True,
    )


def learning_rate_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Share of the highest learning rate at a step, from 0 to 1."""
    training = recipe.training
    if training.schedule == "constant":
        return 1.0
    if training.schedule == "anneal":
        return float(training.anneal ** -(step // steps_per_epoch))
    steps = training.epochs * steps_per_epoch
    if training.max_steps is not None:
        steps = min(steps, training.max_steps)
    rise = training.warm_up * steps
    if step < rise:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2
    done = min((step - rise) / max(steps - rise, 1), 1.0)
    return max((1 + math.cos(math.pi * done)) / 2, 1e-4)
