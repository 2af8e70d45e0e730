"""From a verified ONNX file to a TensorRT engine whose every stage is checked.

First the network as TensorRT's parser made it is computed on the CPU and compared with the
reference; only then is it built; and where a GPU is present, the engine runs over the shapes of
its profile. What is over tolerance leaves nothing behind.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from ds2deploy.export.parity.check import check_parity
from ds2deploy.export.parity.reference import FRAMES, Reference
from ds2deploy.export.parity.report import ParityReport
from ds2deploy.export.parsed_network.evaluator import NetworkSession
from ds2deploy.export.tensorrt.build import Event, Job, job_profile
from ds2deploy.export.tensorrt.options import RTX_DEFAULT, EngineOptions
from ds2deploy.export.tensorrt.profiles import grid
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.engine_description import (
    BuildFacts,
    EngineDescription,
    Profile,
    runs_on,
    seconds_of_frames,
)
from ds2deploy.runtimes.errors import (
    ConfigError,
    ModelFileError,
    ParityError,
    RuntimeUnavailableError,
    require,
)
from ds2deploy.runtimes.files import file_sha256
from ds2deploy.runtimes.session import beyond_profile
from ds2deploy.runtimes.tensorrt.cuda import NO_DRIVER, NoDeviceError, examine_device, open_device
from ds2deploy.runtimes.tensorrt.engine_file import description_path, sealed
from ds2deploy.runtimes.tensorrt.library import TensorRt, import_tensorrt

Progress = Callable[[str], None]

NOT_RUN = "engine built, not run: {reason}; the parsed network was verified on the CPU"


class EngineResult(NamedTuple):
    """What `write_engine` did.

    Attributes:
        description: as it stands beside the engine.
        network: report of the parsed network.
        engine: report of the engine on the GPU; None where it was not run.
    """

    description: ArtifactDescription
    network: ParityReport
    engine: ParityReport | None


def engine_name(onnx: str, options: EngineOptions) -> str:
    """`model.fp16.engine` for `model.fp16.onnx`; RTX's ends in `.rtx.engine`."""
    return f"{onnx.removesuffix('.onnx')}{'.rtx' if options.flavor == 'rtx' else ''}.engine"


def check_network(
    onnx: Path,
    description: ArtifactDescription,
    library: TensorRt,
    reference: Reference,
    progress: Progress = lambda message: None,
) -> ParityReport:
    """Compare the network that TensorRT parsed, computed on the CPU, with the reference.

    Returns:
        The report; whether a disagreement is an error is the caller's decision.

    Raises:
        ModelFileError: the parser refuses the file, or a layer is not known here.
    """
    progress(f"{library.title} parses the network")
    session = NetworkSession(onnx, library, description)
    return check_parity(
        session, reference, lambda what: progress(f"comparing the parsed network, {what}")
    )


def longest_frames(profiles: Sequence[Profile]) -> int:
    """Frames of the longest utterance that checks will ask for: engines are run on a GPU only."""
    works, _, _ = examine_device()
    longest = [profile.frames[2] for profile in profiles] if works else []
    return max([max(FRAMES), *longest])


def check_builder(options: EngineOptions) -> TensorRt:
    """The library, if it can build such engines here: TensorRT needs the GPU that they are for.

    Raises:
        RuntimeUnavailableError: it is not there, or there is no GPU.
        ConfigError: an option that this release does not know.
    """
    library = import_tensorrt(options.flavor)
    require("polygraphy", options.flavor)
    if options.timing_cache is not None and not Path(options.timing_cache).parent.is_dir():
        raise ConfigError(
            f"--timing-cache {options.timing_cache}: no such folder; make it, or name another"
        )
    level = options.hardware_compatibility.upper()
    if level != "NONE" and not hasattr(library.module.HardwareCompatibilityLevel, level):
        raise ConfigError(
            f"--hardware-compatibility {options.hardware_compatibility}: {library.title} does not "
            "know it; none or ampere_plus"
        )
    if options.flavor == "tensorrt":
        try:
            open_device()
        except NoDeviceError as error:
            raise RuntimeUnavailableError(
                f"--trt: TensorRT builds on the GPU that the engine is for, and here is none "
                f"({error.reason}); export ONNX here, and on the device "
                "`ds2deploy export model.onnx --trt --out DIR`; or take --rtx, which needs no GPU"
            ) from None
    return library


