"""Build of a TensorRT engine from a verified ONNX file, with a check of every stage.

First the network as TensorRT's parser made it is computed on the CPU and compared with the
reference; only then is it built; and where a GPU is present, the engine runs over the shapes of
its profile. A check above its tolerance leaves no file behind.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ds2deploy.export.parity.check import check_parity
from ds2deploy.export.parity.reference import FRAMES, Reference
from ds2deploy.export.parity.report import ParityReport, Progress
from ds2deploy.export.parsed_network.evaluator import check_network
from ds2deploy.export.tensorrt.build_process import make_job, run_build
from ds2deploy.export.tensorrt.options import RTX_DEFAULT, EngineOptions
from ds2deploy.export.tensorrt.profiles import grid
from ds2deploy.runtimes.artifact import ArtifactDescription, Precision
from ds2deploy.runtimes.engine_description import (
    BuildFacts,
    EngineDescription,
    Flavor,
    Profile,
    runs_on,
    seconds_of_frames,
)
from ds2deploy.runtimes.errors import ConfigError, ParityError
from ds2deploy.runtimes.files import WholeFiles, file_sha256
from ds2deploy.runtimes.onnx.metadata import read_onnx_description
from ds2deploy.runtimes.session import beyond_profile
from ds2deploy.runtimes.tensorrt.cuda import NO_DRIVER, NoDeviceError, examine_device, open_device
from ds2deploy.runtimes.tensorrt.engine_file import description_path, sealed
from ds2deploy.runtimes.tensorrt.library import import_tensorrt

NOT_RUN = "engine built, not run: {reason}; the parsed network was verified on the CPU"


class EngineExport(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="engine"):
    """An engine that was written.

    Attributes:
        path: path of the engine; its description is beside it.
        size: size of the engine, in bytes.
        sha256: SHA-256 of the engine.
        precision: number format of weights and activations.
        flavor: library that built it.
        version: version of that library.
        compute_capabilities: compute capabilities of the GPUs that it is for.
        profile: shapes that it accepts.
        verification: one line that describes which checks were run.
        build: time and memory of the build.
        network: report of the parsed network on the CPU.
        report: parity report of the engine on the GPU; None where it was not run.
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


def engine_name(onnx: str, options: EngineOptions) -> str:
    """`model.fp16.engine` for `model.fp16.onnx`; RTX's ends in `.rtx.engine`."""
    return f"{onnx.removesuffix('.onnx')}{'.rtx' if options.flavor == 'rtx' else ''}.engine"


def longest_frames(profiles: Sequence[Profile]) -> int:
    """Frames of the longest utterance that checks will ask for: engines are run on a GPU only."""
    works, _, _ = examine_device()
    longest = [profile.frames[2] for profile in profiles] if works else []
    return max([max(FRAMES), *longest])


def export_engine(
    onnx: Path,
    options: EngineOptions,
    reference: Reference,
    final: Path,
    command: str,
    files: WholeFiles,
    progress: Progress,
    network: ParityReport | None = None,
) -> EngineExport:
    """Build one engine, and the description beside it; `check_builder` comes first.

    Args:
        onnx: the verified file to build it of.
        options: flavour, profile and all other settings of the builder.
        reference: trusted model that the engine should equal.
        final: name of the ONNX file, of which the engine's is made, in the folder for both.
        command: command line of the export, without the engine's options.
        files: files of the export; the engine and its description take their names with them.
        progress: function that receives the current step, as text.
        network: report of the parsed network, where it was compared already.

    Raises:
        ParityError: the parsed network, or the engine, differs from the reference.
        ModelFileError: the parser or the builder refuses the network.
        RuntimeUnavailableError: the library is not there, or cannot build here.
    """
    library = import_tensorrt(options.flavor)
    description = read_onnx_description(onnx)
    path = final.with_name(engine_name(final.name, options))
    engine = files.add(path)
    # Added last, the description takes its name first: an engine never stands without one.
    beside = files.add(description_path(path))
    assert beside == description_path(engine)
    profile = options.profile(description.features, description.blocks)
    _check_recordings(reference, profile, description)
    started = time.perf_counter()
    if network is None:
        network = check_network(onnx, description, library, reference, progress)
    if not network.passed:
        raise ParityError(
            f"{onnx.name}: the network that {library.title} parsed from it differs from "
            f"{reference.name}, no engine was built: {network.failure()}"
        )
    checked = time.perf_counter()
    progress(f"building the engine with {library.title}")
    job = make_job(onnx, engine, options, description, profile)
    parse_s, build_s, peak_mb, layers = run_build(job, progress)
    facts = EngineDescription(
        flavor=options.flavor,
        version=library.version,
        compute_capabilities=_capabilities(options),
        hardware_compatibility=options.hardware_compatibility,
        profile=profile,
        workspace_mb=options.workspace_mb,
        optimization_level=options.optimization_level,
        onnx_sha256=file_sha256(onnx),
        engine_sha256=file_sha256(engine),
        size=engine.stat().st_size,
        network_parity=network.summary(),
        compared_with=f"{reference.runtime}, {reference.name}",
        verification="",
        rebuild=f"{command} {shlex.join(options.command(description.blocks))}",
        build=BuildFacts(
            parse_s=round(parse_s, 2),
            build_s=round(build_s, 2),
            network_check_s=round(checked - started, 2),
            engine_check_s=None,
            peak_memory_mb=round(peak_mb, 1),
            layers=layers,
        ),
    )
    description = msgspec.structs.replace(description, parity=None)
    facts, report = _check_engine(engine, description, facts, reference, progress)
    return EngineExport(
        path=str(path),
        size=facts.size,
        sha256=facts.engine_sha256,
        precision=description.precision,
        flavor=facts.flavor,
        version=facts.version,
        compute_capabilities=facts.compute_capabilities,
        profile=profile,
        verification=facts.verification,
        build=facts.build,
        network=network,
        report=report,
    )


