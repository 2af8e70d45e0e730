"""What happens at every step of the optimiser, of which several batches may make one."""

from __future__ import annotations

from typing import Any

import lightning

from ds2deploy.training.memory import give_back_freed_memory


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


EVERY_STEPS = 20
"""Steps from one return of freed memory to the next. In the step that follows, the system fills it
with zeros again, which took a fifth of that step's time (3 x BiLSTM-256, 16 utterances of 1 to 3 s,
one core of an AMD Zen 4): 1 % of all. With 100, the memory of 200 steps was not bounded yet."""


class BoundedMemory(StepCallback):
    """Gives freed memory back to the system from time to time."""

    def on_step(self, trainer: lightning.Trainer, module: Any, loss: float, index: int) -> None:
        """Give freed memory back every `EVERY_STEPS` steps."""
        if trainer.global_step % EVERY_STEPS == 0:
            give_back_freed_memory()

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Give back what a validation took, which has other shapes."""
        give_back_freed_memory()
