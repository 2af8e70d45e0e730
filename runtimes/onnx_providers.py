"""ONNX Runtime's ways to a GPU: its CUDA, TensorRT and TensorRT-RTX providers.

ONNX Runtime itself goes on with the next provider, with a warning at most, where the one that was
asked for is not there or does not take the graph. Here that is an error that says why.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.engine_description import Profile
from ds2deploy.runtimes.errors import RuntimeUnavailableError
from ds2deploy.runtimes.tensorrt_library import import_tensorrt
from ds2deploy.runtimes.tensors import input_tensors, profile_shapes

Provider = Literal["cpu", "cuda", "tensorrt", "rtx"]

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
}

TENSORRT_PROFILE = Profile(batch=(1, 4, 16), frames=(1, 501, 3001))
"""Shapes that ONNX Runtime's TensorRT provider builds for: left to itself, it builds again, for
minutes, at every length that it has not met."""

REMEDIES: dict[Provider, str] = {
    "cpu": "pip install 'ds2deploy[cpu]'",
    "cuda": "pip uninstall -y onnxruntime && pip install 'ds2deploy[gpu]'",
    "tensorrt": "pip uninstall -y onnxruntime && pip install 'ds2deploy[gpu]' 'tensorrt>=10,<11'",
    "rtx": "pip install 'ds2deploy[cpu,rtx]'",
}


def configure(
    onnxruntime: Any,
    options: Any,
    provider: Provider,
    index: int,
    path: Path,
    description: ArtifactDescription | None,
) -> list[Any]:
    """Ask for a provider.

    Args:
        onnxruntime: the package.
        options: of the session; RTX is asked for there.
        provider: which one.
        index: of the GPU.
        path: of the model, for the error, and for what TensorRT keeps beside it.
        description: of the model, where it is known.

    Returns:
        The session's `providers`.

    Raises:
        RuntimeUnavailableError: it is not there.
    """
    if provider == "cpu":
        return [PROVIDERS["cpu"]]
    if provider == "rtx":
        _add_rtx(onnxruntime, options, index, path)
        return []
    name = PROVIDERS[provider]
    if name not in onnxruntime.get_available_providers():
        raise _unavailable(path, provider, f"ONNX Runtime {onnxruntime.__version__} has no {name}")
    _preload(onnxruntime, provider)
    settings = {"device_id": str(index)}
    if provider == "tensorrt":
        # The whole graph or none of it: what the parser refuses would run on the CPU, unasked.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        precision = "fp32" if description is None else description.precision
        settings |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(path.parent.resolve()),
            "trt_engine_cache_prefix": path.name,
        }
        if precision in ("fp16", "bf16"):  # an older release refuses an option that it lacks
            settings[f"trt_{precision}_enable"] = "True"
        if description is not None:
            settings |= _profile_settings(description)
    return [(name, settings)]


def _preload(onnxruntime: Any, provider: Provider) -> None:
    """Load what pip installed where the system's loader does not look: CUDA, cuDNN, TensorRT."""
    preload = getattr(onnxruntime, "preload_dlls", None)  # from 1.21 on
    if preload is not None:
        preload()
    if provider == "tensorrt":
        with suppress(RuntimeUnavailableError):  # it may be the system's, and be found
            import_tensorrt("tensorrt")


def _profile_settings(description: ArtifactDescription) -> dict[str, str]:
    profile, blocks = TENSORRT_PROFILE, description.blocks
    if blocks is not None:
        profile = Profile(batch=profile.batch, frames=(blocks.frames,) * 3)
    shapes = {
        tensor.name: profile_shapes(tensor, profile, description.features)
        for tensor in input_tensors(description)
    }
    return {
        f"trt_profile_{which}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, sizes[i]))}" for name, sizes in shapes.items()
        )
        for i, which in enumerate(("min", "opt", "max"))
    }


def check(session: Any, provider: Provider, path: Path) -> None:
    """Refuse a session that runs on something else than was asked for.

    Raises:
        RuntimeUnavailableError: says what it would run on.
    """
    has = session.get_providers()
    if PROVIDERS[provider] not in has[: 1 if provider != "cpu" else None]:
        raise _unavailable(
            path, provider, f"{PROVIDERS[provider]} did not start, {has[0]} would run instead"
        )


def register_rtx(onnxruntime: Any) -> list[Any]:
    """The devices of the RTX plugin, which is registered here.

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


def _add_rtx(onnxruntime: Any, options: Any, index: int, path: Path) -> None:
    try:
        devices = register_rtx(onnxruntime)
    except ImportError as error:
        raise _unavailable(path, "rtx", f"its plugin is not installed ({error})") from None
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise _unavailable(path, "rtx", f"its plugin does not load ({first_line(error)})") from None
    if index >= len(devices):
        raise _unavailable(path, "rtx", f"its plugin sees {len(devices)} GPUs, not cuda:{index}")
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(
        [devices[index]], {"nv_runtime_cache_path": str(path.with_suffix(".rtx-cache").resolve())}
    )


def _unavailable(path: Path, provider: Provider, reason: str) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        f"{path}: --runtime {provider}: {reason}; {REMEDIES[provider]}; "
        "`ds2deploy doctor` says more"
    )


def first_line(error: Exception) -> str:
    """What ONNX Runtime says, without its codes."""
    text = str(error).strip().splitlines()
    return (text[0].split(" : ")[-1] if text else type(error).__name__)[:240]