def _check_recordings(
    reference: Reference, profile: Profile, description: ArtifactDescription
) -> None:
    """Check that the engine takes every recording: their words are compared on it, too."""
    if not reference.recordings or description.blocks is not None:
        return
    config = description.features
    longest = max(sound.shape[-1] for sound in reference.recordings)
    longest = config.frames(longest) if description.input == "waveform" else longest
    if problem := beyond_profile(seconds_of_frames(longest, config), profile, config):
        raise ConfigError(f"--audio {reference.speech}: its longest recording has {problem}")


def _capabilities(options: EngineOptions) -> tuple[str, ...]:
    if options.flavor == "rtx":
        return options.targets or RTX_DEFAULT
    return (open_device().compute_capability,)


def _check_engine(
    engine: Path,
    description: ArtifactDescription,
    facts: EngineDescription,
    reference: Reference,
    progress: Progress,
) -> tuple[EngineDescription, ParityReport | None]:
    """Run the engine where a GPU is present; say so in the description where none is."""
    from ds2deploy.runtimes.tensorrt.session import TensorRtSession

    if reason := _why_not_run(facts):
        return _describe(engine, description, facts, NOT_RUN.format(reason=reason)), None
    _describe(engine, description, facts, "not verified yet")  # a session reads it
    started = time.perf_counter()
    with TensorRtSession(engine, keep_cache=False) as session:
        report = check_parity(
            session,
            reference,
            lambda what: progress(f"comparing the engine, {what}"),
            grid(facts.profile, description.blocks),
        )
    if not report.passed:
        raise ParityError(
            f"{engine.name}: the results of the engine differ from those of {reference.name}, "
            f"nothing was written: {report.failure()}"
        )
    seconds = round(time.perf_counter() - started, 2)
    verified = f"engine verified on {report.runtime}; the parsed network on the CPU"
    compared = msgspec.structs.replace(description, parity=report.summary())
    return _describe(engine, compared, facts, verified, seconds), report


def _describe(
    engine: Path,
    description: ArtifactDescription,
    facts: EngineDescription,
    verification: str,
    seconds: float | None = None,
) -> EngineDescription:
    """Write the description beside an engine, sealed; return its part on the engine."""
    build = msgspec.structs.replace(facts.build, engine_check_s=seconds)
    facts = msgspec.structs.replace(facts, verification=verification, build=build)
    described = sealed(msgspec.structs.replace(description, engine=facts))
    document = msgspec.json.format(described.to_json()) + "\n"
    description_path(engine).write_text(document, encoding="utf-8")
    return facts


def _why_not_run(engine: EngineDescription) -> str:
    """Reason why an engine cannot run here; empty where it can."""
    try:
        device = open_device()
    except NoDeviceError as error:
        return "no GPU" if error.remedy.startswith(NO_DRIVER) else f"{error.reason}: {error.remedy}"
    if runs_on(engine, device.compute_capability):
        return ""
    built_for = ", ".join(engine.compute_capabilities)
    return f"it is for compute capability {built_for}, this GPU is {device.compute_capability}"
