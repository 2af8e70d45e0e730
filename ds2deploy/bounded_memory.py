"""The memory of a training on a CPU: as fast as blocks that are kept, but not more every hour."""

from __future__ import annotations

from typing import Any

import lightning

from ds2deploy.machine import give_back_freed_memory
from ds2deploy.step_callback import StepCallback

EVERY_STEPS = 20
"""How often freed memory is given back. The step that follows has it filled with zeros again, which
took a fifth of its time (3 x BiLSTM-256, 16 utterances of 1 to 3 s, one core of an AMD Zen 4): 1 %
of all. Every 100 steps, the memory of 200 steps was not bounded yet."""


class BoundedMemory(StepCallback):
    """Gives freed memory back to the system from time to time."""

    def on_step(self, trainer: lightning.Trainer, module: Any, loss: float, index: int) -> None:
        """Give it back every `EVERY_STEPS` steps."""
        if trainer.global_step % EVERY_STEPS == 0:
            give_back_freed_memory()

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Give back what a validation took, which has other shapes."""
        give_back_freed_memory()
