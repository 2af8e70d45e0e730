"""Starts the process that builds an engine, follows it, explains why it failed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import textwrap
from contextlib import suppress
from pathlib import Path

import msgspec

from ds2deploy.export.parity.report import Progress
from ds2deploy.export.tensorrt.build import Event, Job, job_profile
from ds2deploy.export.tensorrt.options import EngineOptions
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.engine_description import Profile
from ds2deploy.runtimes.errors import ConfigError, ModelFileError, RuntimeUnavailableError, require
from ds2deploy.runtimes.tensorrt.cuda import NoDeviceError, open_device
from ds2deploy.runtimes.tensorrt.library import TensorRt, import_tensorrt


def check_builder(options: EngineOptions) -> TensorRt:
    """Open the library that builds such engines here: TensorRT needs the GPU that they are for.

    Raises:
        RuntimeUnavailableError: it is not there, or there is no GPU.
        ConfigError: an option that this release does not know.
    """
    library = import_tensorrt(options.flavor)
    require("polygraphy", options.flavor)
    if options.timing_cache is not None and not Path(options.timing_cache).parent.is_dir():
        raise ConfigError(
            f"--timing-cache {options.timing_cache}: its folder does not exist; create it, or "
            "choose another path"
        )
    level = options.hardware_compatibility.upper()
    if level != "NONE" and not hasattr(library.module.HardwareCompatibilityLevel, level):
        raise ConfigError(
            f"--hardware-compatibility {options.hardware_compatibility}: {library.title} does not "
            "support it; choose none or ampere_plus"
        )
    if options.flavor == "tensorrt":
        try:
            open_device()
        except NoDeviceError as error:
            raise RuntimeUnavailableError(
                "--trt: TensorRT needs the GPU that the engine is for, and this machine has none "
                f"({error.reason}); export ONNX here, and run on the device: ds2deploy export "
                "model.onnx --trt --out FOLDER; or use --rtx, which needs no GPU"
            ) from None
    return library


def make_job(
    onnx: Path,
    engine: Path,
    options: EngineOptions,
    description: ArtifactDescription,
    profile: Profile,
) -> Job:
    """Everything that the process must know, paths absolute."""
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


def run_build(job: Job, progress: Progress) -> tuple[float, float, float, int]:
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
                process.stdin.write(json.dumps(msgspec.to_builtins(job)) + "\n")  # ASCII, any name
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
        raise ModelFileError(build_failure(job, last, process.returncode, messages.read()))


def build_failure(job: Job, last: Event, status: int, messages: str) -> str:
    """One line: the reason why an engine was not built, and the remedy."""
    complaints = [
        " ".join(line.split())
        for line in messages.splitlines()
        if line.startswith(("[E]", "[!]")) and "Cuda Runtime" not in line
    ]
    ended = f"the build process ended with exit code {status}"
    reason = complaints[0] if complaints else last.error or ended
    if last.os_error:
        remedy = "free disk space, or make the folder writable"
    elif "workspace" in reason.lower():
        remedy = "increase --workspace, or omit it"
    elif "memory" in reason.lower():
        remedy = "choose a smaller --batch or --seconds"
    else:
        remedy = "try another precision" + (", or fewer --targets" if job.targets else "")
    short = textwrap.shorten(reason, 300, placeholder=" ...")
    return f"{Path(job.onnx).name}: building the engine failed ({short}); {remedy}"
