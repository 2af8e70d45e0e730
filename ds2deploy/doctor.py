"""Checks of the runtimes on this machine, with a command to fix each one that does not work."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

import msgspec

from ds2deploy.loading import BACKENDS
from ds2deploy.runtimes.engine_description import Flavor
from ds2deploy.runtimes.errors import RuntimeUnavailableError
from ds2deploy.runtimes.onnx.obstacles import DRIVER
from ds2deploy.runtimes.tensorrt.cuda import NoDeviceError, examine_device, open_device
from ds2deploy.runtimes.tensorrt.library import NAMES, import_tensorrt, install_command
from ds2deploy.runtimes.tensorrt.rtx_devices import on_another_gpu


class Finding(msgspec.Struct, frozen=True):
    """Result of one check.

    Attributes:
        name: name of the checked use, such as `run .onnx on onnxruntime`.
        works: True if it works.
        detail: version, or the missing part.
        remedy: command that fixes it; empty if it works.
    """

    name: str
    works: bool
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Run all checks, without changing anything."""
    return [
        Finding("Python", True, platform.python_version()),
        *(
            Finding(backend.title, *backend.examine())
            for backend in BACKENDS
            if backend.examine is not None
        ),
        _torch_cuda(),
        _cuda(),
        *_engines("tensorrt"),
        *_engines("rtx"),
        _packages("training", ("lightning", "lhotse", "jiwer"), "train"),
        _packages("export", ("onnx", "torch", "lhotse"), "export"),
        _packages("demo", ("espeakng_loader", "onnx", "torch"), "demo"),
    ]


def _torch_cuda() -> Finding:
    name = "run .ckpt on torch cuda"
    try:
        import torch
    except ImportError as error:
        return Finding(name, False, _reason(error), "pip install 'ds2deploy[train]'")
    version = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        remedy = f"{DRIVER}, and a CUDA build of torch"
        return Finding(name, False, f"{version} finds no CUDA device", remedy)
    return Finding(name, True, f"{version}, {torch.cuda.get_device_name()}")


def _cuda() -> Finding:
    works, detail, remedy = examine_device()
    with_version = f"cuda-bindings {_version('cuda.bindings')}, " if _has("cuda.bindings") else ""
    return Finding("CUDA from Python", works, f"{with_version}{detail}", remedy)


def _engines(flavor: Flavor) -> list[Finding]:
    """Check that the library can build and run engines."""
    build, run = (f"{verb} {NAMES[flavor]} engines" for verb in ("build", "run"))
    try:
        library = import_tensorrt(flavor)
    except RuntimeUnavailableError as error:
        reason = _split(error, install_command(flavor))
        return [Finding(build, False, *reason), Finding(run, False, *reason)]
    works, detail, remedy = examine_device()
    runs = Finding(run, works, f"{library.title}, {detail}", remedy)
    if flavor == "rtx" and (another := _another_gpu()):
        remedy = f"build engines with --trt for this GPU: {install_command('tensorrt')}"
        runs = Finding(run, False, f"{library.title}: {another}", remedy)
    if not _has("polygraphy"):
        missing = f"{library.title}, polygraphy is missing"
        return [Finding(build, False, missing, f"pip install 'ds2deploy[{flavor}]'"), runs]
    if flavor == "tensorrt" and not works:
        return [Finding(build, False, f"{library.title}, needs a GPU: {detail}", remedy), runs]
    return [Finding(build, True, f"{library.title}{'' if works else ', without a GPU'}"), runs]


def _split(error: RuntimeUnavailableError, remedy: str) -> tuple[str, str]:
    """Split the message of an error into the reason and the remedy at its end."""
    return str(error).removesuffix(f": {remedy}"), remedy


def _packages(name: str, modules: tuple[str, ...], extra: str) -> Finding:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    remedy = f"pip install 'ds2deploy[{extra}]'"
    if missing:
        return Finding(name, False, f"missing: {', '.join(missing)}", remedy)
    found = ", ".join(f"{m} {_version(m)}" for m in modules)
    return Finding(name, True, found)


def _version(module: str) -> str:
    return importlib.metadata.version(module.replace("_", "-").replace(".", "-"))


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is not installed
        return False


def _another_gpu() -> str:
    """Return the name of this machine's GPU if TensorRT-RTX does not support it; else empty."""
    try:
        return on_another_gpu(open_device())
    except NoDeviceError:
        return ""


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
