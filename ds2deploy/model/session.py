"""Session on PyTorch, the reference for every other runtime."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from ds2deploy.model.precision import FLOAT32
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.errors import DeviceError, RuntimeUnavailableError, one_line
from ds2deploy.runtimes.session import Session, check_shapes
from ds2deploy.runtimes.streaming.state import BaseSession
from ds2deploy.runtimes.tensors import Tensors

if TYPE_CHECKING:
    import torch


class TorchSession(BaseSession):
    """Session that runs a torch module.

    Args:
        module: module that maps the description's inputs to its outputs, in their order; it is set
            to evaluation mode.
        description: description of the model.
        device: name of the device: `cpu`, `cuda`, `cuda:1`, ...
        in_blocks: function that makes the streaming form of the model; None if it cannot stream.
        float64: compute in float64; the module is converted, and log_probs are float64 too.

    Raises:
        RuntimeUnavailableError: torch has no such device on this machine.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        description: ArtifactDescription,
        device: str = "cpu",
        in_blocks: Callable[[], tuple[torch.nn.Module, ArtifactDescription]] | None = None,
        float64: bool = False,
    ) -> None:
        import torch

        index = int(device.partition(":")[2] or 0)
        if device.startswith("cuda") and index >= torch.cuda.device_count():
            raise RuntimeUnavailableError(
                f"{description.source.name}: --device {device}: torch {torch.__version__} finds "
                f"{torch.cuda.device_count()} CUDA devices; use --device cpu, or install a driver "
                "and a CUDA build of torch"
            )
        self._device = torch.device(device)
        self._device_name, self._in_blocks = device, in_blocks
        self._dtype = torch.float64 if float64 else torch.float32
        module = module.double() if float64 else module
        self._module = module.to(self._device).eval()
        self.description = description
        self.runtime = f"torch {device} float64" if float64 else f"torch {device}"

    def compute(self, tensors: Tensors) -> Tensors:
        """Run the network once (on CUDA, without TF32); see `Session.compute`.

        Raises:
            FeaturesError: a shape is not the description's, for which torch would read beyond it.
            DeviceError: the device failed, or has too little memory.
        """
        import torch

        check_shapes(self.description, tensors)
        exact = FLOAT32.on() if self._device.type == "cuda" else nullcontext()
        try:
            with torch.inference_mode(), exact:
                results = self._module(
                    *(self._given(tensors[name]) for name in self.description.inputs)
                )
        except RuntimeError as error:  # torch's for a shape, for memory and for a device
            name = self.description.inputs[0]
            raise DeviceError(
                f"{self.runtime} failed at {name} {tensors[name].shape}: {one_line(error)}"
            ) from error
        return {
            name: result.cpu().numpy()
            for name, result in zip(self.description.outputs, results, strict=True)
        }

    def _given(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """Move an array to the device, with floating-point numbers in the session's precision."""
        import torch

        tensor = torch.from_numpy(array).to(self._device)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def streaming(self) -> Session | None:
        """Make a session for the streaming form of the model; None if it cannot stream."""
        if self.description.blocks is not None or self._in_blocks is None:
            return super().streaming()
        return TorchSession(*self._in_blocks(), self._device_name)
