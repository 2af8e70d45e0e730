"""Loss, optimiser and learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ds2deploy.config import Recipe, TrainingConfig
from ds2deploy.data.batches import Batch
from ds2deploy.runtimes.alphabet import BLANK


def ctc_loss(log_probs: Tensor, output_lengths: Tensor, batch: Batch) -> Tensor:
    """Compute the CTC loss, summed over a batch (Graves et al., 2006).

    The loss of an utterance with more labels than output frames is zero, as in deepspeech.pytorch;
    a training leaves such utterances out, see `ctc_room`.

    Args:
        log_probs: (batch, time, labels) float32.
        output_lengths: (batch,) int64.
        batch: batch with the targets.
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


def make_optimizer(network: nn.Module, training: TrainingConfig) -> Optimizer:
    """Make the recipe's optimiser; other settings are those of deepspeech.pytorch."""
    parameters = network.parameters()
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        return SGD(parameters, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True)
    return AdamW(parameters, lr=rate, weight_decay=decay, betas=(0.9, 0.999), eps=1e-8)


def make_schedule(
    optimizer: Optimizer, recipe: Recipe, epochs_done: Callable[[], float]
) -> LambdaLR:
    """Make the recipe's learning-rate schedule.

    Args:
        optimizer: optimiser whose learning rate is the maximum.
        recipe: recipe of the training.
        epochs_done: function that returns the number of finished epochs; see
            `learning_rate_factor`.
    """
    return LambdaLR(optimizer, lambda step: learning_rate_factor(recipe, step, epochs_done()))


def restore(
    optimizer: Optimizer, schedule: LambdaLR, document: dict[str, Any], training: TrainingConfig
) -> None:
    """Restore optimiser and schedule from `last.ckpt`, but keep the recipe's settings.

    Learning rate and weight decay are the recipe's.
    """
    (schedule_state,), (state,) = document["lr_schedulers"], document["optimizer_states"]
    schedule_state["base_lrs"] = [training.learning_rate for _ in schedule_state["base_lrs"]]
    for group in state["param_groups"]:
        if group["initial_lr"] != training.learning_rate:
            group["lr"] *= training.learning_rate / group["initial_lr"]
            group["initial_lr"] = training.learning_rate
        group["weight_decay"] = training.weight_decay
    schedule.load_state_dict(schedule_state)
    optimizer.load_state_dict(state)


def learning_rate_factor(recipe: Recipe, step: int, epochs: float) -> float:
    """Compute the learning rate relative to its maximum, 0 to 1, at a position of a training.

    The number of steps differs between epochs (sorting, joining, batches filled by duration). The
    position is therefore counted in epochs, so that the schedule always ends with the last step.

    Args:
        recipe: recipe of the training.
        step: number of finished steps.
        epochs: number of finished epochs, including the fraction of the current one.
    """
    training = recipe.training
    if training.schedule == "constant":
        return 1.0
    if training.schedule == "anneal":
        return float(training.anneal ** -int(epochs))
    done = epochs / training.epochs
    if training.max_steps is not None:
        done = max(done, step / training.max_steps)
    rise = training.warm_up
    if done < rise:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * done / rise)) / 2
    fallen = min((done - rise) / (1 - rise), 1.0)
    return max((1 + math.cos(math.pi * fallen)) / 2, 1e-4)
