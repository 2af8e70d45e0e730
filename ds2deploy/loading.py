"""`ds2deploy.load`: any model file to a `Recognizer`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from ds2deploy.runtimes.errors import MissingFileError, ModelFileError, RuntimeUnavailableError
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.session import Session

Runtime = Literal["onnxruntime", "torch"]

ZIP_MAGIC = b"PK\x03\x04"


def load(
    path: str | Path, device: str = "cpu", runtime: Runtime | None = None, threads: int = 0
) -> Recognizer:
    """Open a model of any kind.

    Args:
        path: an exported ONNX file, or a checkpoint of ds2deploy or of deepspeech.pytorch.
        device: `cpu`, `cuda`, `cuda:1`, ...
        runtime: what must run it; None takes the one that the file is for.
        threads: of the CPU; 0 leaves the runtime's choice.

    Raises:
        MissingFileError: no such file.
        ModelFileError: not a model, damaged, or of a newer format.
        RuntimeUnavailableError: the runtime or the device is not there; nothing else is tried.
    """
    path = Path(path)
    natural = model_runtime(path)
    if runtime not in (None, natural):
        raise RuntimeUnavailableError(
            f"{path}: runs on {natural}, not on {runtime}; "
            + ("export it first" if natural == "torch" else "give the checkpoint for torch")
        )
    return Recognizer(open_session(path, natural, device, threads))


def model_runtime(path: Path) -> Runtime:
    """The runtime that a model file is for.

    Raises:
        MissingFileError: no such file.
        ModelFileError: not a model, or of no known kind.
    """
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "no such file"
        raise MissingFileError(f"{path}: {kind}; expected a model (.onnx or .ckpt)")
    if path.suffix == ".onnx":
        return "onnxruntime"
    with path.open("rb") as file:
        if file.read(4) == ZIP_MAGIC or path.suffix in (".ckpt", ".pth", ".pt"):
            return "torch"
    raise ModelFileError(f"{path}: not a model; expected an .onnx artifact or a .ckpt checkpoint")


def open_session(path: Path, runtime: Runtime, device: str, threads: int) -> Session:
    """The session of a model file on its runtime."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise RuntimeUnavailableError(f"{path}: device {device!r} is not one of cpu, cuda")
    if runtime == "onnxruntime":
        from ds2deploy.runtimes.onnx_session import OnnxSession

        return OnnxSession(path, device, threads)
    try:
        import torch
    except ImportError:
        raise RuntimeUnavailableError(
            f"{path}: a checkpoint needs PyTorch: pip install 'ds2deploy[train]', "
            "or export it to ONNX where PyTorch is and run that here"
        ) from None
    from ds2deploy.checkpoint import load_checkpoint
    from ds2deploy.runtimes.torch_session import TorchSession

    if threads:
        torch.set_num_threads(threads)
    checkpoint = load_checkpoint(path)
    return TorchSession(checkpoint.network, checkpoint.description(), device)
