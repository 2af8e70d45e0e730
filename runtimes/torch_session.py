"""A session on PyTorch: the reference that every other runtime is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.engine_description import Profile
from ds2deploy.runtimes.errors import RuntimeUnavailableError
from ds2deploy.runtimes.features import FloatArray, IntArray

if TYPE_CHECKING:
    import torch


class TorchSession:
    """Runs a torch module that maps (features, lengths) to (log_probs, output_lengths).

    Args:
        module: log_probs (batch, time, labels); put into evaluation mode here.
        description: of the model.
        device: `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        RuntimeUnavailableError: torch has no such device here.
    """

    def __init__(
        self, module: torch.nn.Module, description: ArtifactDescription, device: str = "cpu"
    ) -> None:
        import torch

        index = int(device.partition(":")[2] or 0)
        if device.startswith("cuda") and index >= torch.cuda.device_count():
            raise RuntimeUnavailableError(
                f"{description.source.name}: torch {torch.__version__} sees "
                f"{torch.cuda.device_count()} CUDA devices, {device} is not among them; "
                "use the CPU, or install a driver and a CUDA build of torch"
            )
        self._device = torch.device(device)
        self._module = module.to(self._device).eval()
        self.description = description
        self.runtime = f"torch {device}"
        self.profile: Profile | None = None

    def run(self, features: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        """Run the network; see `Session.run`."""
        import torch

        with torch.inference_mode():
            log_probs, output_lengths = self._module(
                torch.from_numpy(features).to(self._device),
                torch.from_numpy(lengths).to(self._device),
            )
        return log_probs.float().cpu().numpy(), output_lengths.cpu().numpy()

    def close(self) -> None:
        """Nothing here needs to be freed by hand."""
