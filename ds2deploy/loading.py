"""`ds2deploy.load`: any model file to a `Recognizer`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from ds2deploy.runtimes.errors import (
    ConfigError,
    MissingFileError,
    ModelFileError,
    RuntimeUnavailableError,
)
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.session import Session, usable_cores
from ds2deploy.runtimes.tensorrt.engine_file import SUFFIX as ENGINE_SUFFIX
from ds2deploy.runtimes.tensorrt.engine_file import read_engine_description

Runtime = Literal["onnxruntime", "torch", "cuda", "tensorrt", "rtx"]
"""What can be asked for. `cuda`, `tensorrt` and `rtx` are ONNX Runtime's providers for an ONNX
file, and the last two the library itself for an engine."""

Natural = Literal["onnxruntime", "torch", "tensorrt", "rtx"]
"""What a file is for."""

ZIP_MAGIC = b"PK\x03\x04"


def load(
    path: str | Path,
    device: str | None = None,
    runtime: Runtime | None = None,
    threads: int = 0,
) -> Recognizer:
    """Open a model of any kind.

    Args:
        path: an exported ONNX file, an engine, or a checkpoint of ds2deploy or of
            deepspeech.pytorch.
        device: `cpu`, `cuda`, `cuda:1`, ...; None takes the one that the runtime is for.
        runtime: what must run it; None takes the one that the file is for.
        threads: number of CPU threads, at most one per core; 0 leaves the runtime's choice.

    Raises:
        MissingFileError: no such file.
        ModelFileError: not a model, damaged, or of a newer format.
        RuntimeUnavailableError: the runtime or the device is not there; nothing else is tried.
        ConfigError: fewer than 0 threads.
    """
    if threads < 0:
        raise ConfigError(f"threads {threads}: expected 0 or more")
    path = Path(path)
    natural = model_runtime(path)
    chosen = _choose(path, natural, runtime)
    if device is None:
        device = "cpu" if chosen in ("onnxruntime", "torch") else "cuda"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise RuntimeUnavailableError(f"{path}: device {device!r} is not one of cpu, cuda")
    if device == "cpu" and chosen not in ("onnxruntime", "torch"):
        raise RuntimeUnavailableError(
            f"{path}: {chosen} runs on a GPU only: --device cuda, or the ONNX file on onnxruntime"
        )
    return Recognizer(_open(path, natural, chosen, device, min(threads, usable_cores())))


def _choose(path: Path, natural: Natural, runtime: Runtime | None) -> Runtime:
    """The runtime that is asked for, where it takes such a file."""
    takes: dict[Natural, tuple[Runtime, ...]] = {
        "onnxruntime": ("onnxruntime", "cuda", "tensorrt", "rtx"),
        "torch": ("torch",),
        "tensorrt": ("tensorrt",),
        "rtx": ("rtx",),
    }
    if runtime is None or runtime in takes[natural]:
        return runtime or natural
    if runtime == "torch":
        remedy = "give the checkpoint for torch"
    elif natural == "torch":
        remedy = "export it first"
    else:
        remedy = f"give the ONNX file, or one that was exported for {runtime}"
    raise RuntimeUnavailableError(f"{path}: runs on {natural}, not on {runtime}; {remedy}")


def model_runtime(path: Path) -> Natural:
    """The runtime that a model file is for.

    Raises:
        MissingFileError: no such file.
        ModelFileError: not a model, or of no known kind.
    """
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "no such file"
        raise MissingFileError(f"{path}: {kind}; expected a model (.onnx, .engine or .ckpt)")
    if path.suffix.lower() == ".onnx":
        return "onnxruntime"
    if path.suffix == ENGINE_SUFFIX:
        return read_engine_description(path)[1].flavor
    with path.open("rb") as file:
        if file.read(4) == ZIP_MAGIC or path.suffix.lower() in (".ckpt", ".pth", ".pt"):
            return "torch"
    raise ModelFileError(
        f"{path}: not a model; expected an .onnx artifact, an .engine or a .ckpt checkpoint"
    )


def _open(path: Path, natural: Natural, chosen: Runtime, device: str, threads: int) -> Session:
    """The session of a model file on its runtime."""
    if natural == "onnxruntime":
        from ds2deploy.runtimes.onnx.session import OnnxSession

        if chosen in ("cuda", "tensorrt", "rtx"):
            return OnnxSession(path, device, threads, provider=chosen)
        return OnnxSession(path, device, threads)
    if natural != "torch":
        from ds2deploy.runtimes.tensorrt.session import TensorRtSession

        return TensorRtSession(path, device)
    return open_checkpoint(path, device, threads)


def open_checkpoint(
    path: Path, device: str = "cpu", threads: int = 0, packed: bool = False
) -> Session:
    """The session of a checkpoint on PyTorch.

    Args:
        path: of the checkpoint.
        device: `cpu`, `cuda`, `cuda:1`, ...
        threads: number of CPU threads of this whole process, at most one per core; 0 leaves torch's
            choice.
        packed: run packed sequences on a CPU too, see `model.pack_sequences`.

    Raises:
        MissingFileError: no such file.
        ModelFileError: not a checkpoint, damaged, or of a newer format.
        RuntimeUnavailableError: PyTorch or the device is not there.
    """
    try:
        import torch
    except ImportError:
        raise RuntimeUnavailableError(
            f"{path}: a checkpoint needs PyTorch: pip install 'ds2deploy[train]', "
            "or export it to ONNX where PyTorch is and run that here"
        ) from None
    from ds2deploy.model.load import load_checkpoint
    from ds2deploy.model.network import pack_sequences
    from ds2deploy.model.streaming import torch_session

    if threads:
        torch.set_num_threads(min(threads, usable_cores()))
    checkpoint = load_checkpoint(path)
    if packed:
        pack_sequences(checkpoint.network)
    return torch_session(checkpoint, device)
