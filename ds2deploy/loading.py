"""Loading of any model file as a `Recognizer`."""

from __future__ import annotations

import re
from pathlib import Path

from ds2deploy.runtimes.backends import BACKENDS as DEVICE_BACKENDS
from ds2deploy.runtimes.backends import Backend, Examined, FileKind
from ds2deploy.runtimes.decoding.decoder import MakeDecoder
from ds2deploy.runtimes.decoding.making import make_decoder
from ds2deploy.runtimes.errors import (
    ConfigError,
    ModelFileError,
    RuntimeUnavailableError,
    missing_file,
    require,
)
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.session import Session, usable_cores
from ds2deploy.runtimes.tensorrt.engine_file import SUFFIX as ENGINE_SUFFIX
from ds2deploy.runtimes.tensorrt.engine_file import read_engine_description

ZIP_MAGIC = b"PK\x03\x04"


def load(
    path: str | Path,
    device: str | None = None,
    runtime: str | None = None,
    threads: int = 0,
    decoder: MakeDecoder | str | Path | None = None,
) -> Recognizer:
    """Open a model of any kind.

    Args:
        path: exported ONNX file, engine, or checkpoint of ds2deploy or deepspeech.pytorch.
        device: name of the device: `cpu`, `cuda`, `cuda:1`, ...; None takes the runtime's default.
        runtime: name of the runtime, see `runtime_names`; None takes the usual one of the file's
            format.
        threads: number of CPU threads, at most one per core; 0 lets the runtime choose.
        decoder: `DecoderConfig`, path of a `.decoder` file, `rewrite_words(...)`, or any function
            or class that makes a decoder from the labels and the duration of a frame in seconds;
            None decodes greedily.

    Raises:
        MissingFileError: the file does not exist.
        ModelFileError: the file is not a model, is damaged, or has a newer format.
        RuntimeUnavailableError: the runtime or the device is missing, or the runtime does not run
            on that device; no other one is tried.
        ConfigError: the number of threads is negative, or `decoder` is a decoder instead of a
            function that makes one.
    """
    make = make_decoder(decoder)
    if threads < 0:
        raise ConfigError(f"threads = {threads}: expected 0 or more")
    path = Path(path)
    kind, backend, device = choose_backend(path, device, runtime)
    session = backend.open(path, kind, device, min(threads, usable_cores()))
    return Recognizer(session, make)


def choose_backend(
    path: Path, device: str | None = None, runtime: str | None = None
) -> tuple[FileKind, Backend, str]:
    """Determine where a model would run, without opening it.

    Returns:
        Kind of the file, its runtime, and the name of the device.

    Raises:
        MissingFileError, ModelFileError: see `file_kind`.
        RuntimeUnavailableError: the runtime does not open this kind of file, or does not run on
            that device.
    """
    kind = file_kind(path)
    backend = _choose(path, kind, runtime)
    device = backend.devices[0] if device is None else device
    _check_device(path, kind, backend, device)
    return kind, backend, device


def runtime_names() -> tuple[str, ...]:
    """List the names of all runtimes for `load` and `--runtime`."""
    return tuple(backend.name for backend in BACKENDS)


def backends_for(kind: FileKind) -> list[Backend]:
    """List the runtimes that can open a kind of file, with its usual one first."""
    return [backend for backend in BACKENDS if kind in backend.files]


def _choose(path: Path, kind: FileKind, runtime: str | None) -> Backend:
    """Find the requested runtime, if it can open the file."""
    takes = backends_for(kind)
    if runtime is None:
        return takes[0]
    if found := [backend for backend in takes if backend.name == runtime]:
        return found[0]
    if runtime == TORCH.name:
        remedy = "give the checkpoint"
    elif kind == "checkpoint":
        remedy = f"export it first: ds2deploy export {path}"
    else:
        remedy = "give the ONNX file"
    names = ", ".join(backend.name for backend in takes)
    raise RuntimeUnavailableError(
        f"{path}: --runtime {runtime}: this file only runs on {names}; {remedy}, or omit --runtime"
    )


