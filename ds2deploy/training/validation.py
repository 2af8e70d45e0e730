"""Error rates and loss of a network on the validation utterances."""

from __future__ import annotations

from itertools import chain
from typing import Any

import msgspec
import torch
from lightning.fabric import Fabric
from torch import Tensor

from ds2deploy.data.batches import Batch
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.greedy import greedy_text
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.training.optimization import ctc_loss
from ds2deploy.training.scoring import ErrorCounts, Hypothesis, count_errors


class Validation:
    """One pass over the validation utterances.

    Args:
        alphabet: labels of the network.

    Attributes:
        hypotheses: recognised utterances; after `finish`, those of all processes.
        picture: features of the first utterance, (bins, time); None before it.
    """

    def __init__(self, alphabet: Alphabet) -> None:
        self._alphabet = alphabet
        self._counts, self._loss = ErrorCounts(), 0.0
        self.hypotheses: list[Hypothesis] = []
        self.picture: FloatArray | None = None

    def add(self, batch: Batch, log_probs: Tensor, output_lengths: Tensor) -> None:
        """Count the errors of greedy decoding in a batch."""
        self._loss += float(ctc_loss(log_probs, output_lengths, batch))
        frames = log_probs.float().cpu().numpy()
        texts = [
            greedy_text(rows[:length], self._alphabet)
            for rows, length in zip(frames, output_lengths.tolist(), strict=True)
        ]
        self._counts += count_errors(batch.texts, texts)
        self.hypotheses += map(Hypothesis, batch.audio, batch.texts, texts)
        if self.picture is None:
            self.picture = batch.features[0, 0, :, : batch.lengths[0]].float().cpu().numpy()

    def finish(self, fabric: Fabric) -> dict[str, float]:
        """Sum over all processes: `wer`, `cer` and `valid_loss`."""
        sums = torch.tensor(
            [*msgspec.structs.astuple(self._counts), self._loss, len(self.hypotheses)],
            dtype=torch.float64,
            device=fabric.device,
        )
        *errors, loss, utterances = fabric.all_reduce(sums, reduce_op="sum").tolist()
        total = ErrorCounts(*map(int, errors))
        if fabric.world_size > 1:
            parts: list[Any] = [None] * fabric.world_size
            torch.distributed.all_gather_object(parts, self.hypotheses)
            self.hypotheses = sorted(chain(*parts), key=lambda item: item.audio)
        return {"wer": total.wer, "cer": total.cer, "valid_loss": loss / max(utterances, 1)}
