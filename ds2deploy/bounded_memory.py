"""The memory of a training on a CPU: as fast as blocks that are kept, but not more every hour."""

from __future__ import annotations

from typing import Any

import lightning

from ds2deploy.machine import give_back_freed_memory
from ds2deploy.step_callback import StepCallback

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
