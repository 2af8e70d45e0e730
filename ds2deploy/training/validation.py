"""Validation: error rates and loss of a network on the validation set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import torch
from lightning.fabric import Fabric

from ds2deploy.data.batches import Batch
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.greedy import greedy_text
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.training.hardware import reduced
from ds2deploy.training.optimization import ctc_loss
from ds2deploy.training.scoring import ErrorCounts, Hypothesis, count_errors


class Validation(NamedTuple):
    """Result of a validation, over all processes.

    Attributes:
        metrics: `wer`, `cer` and `valid_loss`.
        hypotheses: recognised utterances.
        picture: features of an utterance, (bins, time); None if none could be used.
    """

    metrics: dict[str, float]
    hypotheses: list[Hypothesis]
    picture: FloatArray | None


@torch.inference_mode()
def validate(
    fabric: Fabric,
    network: torch.nn.Module,
    batches: Iterable[Batch],
    alphabet: Alphabet,
    after_batch: Callable[[Batch], None],
) -> Validation:
    """Decode the batches of this process greedily, and sum the results over all processes."""
    counts, total_loss, picture = ErrorCounts(), 0.0, None
    hypotheses: list[Hypothesis] = []
    network.eval()
    for batch in map(fabric.to_device, batches):
        if batch.scale:  # at least one of its recordings could be read
            with fabric.autocast():
                log_probs, lengths = network(batch.features, batch.lengths)
                total_loss += float(ctc_loss(log_probs, lengths, batch))
            rows = zip(log_probs.float().cpu().numpy(), lengths.tolist(), strict=True)
            texts = [greedy_text(frames[:length], alphabet) for frames, length in rows]
            counts += count_errors(batch.texts, texts)
            hypotheses += map(Hypothesis, batch.audio, batch.texts, texts)
            if picture is None:
                picture = batch.features[0, 0, :, : batch.lengths[0]].float().cpu().numpy()
        after_batch(batch)
    numbers = [*msgspec.structs.astuple(counts), total_loss, len(hypotheses)]
    *errors, total_loss, utterances = reduced(fabric, numbers, "sum")
    if fabric.world_size > 1:
        parts: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(parts, hypotheses)
        hypotheses = sorted(chain(*parts), key=lambda item: item.audio)
    counts = ErrorCounts(*map(int, errors))
    loss = total_loss / max(utterances, 1)
    metrics = {"wer": counts.wer, "cer": counts.cer, "valid_loss": loss}
    return Validation(metrics, hypotheses, picture)