def _check_recordings(
    reference: Reference, profile: Profile, description: ArtifactDescription
) -> None:
    """The words of a manifest are compared on the engine too, so it must take them all."""
    if not reference.recordings or description.blocks is not None:
        return
    config = description.features
    longest = max(sound.shape[-1] for sound in reference.recordings)
    longest = config.frames(longest) if description.input == "waveform" else longest
    if problem := beyond_profile(seconds_of_frames(longest, config), profile, config):
        raise ConfigError(f"--audio {reference.speech}: its longest recording is {problem}")


def _capabilities(options: EngineOptions) -> tuple[str, ...]:
    if options.flavor == "rtx":
        return options.targets or RTX_DEFAULT
    return (open_device().compute_capability,)


def write_engine(
    onnx: Path,
    description: ArtifactDescription,
    options: EngineOptions,
    reference: Reference,
    engine: Path,
    rebuild: str,
    progress: Progress = lambda message: None,
    network: ParityReport | None = None,
) -> EngineResult:
    """Build an engine, and the description beside it; `check_builder` says beforehand if it can.

    Args:
        onnx: the verified artifact.
        description: of that artifact.
        options: flavour, profile and all that the builder is told.
        reference: what the engine should compute.
        engine: path to write to; the description goes beside it.
        rebuild: command that does the same again.
        progress: told what is being done.
        network: report of the parsed network, where it was compared already.

    Raises:
        ParityError: the parsed network, or the engine, differs from the reference.
        ModelFileError: the parser or the builder refuses the network.
        RuntimeUnavailableError: the library is not there, or cannot build here.
    """
    library = import_tensorrt(options.flavor)
    profile = options.profile(description.features, description.blocks)
    _check_recordings(reference, profile, description)
    started = time.perf_counter()
    if network is None:
        network = check_network(onnx, description, library, reference, progress)
    if not network.passed:
        raise ParityError(
            f"{onnx.name}: the network that {library.title} makes of it does not compute what "
            f"{reference.name} computes, no engine is built: {network.failure()}"
        )
    checked = time.perf_counter()
    progress(f"{library.title} builds the engine")
    parse_s, build_s, peak_mb, layers = _run_build(
        _job(onnx, engine, options, description, profile), progress
    )
    facts = BuildFacts(
        parse_s=round(parse_s, 2),
        build_s=round(build_s, 2),
        network_check_s=round(checked - started, 2),
        engine_check_s=None,
        peak_memory_mb=round(peak_mb, 1),
        layers=layers,
    )
    described = msgspec.structs.replace(
        description,
        parity=None,
        engine=EngineDescription(
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
            rebuild=rebuild,
            build=facts,
        ),
    )
    return _check_engine(engine, described, network, reference, progress)


def _job(
    onnx: Path,
    engine: Path,
    options: EngineOptions,
    description: ArtifactDescription,
    profile: Profile,
) -> Job:
    cache = options.timing_cache
    return Job(
        flavor=options.flavor,
        onnx=str(onnx.resolve()),
        engine=str(engine.resolve()),
        profile=job_profile(profile, description),
        workspace_mb=options.workspace_mb,
        optimization_level=options.optimization_level,
        timing_cache=None if cache is None else str(Path(cache).resolve()),
        hardware_compatibility=options.hardware_compatibility,
        targets=options.target_pairs(),
    )


