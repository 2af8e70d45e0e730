"""Which runtimes work on this machine, and the command that mends each that does not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        name: what it is for.
        works: whether it can be used now.
        detail: version, or what is missing.
        remedy: the command that mends it; empty where nothing is to be done.
    """

    name: str
    works: bool
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything; nothing is changed."""
    return [
        Finding("Python", True, platform.python_version()),
        _onnxruntime("cpu", "CPUExecutionProvider", "pip install 'ds2deploy[cpu]'"),
        _onnxruntime(
            "cuda",
            "CUDAExecutionProvider",
            "pip uninstall -y onnxruntime && pip install 'ds2deploy[gpu]'",
        ),
        _torch("cpu"),
        _torch("cuda"),
        _packages("training", ("lightning", "lhotse", "jiwer"), "train"),
        _packages("export", ("onnx", "torch", "lhotse"), "export"),
        _packages("demo", ("espeakng_loader", "onnx", "torch"), "demo"),
    ]


def _onnxruntime(device: str, provider: str, remedy: str) -> Finding:
    name = f"run .onnx on onnxruntime {device}"
    try:
        import onnxruntime
    except ImportError as error:
        return Finding(name, False, _reason(error), remedy)
    if provider not in onnxruntime.get_available_providers():
        return Finding(
            name, False, f"onnxruntime {onnxruntime.__version__} has no {provider}", remedy
        )
    if device == "cuda" and not _nvidia_driver():
        return Finding(name, False, "no NVIDIA driver", "install the driver of your GPU")
    return Finding(name, True, f"onnxruntime {onnxruntime.__version__}")


def _torch(device: str) -> Finding:
    name = f"run .ckpt on torch {device}"
    try:
        import torch
    except ImportError as error:
        return Finding(name, False, _reason(error), "pip install 'ds2deploy[train]'")
    version = f"torch {torch.__version__}"
    if device == "cpu":
        return Finding(name, True, version)
    if not torch.cuda.is_available():
        remedy = "install the driver of your GPU and a CUDA build of torch"
        return Finding(name, False, f"{version} sees no CUDA device", remedy)
    return Finding(name, True, f"{version}, {torch.cuda.get_device_name()}")


def _packages(name: str, modules: tuple[str, ...], extra: str) -> Finding:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    remedy = f"pip install 'ds2deploy[{extra}]'"
    if missing:
        return Finding(name, False, f"missing: {', '.join(missing)}", remedy)
    found = ", ".join(f"{m} {_version(m)}" for m in modules)
    return Finding(name, True, found)


def _version(module: str) -> str:
    return importlib.metadata.version(module.replace("_", "-"))


def _nvidia_driver() -> bool:
    import ctypes.util

    return ctypes.util.find_library("cuda") is not None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
