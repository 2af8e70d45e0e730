"""The table of runtimes: loading, bench, doctor and the command line read it.

To add a runtime, write its session in a file of its own, and add its three functions and its row in
`BACKENDS` here; "Add a runtime" in `docs/architecture.md` has all steps in order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from ds2deploy.runtimes.onnx.obstacles import Provider
    from ds2deploy.runtimes.session import Session

FileKind = Literal["onnx", "tensorrt", "rtx", "checkpoint"]
"""Kinds of model files: an ONNX artifact, an engine of either library, a checkpoint."""

DeviceKind = Literal["cpu", "cuda"]
"""Kinds of devices: `cuda` and `cuda:1` are both of the kind `cuda`."""

FILE_NAMES: dict[FileKind, str] = {
    "onnx": "ONNX file",
    "tensorrt": "TensorRT engine",
    "rtx": "TensorRT-RTX engine",
    "checkpoint": "checkpoint",
}


class Examined(NamedTuple):
    """Requirements of a runtime on this machine.

    Attributes:
        works: True if it can run now.
        detail: version, or what is missing.
        remedy: the command that mends it; empty where nothing is to be done.
    """

    works: bool
    detail: str
    remedy: str = ""


class Backend(NamedTuple):
    """A runtime.

    Attributes:
        name: its name in `load(..., runtime=...)` and after `--runtime`.
        title: name in the output of `ds2deploy doctor`.
        files: kinds of files that it opens.
        devices: kinds of devices that it runs on, its default first; `load` refuses another.
        module: module, and package of the same name, of an engine that few have: `bench` measures
            it unasked only if it is installed; empty for runtimes that are always tried.
        open: opens a file of a kind on a device (`cpu`, `cuda:1`, ...) with a number of CPU
            threads, 0 for the runtime's choice. A runtime that computes on a CPU obeys the number,
            or raises `RuntimeUnavailableError`.
        examine: finds out whether it works here; None where another examination covers it.
        preload: imports its libraries, so that a measurement of loading leaves them out.
        asked_only: True if `bench` measures it only if `--runtime` names it: for a runtime that
            serves for comparison, or is so slow that few want to wait for it. None of today's is.
    """

    name: str
    title: str
    files: tuple[FileKind, ...]
    devices: tuple[DeviceKind, ...]
    module: str
    open: Callable[[Path, FileKind, str, int], Session]
    examine: Callable[[], Examined] | None
    preload: Callable[[FileKind], None]
    asked_only: bool = False

    @property
    def needs_gpu(self) -> bool:
        """True for a runtime without a CPU."""
        return "cpu" not in self.devices


def _open_onnxruntime(provider: Provider | None) -> Callable[[Path, FileKind, str, int], Session]:
    """Make an opener of ONNX files on a provider, and of engines on their library."""

    def open_(path: Path, kind: FileKind, device: str, threads: int) -> Session:
        if kind == "onnx":
            from ds2deploy.runtimes.onnx.session import OnnxSession

            return OnnxSession(path, device, threads, provider=provider)
        from ds2deploy.runtimes.tensorrt.session import TensorRtSession

        return TensorRtSession(path, device)

    return open_


def _examine_onnxruntime(provider: Provider) -> Callable[[], Examined]:
    def examine() -> Examined:
        from ds2deploy.runtimes.onnx.library import import_onnxruntime
        from ds2deploy.runtimes.onnx.obstacles import REMEDIES, first_line, obstacle

        try:
            onnxruntime = import_onnxruntime()
        except ImportError as error:
            return Examined(False, first_line(error), REMEDIES[provider])
        found = obstacle(onnxruntime, provider)
        if found is not None:
            return Examined(False, *found)
        return Examined(True, f"ONNX Runtime {onnxruntime.__version__}")

    return examine


def _preload_onnxruntime(kind: FileKind) -> None:
    if kind == "onnx":
        import ds2deploy.runtimes.onnx.session
        from ds2deploy.runtimes.onnx.library import import_onnxruntime

        import_onnxruntime()
    elif kind in ("tensorrt", "rtx"):
        import ds2deploy.runtimes.tensorrt.session  # noqa: F401
        from ds2deploy.runtimes.tensorrt.library import import_tensorrt

        import_tensorrt(kind)


def _open_openvino(path: Path, kind: FileKind, device: str, threads: int) -> Session:
    from ds2deploy.runtimes.openvino import OpenVinoSession

    return OpenVinoSession(path, threads)


def _examine_openvino() -> Examined:
    from ds2deploy.runtimes.openvino import REMEDY, import_openvino

    try:
        openvino = import_openvino()
    except ImportError as error:
        return Examined(False, str(error).splitlines()[0], REMEDY)
    return Examined(True, f"OpenVINO {openvino.__version__.partition('-')[0]}")


def _preload_openvino(kind: FileKind) -> None:
    from ds2deploy.runtimes.openvino import import_openvino

    import_openvino()


def _onnxruntime(
    name: str,
    provider: Provider,
    *engines: FileKind,
    devices: tuple[DeviceKind, ...] = ("cuda",),
) -> Backend:
    return Backend(
        name=name,
        title=f"run .onnx on onnxruntime {provider}",
        files=("onnx", *engines),
        devices=devices,
        module="",
        open=_open_onnxruntime(None if "cpu" in devices else provider),
        examine=_examine_onnxruntime(provider),
        preload=_preload_onnxruntime,
    )


BACKENDS: tuple[Backend, ...] = (
    _onnxruntime("onnxruntime", "cpu", devices=("cpu", "cuda")),
    _onnxruntime("cuda", "cuda"),
    _onnxruntime("tensorrt", "tensorrt", "tensorrt"),
    _onnxruntime("rtx", "rtx", "rtx"),
    Backend(
        name="openvino",
        title="run .onnx on openvino",
        files=("onnx",),
        devices=("cpu",),
        module="openvino",
        open=_open_openvino,
        examine=_examine_openvino,
        preload=_preload_openvino,
    ),
)
"""Runtimes of a device. The first that opens a kind of file is the one that the kind is for."""