def _run_build(job: Job, progress: Progress) -> tuple[float, float, float, int]:
    """Build in a process of its own, whose events become progress."""
    # Not `-m`: it looks in the current folder first, where anything may bear a package's name.
    start = "import sys; del sys.path[0]; from ds2deploy.export.tensorrt.build import main; main()"
    command = [sys.executable, "-c", start]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as messages,
        subprocess.Popen(  # noqa: S603  # our own interpreter and module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        last = Event()
        try:
            with suppress(BrokenPipeError):  # it died at once; its messages tell why
                process.stdin.write(msgspec.json.encode(job).decode() + "\n")
                process.stdin.flush()
            for line in process.stdout:
                last = msgspec.json.decode(line, type=Event)
                if last.phase:
                    progress(f"building the engine: {last.phase}")
        except BaseException:
            process.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
        process.wait()
        if last.built is not None:
            return last.built
        messages.seek(0)
        raise ModelFileError(_build_failure(job, last, process.returncode, messages.read()))


def _build_failure(job: Job, last: Event, status: int, messages: str) -> str:
    complaints = [
        " ".join(line.split())
        for line in messages.splitlines()
        if line.startswith(("[E]", "[!]")) and "Cuda Runtime" not in line
    ]
    reason = complaints[0] if complaints else last.error or f"its process ended with {status}"
    if last.os_error:
        remedy = "make room, or allow writing there"
    elif "workspace" in reason.lower():
        remedy = "give it more --workspace, or leave that out"
    elif "memory" in reason.lower():
        remedy = "ask for less: a smaller --batch or --seconds"
    else:
        remedy = "try another precision" + (", or fewer --targets" if job.targets else "")
    short = textwrap.shorten(reason, 300, placeholder=" ...")
    return f"{Path(job.onnx).name}: building the engine failed ({short}); {remedy}"


def _check_engine(
    engine: Path,
    description: ArtifactDescription,
    network: ParityReport,
    reference: Reference,
    progress: Progress,
) -> EngineResult:
    """Run the engine where a GPU is present; say so in the description where none is."""
    from ds2deploy.runtimes.tensorrt.session import TensorRtSession

    assert description.engine is not None
    if reason := _why_not_run(description.engine):
        described = _describe(engine, description, NOT_RUN.format(reason=reason), None)
        return EngineResult(described, network, None)
    _describe(engine, description, "not verified yet", None)  # a session reads it
    started = time.perf_counter()
    with TensorRtSession(engine, keep_cache=False) as session:
        report = check_parity(
            session,
            reference,
            lambda what: progress(f"comparing the engine, {what}"),
            grid(description.engine.profile, description.blocks),
        )
    if not report.passed:
        raise ParityError(
            f"{engine.name}: the engine does not compute what {reference.name} computes, "
            f"nothing is written: {report.failure()}"
        )
    seconds = round(time.perf_counter() - started, 2)
    verified = f"engine verified on {report.runtime}; the parsed network on the CPU"
    compared = msgspec.structs.replace(description, parity=report.summary())
    return EngineResult(_describe(engine, compared, verified, seconds), network, report)


def _describe(
    engine: Path, description: ArtifactDescription, verification: str, seconds: float | None
) -> ArtifactDescription:
    """Write what stands beside an engine, sealed, and return it."""
    assert description.engine is not None
    build = msgspec.structs.replace(description.engine.build, engine_check_s=seconds)
    facts = msgspec.structs.replace(description.engine, verification=verification, build=build)
    described = sealed(msgspec.structs.replace(description, engine=facts))
    document = msgspec.json.format(described.to_json()) + "\n"
    description_path(engine).write_text(document, encoding="utf-8")
    return described


def _why_not_run(engine: EngineDescription) -> str:
    """What keeps an engine from running here; empty where nothing does."""
    try:
        device = open_device()
    except NoDeviceError as error:
        return "no GPU" if error.remedy.startswith(NO_DRIVER) else f"{error.reason}: {error.remedy}"
    if runs_on(engine, device.compute_capability):
        return ""
    built_for = ", ".join(engine.compute_capabilities)
    return f"it is for compute capability {built_for}, this GPU is {device.compute_capability}"
