"""A session on OpenVINO, for ONNX files on Intel's and other x86-64 processors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.errors import (
    DeviceError,
    ModelFileError,
    RuntimeUnavailableError,
)
from ds2deploy.runtimes.files import FOREIGN_BYTE
from ds2deploy.runtimes.onnx.graph_check import check_description
from ds2deploy.runtimes.onnx.metadata import read_onnx_description
from ds2deploy.runtimes.onnx.weights import check_weights
from ds2deploy.runtimes.streaming.state import BaseSession
from ds2deploy.runtimes.tensors import Tensors

REMEDY = "pip install 'ds2deploy[openvino]'"

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
"""OpenVINO would compute in bf16 where a processor has it: 1e-2 from the network, not 1e-5."""


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    `import openvino` imports its model converter too, which reports to its makers through the
    package `openvino_telemetry` where that can be imported, and goes on without where it cannot.

    Raises:
        ImportError: it is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


class OpenVinoSession(BaseSession):
    """Runs an exported ONNX file on the CPU; may be called from several threads at once.

    Args:
        path: the artifact, in fp32, fp16 or int8.
        threads: number of threads; 0 leaves OpenVINO's choice.

    Raises:
        MissingFileError: no such file.
        ModelFileError: damaged, or not exported by ds2deploy.
        RuntimeUnavailableError: OpenVINO is not installed, or does not take this model.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        path = Path(path)
        self.description = read_onnx_description(path)
        self.runtime = "openvino"
        check_weights(path)
        self._model = _compile(path, self.description, threads)
        inputs = _signature(self._model.inputs, self.description.inputs)
        outputs = _signature(self._model.outputs, self.description.outputs)
        check_description(self.description, inputs, outputs, path)
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def compute(self, tensors: Tensors) -> Tensors:
        """Run the network once; see `Session.compute`."""
        try:
            request = self._idle.get_nowait()
        except Empty:  # each thread that computes at the same time needs one
            request = self._model.create_infer_request()
        try:
            results = request.infer(tensors, share_inputs=True)
            found = {name: results[name].copy() for name in self.description.outputs}
        except RuntimeError as error:
            name = self.description.inputs[0]
            raise DeviceError(
                f"openvino failed at {name} {tensors[name].shape}: {_last_line(error)}"
            ) from error
        self._idle.put(request)
        return found


def _compile(path: Path, description: ArtifactDescription, threads: int) -> Any:
    """Read the graph and compile it for the CPU."""
    try:
        openvino = import_openvino()
    except ImportError:
        raise RuntimeUnavailableError(f"{path}: OpenVINO is not installed: {REMEDY}") from None
    if description.precision == "bf16":
        raise RuntimeUnavailableError(
            f"{path}: OpenVINO cannot run bf16; use the fp32, fp16 or int8 file"
        )
    settings: dict[str, Any] = dict(EXACT)
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        core = openvino.Core()
        # Names of files must be UTF-8 for it.
        name = path.read_bytes() if FOREIGN_BYTE.search(str(path)) else str(path)
        return core.compile_model(core.read_model(name), "CPU", settings)
    except RuntimeError as error:
        raise ModelFileError(
            f"{path}: damaged, or not an ONNX model that OpenVINO can run ({_last_line(error)}); "
            "export it again, or run it with --runtime onnxruntime"
        ) from None


def _signature(ports: Any, names: Sequence[str]) -> list[Any]:
    """Names and dims of a model's tensors; of several names of one, that which is looked for."""
    return [
        (
            next((name for name in names if name in port.names), port.any_name),
            [dim.get_length() if dim.is_static else None for dim in port.partial_shape],
        )
        for port in ports
    ]


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
