"""One training step, one validation, and the learning rate in between, for Lightning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning
import msgspec
import torch
import torch.nn.functional as F
from lhotse import CutSet
from torch import Tensor, nn

from ds2deploy.config import Recipe, TrainingConfig
from ds2deploy.data.batches import Batch, Batches, evaluation_batches, training_batches
from ds2deploy.model.checkpoint import KEY, header
from ds2deploy.model.weights import build_network, unwrapped
from ds2deploy.runtimes.alphabet import BLANK, Alphabet
from ds2deploy.runtimes.decoding.greedy import greedy_text
from ds2deploy.runtimes.errors import Ds2Error, TrainingError
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.training.scoring import ErrorCounts, Hypothesis, count_errors

MOST_SKIPPED = 40
"""Steps in a row that `16-mixed` may skip. Each halves the scale, which begins at 2 ** 16: after so
many it is not the scale."""


class SpeechRecognition(lightning.LightningModule):
    """Loss, optimiser and validation of one network.

    Args:
        recipe: everything about the training.
        train: training utterances.
        valid: validation utterances.

    Attributes:
        steps_per_epoch: of the optimiser.
        gradient_norm: of the last step, before clipping.
        scales_loss: whether the precision is such that steps may be skipped.
        skipped_steps: in this process, as their gradients were no numbers at that scale.
        utterances: of both sets.
        hypotheses: of the last validation, of all processes.
        seen: features of a validation utterance, (bins, time).
        failure: what ends the training as soon as all processes know of it.
    """

    def __init__(self, recipe: Recipe, train: CutSet, valid: CutSet) -> None:
        super().__init__()
        self.recipe = recipe
        self.network = build_network(recipe)
        self._train, self._valid = train, valid
        self.utterances = len(train) + len(valid)
        self._alphabet = Alphabet(recipe.labels)
        self._counts = ErrorCounts()
        self._valid_loss = (0.0, 0)
        self.steps_per_epoch = 1
        self.gradient_norm = 0.0
        self.scales_loss = recipe.training.precision == "16-mixed"
        self.skipped_steps = self._skipped_in_a_row = 0
        self.hypotheses: list[Hypothesis] = []
        self.seen: FloatArray | None = None
        self.failure: Ds2Error | None = None
        self._heard: list[Hypothesis] = []
        self._batches: Batches | None = None
        if recipe.training.batch_norm == "frozen":
            for part in self.network.modules():
                if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    part.eval()

    def train_dataloader(self) -> Batches:
        """A process's share of the epoch that begins, or that is gone on with."""
        # What `current_epoch` says before a resumed training begins is the epoch before.
        place: Any = self.trainer.fit_loop.epoch_progress.current
        epoch = place.processed
        # An epoch is asked for more than once, and the plan of a large corpus takes seconds.
        if self._batches is None or self._batches.epoch != epoch:
            self._batches = training_batches(
                self._train, self.recipe, epoch, self.trainer.global_rank, self.trainer.world_size
            )
        return self._batches

    def val_dataloader(self) -> Batches:
        """A process's share of all validation utterances."""
        return evaluation_batches(
            self._valid, self.recipe, self.trainer.global_rank, self.trainer.world_size
        )

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """CTC loss; over all processes, the mean over the utterances."""
        log_probs, output_lengths = self.network(batch.features, batch.lengths)
        loss = ctc_loss(log_probs, output_lengths, batch) * batch.scale
        value = float(loss.detach())
        # Of several processes one alone must not end: it makes the gradients of all no numbers.
        if not math.isfinite(value) and self.trainer.world_size == 1:
            raise self._diverged(f"the loss is {value:g}")
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm over all gradients, and never step along one that is not a number.

        In `16-mixed` such a step is skipped, and the loss scaled by less, until that does not help.
        """
        limit = self.recipe.training.clip_norm
        self.gradient_norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), limit))
        if math.isfinite(self.gradient_norm):
            self._skipped_in_a_row = 0
            return
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        if not self.scales_loss or self._skipped_in_a_row > MOST_SKIPPED:
            raise self._diverged(f"the norm of the gradients is {self.gradient_norm:g}")

    def validation_step(self, batch: Batch, _: int) -> None:
        """Count the errors of greedy decoding."""
        if batch.scale == 0:  # no recording of it could be read
            return
        log_probs, output_lengths = self.network(batch.features, batch.lengths)
        loss = float(ctc_loss(log_probs, output_lengths, batch))
        self._valid_loss = (self._valid_loss[0] + loss, self._valid_loss[1] + len(batch.lengths))
        frames = log_probs.float().cpu().numpy()
        hypotheses = [
            greedy_text(rows[:length], self._alphabet)
            for rows, length in zip(frames, output_lengths.tolist(), strict=True)
        ]
        self._counts += count_errors(batch.texts, hypotheses)
        self._heard += map(Hypothesis, batch.audio, batch.texts, hypotheses)
        if self.seen is None:
            self.seen = batch.features[0, 0, :, : batch.lengths[0]].float().cpu().numpy()

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
        self.hypotheses, self._heard = self._gathered(self._heard), []

    def _gathered(self, heard: list[Hypothesis]) -> list[Hypothesis]:
        """What all processes heard."""
        if self.trainer.world_size == 1:
            return heard
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, heard)
        return sorted((item for part in parts for item in part), key=lambda item: item.audio)

    def configure_optimizers(self) -> Any:
        """The optimiser and the learning rate of every step."""
        training = self.recipe.training
        optimizer = make_optimizer(self.network, training)
        self.steps_per_epoch = steps = -(-len(self.train_dataloader()) // training.accumulate)
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
        known = self.network.state_dict().__contains__
        weights = unwrapped(checkpoint["state_dict"], known, Path(self.recipe.training.run))
        checkpoint["state_dict"] = {f"network.{name}": value for name, value in weights.items()}
        self._take_over_rate(checkpoint)

    def _take_over_rate(self, checkpoint: dict[str, Any]) -> None:
        """A training may go on with another learning rate, or weight decay, than it began with."""
        training = self.recipe.training
        for schedule in checkpoint["lr_schedulers"]:
            schedule["base_lrs"] = [training.learning_rate for _ in schedule["base_lrs"]]
        for optimizer in checkpoint["optimizer_states"]:
            for group in optimizer["param_groups"]:
                if group["initial_lr"] != training.learning_rate:
                    group["lr"] *= training.learning_rate / group["initial_lr"]
                    group["initial_lr"] = training.learning_rate
                group["weight_decay"] = training.weight_decay

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"{self.recipe.training.run}: {what} at step {self.trainer.global_step + 1}; last.ckpt "
            "is of a step before: go on from it with --resume and a lower training.learning_rate, "
            "or start again with a lower training.learning_rate"
        )


def make_optimizer(network: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """The recipe's optimiser, with the settings of deepspeech.pytorch that it does not name."""
    parameters = network.parameters()
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, betas=(0.9, 0.999), eps=1e-8)


def ctc_loss(log_probs: Tensor, output_lengths: Tensor, batch: Batch) -> Tensor:
    """Connectionist temporal classification, summed over the batch (Graves et al., 2006).

    An utterance with more labels than output frames counts as zero, as in deepspeech.pytorch; a
    training leaves it out beforehand, see `ctc_room`.

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
