"""Writes a model repository of Triton: a folder for each artifact, verified before it appears."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from ds2deploy.export.parity.report import Progress
from ds2deploy.export.triton.check import check_config, declared_graph, onnx_graph
from ds2deploy.export.triton.config import (
    WARMUP_LENGTH,
    Device,
    check_servable,
    make_config,
    warmup_size,
)
from ds2deploy.export.triton.schema import load_schema
from ds2deploy.export.triton.simulator import onnx_run
from ds2deploy.export.triton.verification import Simulation, simulate
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.errors import MissingFileError, ParityError
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.files import WholeFiles
from ds2deploy.runtimes.onnx.metadata import read_onnx_description
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.runtimes.tensorrt.engine_file import read_engine_description

VERSION = "1"
"""Folder of the only version of a model."""

CONFIG, LABELS, DESCRIPTION = "config.pbtxt", "labels.txt", "ds2deploy.json"


class TritonOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a model repository.

    Attributes:
        repository: folder of the repository.
        device: device on which Triton runs ONNX files; engines run on a GPU.
    """

    repository: str
    device: Device = "cpu"


class TritonExport(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="triton"):
    """A model that was written into a repository.

    Attributes:
        path: folder of the model; its name is the model's.
        artifact: name of the artifact in it.
        device: device on which Triton runs it.
        max_batch_size: largest batch.
        verification: one line that describes the check.
        simulation: result of the simulation; None where the file does not run here.
    """

    path: str
    artifact: str
    device: Device
    max_batch_size: int
    verification: str
    simulation: Simulation | None


def check_repository(options: TritonOptions) -> None:
    """Refuse a repository that cannot be written or checked here, before any work.

    Raises:
        MissingFileError: a file of that name.
        RuntimeUnavailableError: tritonclient is not installed.
    """
    folder = Path(options.repository)
    if folder.exists() and not folder.is_dir():
        raise MissingFileError(f"{folder}: is a file; expected a folder for the model repository")
    load_schema()


def model_name(artifact: str) -> str:
    """`model_streaming_fp16` for `model.streaming.fp16.onnx`; an engine's ends in `_trt`."""
    stem = artifact.removesuffix(".onnx")
    if stem == artifact:
        stem = f"{artifact.removesuffix('.engine')}.trt"
    return stem.replace(".", "_")


def write_model(
    artifact: Path,
    name: str,
    onnx: Path,
    description: ArtifactDescription,
    options: TritonOptions,
    files: WholeFiles,
    progress: Progress = lambda message: None,
    waveforms: Sequence[FloatArray] | None = None,
) -> TritonExport:
    """Add one artifact to a repository, verified.

    Args:
        artifact: the verified ONNX file or engine; it is copied.
        name: name of its file, in the folder for artifacts.
        onnx: the ONNX file of the engine, which is run in its place; else the artifact.
        description: metadata of the artifact.
        options: repository and device.
        files: files of the export; those of the model take their names with them.
        progress: called with what is being done.
        waveforms: speech for the simulation; synthetic by default.

    Raises:
        ConfigError: Triton cannot serve the artifact, or not so.
        ParityError: the configuration, or a text in the simulation, differs from the artifact.
    """
    check_servable(description, options.device)
    progress("writing the Triton model")
    text = make_config(description, options.device)
    engine, runnable = description.engine, description.precision != "bf16"
    graph = onnx_graph(artifact) if engine is None else declared_graph(description)
    config = check_config(text, description, graph)
    folder = Path(options.repository, model_name(name))
    # Added first, the configuration takes its name last: Triton finds no model before it is whole.
    files.add(folder / CONFIG).write_text(text, encoding="utf-8")
    labels = "".join(f"{label}\n" for label in description.labels)
    files.add(folder / LABELS).write_text(labels, encoding="utf-8")
    document = msgspec.json.format(description.to_json()) + "\n"
    files.add(folder / DESCRIPTION).write_text(document, encoding="utf-8")
    if config.model_warmup:
        length = np.array(warmup_size(description), "<i8").tobytes()
        files.add(folder / "warmup" / WARMUP_LENGTH).write_bytes(length)
    file = "model.onnx" if engine is None else "model.plan"
    shutil.copyfile(artifact, files.add(folder / VERSION / file))
    simulation = None
    if runnable:
        progress("simulating Triton")
        # Of the engine's description: its profile bounds what a client sends.
        direct = OnnxSession(onnx, description=description)
        own = (read_onnx_description(onnx).parity or {}).get("pytorch_difference")
        simulation = simulate(config, onnx_run(onnx), direct, waveforms, own)
        if not simulation.passed:
            raise ParityError(
                f"{name}: its texts in the simulation of Triton differ from those of the artifact, "
                f"nothing was written: {simulation.failure()}"
            )
    return TritonExport(
        path=str(folder),
        artifact=name,
        device="cpu" if config.instance_group[0].kind == _cpu() else "gpu",
        max_batch_size=config.max_batch_size,
        verification=_verification(simulation, engine is not None),
        simulation=simulation,
    )


def write_engine_model(
    engine: Path,
    onnx: Path,
    options: TritonOptions,
    files: WholeFiles,
    progress: Progress = lambda message: None,
    waveforms: Sequence[FloatArray] | None = None,
) -> TritonExport:
    """Add an engine that the same export has built; see `write_model`.

    Args:
        engine: its final path; `files` has it.
        onnx: the file that it was built of.
        options: repository and device.
        files: files of the export.
        progress: called with what is being done.
        waveforms: speech for the simulation; synthetic by default.
    """
    built = files.temporary(engine)
    description = read_engine_description(built)[0]
    return write_model(built, engine.name, onnx, description, options, files, progress, waveforms)


def _cpu() -> int:
    return int(load_schema().ModelInstanceGroup.Kind.Value("KIND_CPU"))


def _verification(simulation: Simulation | None, engine: bool) -> str:
    checked = "configuration parsed by Triton's schema and compared with the artifact"
    if simulation is None:
        return f"{checked}; not simulated: ONNX Runtime cannot run bf16 on a CPU; not run on Triton"
    file = "its ONNX file" if engine else "the file"
    return (
        f"{checked}; simulated on {file}: {simulation.requests} requests of {simulation.clients} "
        f"clients, batches of up to {simulation.largest_batch}, {simulation.same_text} of "
        f"{simulation.clients} texts equal; not run on Triton"
    )
