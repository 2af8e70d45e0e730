"""Engines of an export: of a checkpoint beside its ONNX files, or of an ONNX file on the device.

Nothing here needs torch or onnx: a device builds its engine from a verified ONNX file with ONNX
Runtime and TensorRT alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ds2deploy.export.parity.reference import Reference
from ds2deploy.export.parity.report import ParityReport
from ds2deploy.export.tensorrt.options import EngineOptions, refuse_what_no_parser_takes
from ds2deploy.export.tensorrt.verified_engine import (
    check_builder,
    engine_name,
    longest_frames,
    write_engine,
)
from ds2deploy.runtimes.artifact import ArtifactDescription, Precision
from ds2deploy.runtimes.engine_description import BuildFacts, Flavor, Profile
from ds2deploy.runtimes.errors import ConfigError, MissingFileError, ModelFileError
from ds2deploy.runtimes.files import WholeFiles
from ds2deploy.runtimes.onnx.session import OnnxSession, describe_artifact
from ds2deploy.runtimes.tensorrt.engine_file import description_path

Progress = Callable[[str], None]


class EngineExport(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="engine"):
    """An engine that was written.

    Attributes:
        path: of the engine; its description is beside it.
        size: in bytes.
        sha256: of the engine.
        precision: of weights and activations.
        flavor: of the library that built it.
        version: of that library.
        compute_capabilities: of the GPUs that it is for.
        profile: the shapes that it takes.
        verification: in a line, what has been run.
        build: what it took.
        network: report of the parsed network on the CPU.
        report: of the engine on the GPU; None where it was not run.
    """

    path: str
    size: int
    sha256: str
    precision: Precision
    flavor: Flavor
    version: str
    compute_capabilities: tuple[str, ...]
    profile: Profile
    verification: str
    build: BuildFacts
    network: ParityReport
    report: ParityReport | None


def export_engine(
    onnx: Path,
    description: ArtifactDescription,
    options: EngineOptions,
    reference: Reference,
    final: Path,
    command: str,
    files: WholeFiles,
    progress: Progress,
    network: ParityReport | None = None,
) -> EngineExport:
    """Write one engine that takes its name when the whole export has passed.

    Args:
        onnx: the file to build it of.
        description: of that file.
        options: how to build it.
        reference: what it should compute.
        final: name of the ONNX file, of which the engine's is made, in the folder for both.
        command: that was given, without the engine's options.
        files: files of the export; the engine and its description take their names with them.
        progress: told what is being done.
        network: report of the parsed network, where it was compared already.
    """
    engine = final.with_name(engine_name(final.name, options))
    temporary = files.add(engine)
    # Added last, the description takes its name first: an engine never stands without one.
    beside = files.add(description_path(engine))
    assert beside == description_path(temporary)
    rebuild = f"{command} {shlex.join(options.command(description.blocks))}"
    result = write_engine(
        onnx, description, options, reference, temporary, rebuild, progress, network
    )
    facts = result.description.engine
    assert facts is not None
    return EngineExport(
        path=str(engine),
        size=facts.size,
        sha256=facts.engine_sha256,
        precision=description.precision,
        flavor=facts.flavor,
        version=facts.version,
        compute_capabilities=facts.compute_capabilities,
        profile=facts.profile,
        verification=facts.verification,
        build=facts.build,
        network=result.network,
        report=result.engine,
    )


def export_engines(
    artifact: str | Path,
    out: str | Path,
    engines: Sequence[EngineOptions],
    progress: Progress = lambda message: None,
) -> list[EngineExport]:
    """Build engines of an ONNX artifact, on or for the device, without its checkpoint.

    The artifact was compared with the checkpoint when it was exported; the engines are compared
    with the artifact, in ONNX Runtime on the CPU, by the tolerance that the artifact had.

    Args:
        artifact: an ONNX file that ds2deploy exported.
        out: folder for the engines.
        engines: what to build.
        progress: told what is being done.

    Raises:
        ParityError: an engine differs from the artifact; none is written.
        MissingFileError, ModelFileError: a bad input.
        ConfigError: an artifact in bf16, which has nothing to be compared with here.
        RuntimeUnavailableError: TensorRT or ONNX Runtime is not there, or cannot build here.
    """
    artifact, out = Path(artifact), Path(out)
    if not engines:
        raise ConfigError(
            f"{artifact}: is ONNX already; add --trt or --rtx to build an engine of it, or give a "
            "checkpoint"
        )
    if out.exists() and not out.is_dir():
        raise MissingFileError(f"{out}: is a file; expected a folder for the engines")
    for options in engines:
        check_builder(options)
    description = describe_artifact(artifact)
    refuse_what_no_parser_takes(description.model, description.precision, str(artifact))
    if not (description.parity or {}).get("passed"):
        raise ModelFileError(f"{artifact}: holds no parity report that passed; export it again")
    if description.precision == "bf16":
        raise ConfigError(
            f"{artifact}: ONNX Runtime computes no bfloat16 on a CPU, so that an engine of it can "
            "be compared with its checkpoint only: export that"
        )
    profiles = [options.profile(description.features, description.blocks) for options in engines]
    reference = Reference(
        OnnxSession(artifact),
        frames=longest_frames(profiles),
        name=artifact.name,
        pytorch_difference=_pytorch_difference(description),
    )
    command = shlex.join(["ds2deploy", "export", str(artifact), "--out", str(out)])
    with WholeFiles() as files:
        return [
            export_engine(
                artifact, description, options, reference, out / artifact.name, command, files,
                progress,
            )
            for options in engines
        ]  # fmt: skip


def _pytorch_difference(description: ArtifactDescription) -> float | None:
    """PyTorch's own distance from float64 that the export measured; older ones did not."""
    found = (description.parity or {}).get("pytorch_difference")
    known = isinstance(found, float) and 0 <= found < float("inf")
    return found if known else None
