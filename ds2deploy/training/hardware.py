"""Devices and processes of a training, through Lightning Fabric."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.utilities.rank_zero import rank_zero_only

from ds2deploy.config import Recipe
from ds2deploy.model.recurrent import has_bfloat16_lstm
from ds2deploy.runtimes.errors import RuntimeUnavailableError


class Autocast(MixedPrecision):
    """Mixed precision that passes float32 features to the network.

    Casts of weights are not cached, so that the gradient of a weight that is used twice is summed
    in float32.
    """

    def forward_context(self) -> torch.autocast:
        """Cast the inputs of operations that torch supports in half precision."""
        half = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16
        return torch.autocast(self.device, dtype=half, cache_enabled=False)

    def convert_input(self, data: Any) -> Any:
        """Return the features unchanged."""
        return data


def make_fabric(recipe: Recipe) -> Fabric:
    """Start the other processes of a training, if any, and return the Fabric of this process."""
    training = recipe.training
    accelerator = "cuda" if uses_gpu(recipe) else "cpu"
    mixed: list[Any] = []
    if training.precision != "32-true":
        mixed = [Autocast(training.precision, accelerator)]
    fabric = Fabric(
        accelerator=accelerator,
        devices=training.devices or "auto",
        num_nodes=training.nodes,
        plugins=mixed,
    )
    fabric.launch()
    return fabric


def reduced(fabric: Fabric, numbers: Sequence[float], how: Literal["sum", "mean", "max"]) -> Any:
    """Reduce each number of a list over all processes."""
    if fabric.world_size == 1:
        return list(numbers)
    tensor = torch.tensor(numbers, dtype=torch.float64, device=fabric.device)
    return cast(torch.Tensor, fabric.all_reduce(tensor, reduce_op=how)).tolist()


def is_main_process() -> bool:
    """Return True in the process of a training that reports and writes files."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def uses_gpu(recipe: Recipe) -> bool:
    """Return True if the recipe trains on a GPU on this machine."""
    return recipe.training.accelerator != "cpu" and torch.cuda.is_available()


def check_hardware(recipe: Recipe) -> None:
    """Check that this machine can train a recipe.

    Raises:
        RuntimeUnavailableError: this machine lacks the accelerator, or one for the precision.
    """
    training = recipe.training
    if uses_gpu(recipe):
        if training.devices > torch.cuda.device_count():
            raise RuntimeUnavailableError(
                f"training.devices = {training.devices}: this machine has "
                f"{torch.cuda.device_count()} CUDA devices; set it to 0 to use all of them"
            )
        return
    for name, value, reason in (
        ("accelerator", "gpu", f"torch {torch.__version__} finds no CUDA device; use cpu or auto"),
        ("batch_norm", "synchronized", "needs CUDA devices; on a CPU use batch or frozen"),
        ("precision", "16-mixed", "needs a CUDA device; on a CPU use 32-true or bf16-mixed"),
    ):
        if getattr(training, name) == value:
            raise RuntimeUnavailableError(f'training.{name} = "{value}": {reason}')
    if training.precision == "bf16-mixed" and is_main_process() and not has_bfloat16_lstm():
        print(
            'training.precision = "bf16-mixed": this processor has no fast bfloat16; "32-true" is '
            "several times faster",
            file=sys.stderr,
        )


def silence_lightning() -> None:
    """Suppress hints that Lightning, lhotse and torch print to the terminal."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", module=r"lhotse\..*", category=UserWarning)
    warnings.filterwarnings("ignore", module=r"torch\.utils\.data.*")
