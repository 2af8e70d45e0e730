"""What happens at every step of the optimiser, of which several batches may make one."""

from __future__ import annotations

from typing import Any

import lightning


class StepCallback(lightning.Callback):
    """Hears of every step; Lightning tells of every batch."""

    _step = 0

    def on_step(self, trainer: lightning.Trainer, module: Any, loss: float, index: int) -> None:
        """A step was made.

        Args:
            trainer: at that step.
            module: the same.
            loss: of the step's last batch, on this process.
            index: of that batch in the epoch.
        """

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """The step that a training is resumed after was told of before it ended."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        """Tell of a step, unless gradients are still being gathered."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            self.on_step(trainer, module, loss, index)
