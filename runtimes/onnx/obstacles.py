"""Obstacles that keep a provider of ONNX Runtime from running here, and their remedies."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ds2deploy.runtimes.errors import RuntimeUnavailableError

Provider = Literal["cpu", "cuda", "tensorrt", "rtx"]

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
}

REMEDIES: dict[Provider, str] = {
    "cpu": "pip install 'ds2deploy[cpu]'",
    "cuda": "pip uninstall -y onnxruntime && pip install 'ds2deploy[gpu]'",
    "tensorrt": "pip uninstall -y onnxruntime && pip install 'ds2deploy[gpu]' 'tensorrt>=10,<11'",
    "rtx": "pip install 'ds2deploy[cpu,rtx]'",
}

DRIVER = "install the NVIDIA driver"

LIBRARIES: dict[Provider, tuple[str, str]] = {
    "cuda": ("libcuda.so.1", "no NVIDIA driver"),
    "tensorrt": ("libnvinfer.so.10", "no libnvinfer.so.10"),
}
"""Libraries that a provider loads when it starts, and the meaning of their absence."""


class Obstacle(NamedTuple):
    """A reason why a provider cannot run.

    Attributes:
        reason: the obstacle in words, with the version of ONNX Runtime.
        remedy: the command that helps, or other advice.
    """

    reason: str
    remedy: str


def obstacle(onnxruntime: Any, provider: Provider, index: int = 0) -> Obstacle | None:
    """Find what keeps a provider from running here, before a session is asked for.

    ONNX Runtime itself names another reason, or takes another provider.

    Args:
        onnxruntime: the package.
        provider: the one to examine.
        index: number of the GPU.

    Returns:
        The obstacle; None where nothing is in the way.
    """
    title = f"ONNX Runtime {onnxruntime.__version__}"
    if provider == "rtx":
        return _rtx_obstacle(onnxruntime, title, index)
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        return Obstacle(f"{title} has no {PROVIDERS[provider]}", REMEDIES[provider])
    if provider == "cpu":
        return None
    _preload(onnxruntime, provider)
    if not loads(LIBRARIES["cuda"][0]):
        return Obstacle(f"{title} finds {LIBRARIES['cuda'][1]}", DRIVER)
    if provider == "tensorrt" and not loads(LIBRARIES["tensorrt"][0]):
        return Obstacle(f"{title} finds {LIBRARIES['tensorrt'][1]}", REMEDIES["tensorrt"])
    return None


def loads(library: str) -> bool:
    """Try to load a shared library, as a provider that needs it would."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _preload(onnxruntime: Any, provider: Provider) -> None:
    """Load what pip installed where the system's loader does not look: CUDA, cuDNN, TensorRT."""
    preload = getattr(onnxruntime, "preload_dlls", None)  # from 1.21 on
    if preload is not None:
        preload()
    if provider == "tensorrt":
        from ds2deploy.runtimes.tensorrt.library import import_tensorrt

        with suppress(RuntimeUnavailableError):  # it may be the system's, and be found
            import_tensorrt("tensorrt")


def _rtx_obstacle(onnxruntime: Any, title: str, index: int) -> Obstacle | None:
    try:
        count = len(register_rtx(onnxruntime))
    except ImportError as error:
        reason = f"{title}: its TensorRT-RTX plugin is not installed ({first_line(error)})"
        return Obstacle(reason, REMEDIES["rtx"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        if not loads(LIBRARIES["cuda"][0]):
            return Obstacle(
                f"{title}: its TensorRT-RTX plugin finds {LIBRARIES['cuda'][1]}", DRIVER
            )
        reason = f"{title}: its TensorRT-RTX plugin cannot be loaded ({first_line(error)})"
        return Obstacle(reason, REMEDIES["rtx"])
    if index < count:
        return None
    from ds2deploy.runtimes.tensorrt.cuda import NoDeviceError, open_device
    from ds2deploy.runtimes.tensorrt.rtx_devices import on_another_gpu

    reason = f"{title}: its TensorRT-RTX plugin does not find cuda:{index} (GPUs found: {count})"
    try:
        device = open_device(f"cuda:{index}")
    except NoDeviceError as error:
        return Obstacle(f"{reason}: {error.reason}", error.remedy)
    if another := on_another_gpu(device):
        return Obstacle(f"{reason}: {another}", "use --runtime cuda or --runtime tensorrt")
    return Obstacle(reason, "install a newer NVIDIA driver")


def register_rtx(onnxruntime: Any) -> list[Any]:
    """Register the RTX plugin, and return its devices.

    Raises:
        ImportError: the plugin is not installed.
        Exception: it is, and ONNX Runtime cannot load it; of a class of ONNX Runtime's own.
    """
    import onnxruntime_ep_nv_tensorrt_rtx as plugin

    name = PROVIDERS["rtx"]
    found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if not found:
        # Its wheel carries the CUDA runtime under a name that nothing looks for.
        for library in Path(plugin.__file__).parent.glob("libcudart.so.*"):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
        found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    return found


def first_line(error: Exception) -> str:
    """First line of an error of ONNX Runtime, without its codes."""
    text = str(error).strip().splitlines()
    return (text[0].split(" : ")[-1] if text else type(error).__name__)[:240]