def _check_device(path: Path, kind: FileKind, backend: Backend, device: str) -> None:
    """Refuse a device that is none, or that the runtime does not run on.

    Raises:
        RuntimeUnavailableError: names a device or a runtime to choose instead.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise RuntimeUnavailableError(f"{path}: --device {device!r}: expected cpu, cuda or cuda:N")
    wanted = device.partition(":")[0]
    if wanted in backend.devices:
        return
    if wanted == "cpu":
        raise RuntimeUnavailableError(
            f"{path}: --device cpu: {backend.name} needs a GPU; use --device cuda, or the ONNX "
            "file with --runtime onnxruntime"
        )
    others = [other.name for other in backends_for(kind) if wanted in other.devices]
    or_other = f", or use --runtime {others[0]}" if others else ""
    raise RuntimeUnavailableError(
        f"{path}: --device {device}: {backend.name} only runs on the CPU; omit --device{or_other}"
    )


def file_kind(path: Path) -> FileKind:
    """Determine the kind of a model file.

    Raises:
        MissingFileError: the file does not exist.
        ModelFileError: the file is not a model of a known kind.
    """
    if not path.is_file():
        raise missing_file(path, "a model (.onnx, .engine or .ckpt)")
    if path.suffix.lower() == ".onnx":
        return "onnx"
    if path.suffix == ENGINE_SUFFIX:
        return read_engine_description(path)[1].flavor
    with path.open("rb") as file:
        if file.read(4) == ZIP_MAGIC or path.suffix.lower() in (".ckpt", ".pth", ".pt"):
            return "checkpoint"
    raise ModelFileError(
        f"{path}: not a model; expected an artifact (.onnx), an engine (.engine) or a checkpoint "
        "(.ckpt)"
    )


def read_labels(value: str) -> str:
    """Read the labels of a model, or return the value if it does not look like a file name.

    Args:
        value: path of an artifact, engine, checkpoint or language model; or labels.

    Raises:
        MissingFileError: the file does not exist.
        ModelFileError: the file is not a model, or is damaged.
    """
    from ds2deploy.runtimes.decoding.language_model_file import SUFFIX as LANGUAGE_MODEL_SUFFIX
    from ds2deploy.runtimes.decoding.language_model_file import read_file

    path = Path(value)
    suffixes = (".onnx", ENGINE_SUFFIX, ".ckpt", ".pth", ".pt", LANGUAGE_MODEL_SUFFIX)
    if path.suffix.lower() not in suffixes and not path.is_file():
        return value
    if path.suffix == LANGUAGE_MODEL_SUFFIX:
        return read_file(path)[0].labels
    kind = file_kind(path)
    if kind == "onnx":
        from ds2deploy.runtimes.onnx.session import describe_artifact

        return describe_artifact(path).labels
    if kind != "checkpoint":
        return read_engine_description(path)[0].labels
    require("torch", "train")
    from ds2deploy.model.load import load_checkpoint

    return load_checkpoint(path).description().labels


def open_checkpoint(
    path: Path, device: str = "cpu", threads: int = 0, packed: bool = False
) -> Session:
    """Open a session of a checkpoint on PyTorch.

    Args:
        path: path of the checkpoint.
        device: name of the device: `cpu`, `cuda`, `cuda:1`, ...
        threads: number of CPU threads of the whole process, at most one per core; 0 lets torch
            choose.
        packed: run packed sequences on a CPU too, see `model.pack_sequences`.

    Raises:
        MissingFileError: the file does not exist.
        ModelFileError: the file is not a checkpoint, is damaged, or has a newer format.
        RuntimeUnavailableError: PyTorch or the device is missing.
    """
    try:
        import torch
    except ImportError:
        raise RuntimeUnavailableError(
            f"{path}: a checkpoint needs PyTorch: pip install 'ds2deploy[train]', "
            "or export it on a machine with PyTorch and use the ONNX file here"
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


def _examine_torch() -> Examined:
    try:
        import torch
    except ImportError as error:
        return Examined(False, str(error).splitlines()[0], "pip install 'ds2deploy[train]'")
    return Examined(True, f"torch {torch.__version__}")


def _preload_torch(kind: FileKind) -> None:
    import ds2deploy.model.streaming  # noqa: F401


TORCH = Backend(
    name="torch",
    title="run .ckpt on torch cpu",
    files=("checkpoint",),
    devices=("cpu", "cuda"),
    module="",
    open=lambda path, kind, device, threads: open_checkpoint(path, device, threads),
    examine=_examine_torch,
    preload=_preload_torch,
)

BACKENDS: tuple[Backend, ...] = (*DEVICE_BACKENDS, TORCH)
"""All runtimes: those for devices, and PyTorch."""
