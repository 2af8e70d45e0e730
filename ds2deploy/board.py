"""A training on TensorBoard: curves, what was heard, and what the network sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning

from ds2deploy.extras import require

PAIRS = 5
"""Utterances whose reference and hypothesis are shown after every validation."""


class Board(lightning.Callback):
    """Writes event files; a training that is resumed goes on in the same curves.

    Args:
        folder: for them.

    Raises:
        RuntimeUnavailableError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        require("tensorboard", "train")
        self._folder = folder
        self._writer: Any = None
        self._step = 0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Open it; what a killed training wrote past this step is hidden."""
        if trainer.is_global_zero:
            from torch.utils.tensorboard import SummaryWriter

            self._step = trainer.global_step
            self._writer = SummaryWriter(str(self._folder), purge_step=self._step + 1)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        """Loss, learning rate and norm of the gradients, as often as metrics.jsonl."""
        step = trainer.global_step
        if self._writer is None or step == self._step:
            return
        self._step = step
        if step == 1 or step % module.recipe.training.log_every == 0:
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            self._writer.add_scalar("train/loss", loss, step)
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self._writer.add_scalar("train/learning_rate", rate, step)
            self._writer.add_scalar("train/gradient_norm", module.gradient_norm, step)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Error rates, a few utterances, and a spectrogram."""
        if self._writer is None:
            return
        step = trainer.global_step
        for name in ("wer", "cer", "valid_loss"):
            self._writer.add_scalar(f"valid/{name}", float(trainer.callback_metrics[name]), step)
        pairs = "\n\n".join(
            f"said {_code(item.reference)}\n\nheard {_code(item.hypothesis)}\n\n---"
            for item in module.hypotheses[:PAIRS]
        )
        self._writer.add_text("valid/heard", pairs, step)
        if module.seen is not None:
            picture = module.seen[::-1]  # low frequencies at the bottom
            low, high = float(picture.min()), float(picture.max())
            scaled = (picture - low) / max(high - low, 1e-6)
            self._writer.add_image("valid/spectrogram", scaled[None], step)
        self._writer.flush()

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Write what is left; a validation may still come."""
        if self._writer is not None:
            self._writer.flush()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: Any) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def _code(text: str) -> str:
    """As it stands: an empty hypothesis is told from none, and Markdown changes nothing."""
    return f"`{text}`" if text else "(nothing)"
