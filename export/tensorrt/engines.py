"""Engines of an ONNX file that was exported before, on or for the device.

Nothing here needs torch or onnx: a device builds its engine from a verified ONNX file with ONNX
Runtime and TensorRT alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ds2deploy.export.parity.reference import Reference
from ds2deploy.export.parity.report import Progress
from ds2deploy.export.tensorrt.build_process import check_builder
from ds2deploy.export.tensorrt.options import EngineOptions, refuse_what_no_parser_takes
from ds2deploy.export.tensorrt.verified_engine import EngineExport, export_engine, longest_frames
from ds2deploy.export.triton.config import check_engine
from ds2deploy.export.triton.repository import (
    TritonExport,
    TritonOptions,
    check_repository,
    write_engine_model,
)
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.errors import ConfigError, MissingFileError, ModelFileError
from ds2deploy.runtimes.files import WholeFiles
from ds2deploy.runtimes.onnx.session import OnnxSession, describe_artifact


def export_engines(
    artifact: str | Path,
    out: str | Path,
    engines: Sequence[EngineOptions],
    progress: Progress = lambda message: None,
    triton: TritonOptions | None = None,
) -> list[EngineExport | TritonExport]:
    """Build engines of an ONNX artifact, on or for the device, without its checkpoint.

    The artifact was compared with the checkpoint when it was exported; the engines are compared
    with the artifact, in ONNX Runtime on the CPU, by the tolerance that the artifact had.

    Args:
        artifact: an ONNX file that ds2deploy exported.
        out: folder for the engines.
        engines: options of the engines to build.
        progress: function that receives the current step, as text.
        triton: repository of Triton for the engines; None for none.

    Raises:
        ParityError: an engine differs from the artifact, or a model of the repository from its
            engine; none is written.
        MissingFileError, ModelFileError: a bad input.
        ConfigError: an artifact in bf16, which has nothing to be compared with here.
        RuntimeUnavailableError: TensorRT or ONNX Runtime is not there, or cannot build here.
    """
    artifact, out = Path(artifact), Path(out)
    if not engines:
        raise ConfigError(
            f"{artifact}: is already an ONNX file; add --trt or --rtx to build an engine from it, "
            "or give a checkpoint"
        )
    check_destination(out, engines, triton)
    description = describe_artifact(artifact)
    refuse_what_no_parser_takes(description.model, description.precision, str(artifact))
    if not (description.parity or {}).get("passed"):
        raise ModelFileError(f"{artifact}: contains no parity report that passed; export it again")
    if description.precision == "bf16":
        raise ConfigError(
            f"{artifact}: an engine in bf16 can only be verified with its checkpoint; export the "
            "checkpoint with --precision bf16 and --trt or --rtx"
        )
    profiles = [options.profile(description.features, description.blocks) for options in engines]
    reference = Reference(
        OnnxSession(artifact),
        frames=longest_frames(profiles),
        name=artifact.name,
        pytorch_difference=_pytorch_difference(description),
    )
    command = shlex.join(["ds2deploy", "export", str(artifact), "--out", str(out)])
    written: list[EngineExport | TritonExport] = []
    with WholeFiles() as files:
        for options in engines:
            built = export_engine(
                artifact, options, reference, out / artifact.name, command, files, progress
            )
            written.append(built)
            if triton is not None:
                engine = Path(built.path)
                written.append(write_engine_model(engine, artifact, triton, files, progress))
    return written


def check_destination(
    out: Path, engines: Sequence[EngineOptions], triton: TritonOptions | None
) -> None:
    """Refuse what cannot be written, built or verified here, before anything is read.

    Raises:
        MissingFileError: the folder for the artifacts is a file.
        ConfigError, RuntimeUnavailableError: see `check_repository`, `check_engine` and
            `check_builder`.
    """
    if out.exists() and not out.is_dir():
        raise MissingFileError(f"{out}: is a file; expected a folder for the artifacts")
    if triton is not None:
        check_repository(triton)
        for options in engines:
            check_engine(options.flavor, options.batch)
    for options in engines:
        check_builder(options)


def _pytorch_difference(description: ArtifactDescription) -> float | None:
    """PyTorch's own distance from float64 that the export measured; older ones did not."""
    found = (description.parity or {}).get("pytorch_difference")
    known = isinstance(found, float) and 0 <= found < float("inf")
    return found if known else None
