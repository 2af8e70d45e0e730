"""Builds one engine, in a process of its own.

A compiler that crashes, or takes all memory, then costs an error message; how much memory it took
is known afterwards; and TensorRT and TensorRT-RTX, between which Polygraphy decides once for a
process, can both be built for in one export.

The process reads a `Job` from standard input, writes an `Event` a line to standard output, and
ends when its standard input does: when the process that started it is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.engine_description import Compatibility, Flavor, Profile
from ds2deploy.runtimes.errors import one_line
from ds2deploy.runtimes.files import json_text, whole_file
from ds2deploy.runtimes.tensorrt.library import TensorRt, import_tensorrt
from ds2deploy.runtimes.tensors import Shapes, input_tensors, profile_shapes
from ds2deploy.training.memory import peak_memory_bytes


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Order for one engine.

    Attributes:
        flavor: TensorRT or TensorRT-RTX.
        onnx: path of the network.
        engine: path to write to.
        profile: minimum, optimum and maximum shape of every input.
        workspace_mb: limit of scratch memory, in 2^20 bytes.
        optimization_level: 0 to 5.
        timing_cache: path of a file that is read, where it is, and written.
        hardware_compatibility: further GPUs.
        targets: compute capabilities, for RTX.
    """

    flavor: Flavor
    onnx: str
    engine: str
    profile: dict[str, Shapes]
    workspace_mb: int | None = None
    optimization_level: int | None = None
    timing_cache: str | None = None
    hardware_compatibility: Compatibility = "none"
    targets: tuple[tuple[int, int], ...] = ()


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Message of the process.

    Attributes:
        phase: current step of TensorRT.
        error: reason for which there is no engine.
        os_error: True if a file or a folder caused the error.
        built: seconds to parse and to build, peak memory in 10^6 bytes, layers; when it is done.
    """

    phase: str = ""
    error: str = ""
    os_error: bool = False
    built: tuple[float, float, float, int] | None = None


def job_profile(profile: Profile, description: ArtifactDescription) -> dict[str, Shapes]:
    """Return the shapes of every input."""
    return {
        tensor.name: profile_shapes(tensor, profile, description.features)
        for tensor in input_tensors(description)
    }


def main() -> None:
    """Read the job, build, report."""
    # The libraries print to standard error; only the events go to standard output.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(event: Event) -> None:
        events.write(json_text(event) + "\n")
        events.flush()

    job = msgspec.convert(json.loads(sys.stdin.readline()), Job)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        say(Event(built=build(job, lambda phase: say(Event(phase=phase)))))
    except Exception as error:  # whatever it is, the parent reports it
        say(Event(error=one_line(error, 500), os_error=isinstance(error, OSError)))
        sys.exit(1)


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def build(job: Job, progress: Callable[[str], None]) -> tuple[float, float, float, int]:
    """Build in this process; see `Event.built`."""
    library = _prepare_polygraphy(job.flavor)
    from polygraphy.backend.trt import Profile as PolygraphyProfile
    from polygraphy.backend.trt import engine_bytes_from_network, network_from_onnx_bytes

    started = time.perf_counter()
    progress("parsing")
    # Bytes, not a path: TensorRT takes no names that are not UTF-8.
    builder, network, parser = network_from_onnx_bytes(
        Path(job.onnx).read_bytes(), strongly_typed=True
    )
    parsed = time.perf_counter()
    profile = PolygraphyProfile()
    for name, shapes in job.profile.items():
        profile.add(name, *shapes)
    config = _config(job, library, profile, progress)(builder, network)
    _load_timing_cache(job, config)
    engine = engine_bytes_from_network((builder, network, parser), config=lambda *_: config)
    built = time.perf_counter()
    Path(job.engine).write_bytes(memoryview(engine))
    if job.timing_cache is not None:
        _save_timing_cache(Path(job.timing_cache), config)
    peak = peak_memory_bytes()
    assert peak is not None  # it is known on Linux, which TensorRT is for
    return parsed - started, built - parsed, peak / 1e6, network.num_layers


def _prepare_polygraphy(flavor: Flavor) -> TensorRt:
    """Polygraphy takes its library from the environment, and RTX under one name only."""
    library = import_tensorrt(flavor)
    if flavor == "rtx":
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
        sys.modules["tensorrt_rtx"] = library.module
    else:
        os.environ.pop("POLYGRAPHY_USE_TENSORRT_RTX", None)
    return library


def _config(job: Job, library: TensorRt, profile: Any, progress: Callable[[str], None]) -> Any:
    """Polygraphy's maker of the builder's configuration."""
    trt = library.module
    options: dict[str, Any] = {"profiles": [profile]}
    if job.workspace_mb is not None:
        options["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: job.workspace_mb << 20}
    if job.optimization_level is not None:
        options["builder_optimization_level"] = job.optimization_level
    if job.hardware_compatibility != "none":
        level = job.hardware_compatibility.upper()
        options["hardware_compatibility_level"] = getattr(trt.HardwareCompatibilityLevel, level)
    if hasattr(trt, "IProgressMonitor"):
        options["progress_monitor"] = _progress_monitor(trt, progress)
    if job.flavor == "rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        create = CreateConfigRTX(compute_capabilities=list(job.targets) or None, **options)
    else:
        from polygraphy.backend.trt import CreateConfig

        create = CreateConfig(**options)

    def configure(builder: Any, network: Any) -> Any:
        config = create(builder, network)
        # fp32 means fp32: TF32 keeps 10 bits of a product's factors, and fails the parity check.
        config.clear_flag(trt.BuilderFlag.TF32)
        return config

    return configure


def _progress_monitor(trt: Any, progress: Callable[[str], None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.reported = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            progress(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if time.monotonic() - self.reported > 0.1:
                self.reported = time.monotonic()
                progress(f"{phase_name}, step {step + 1} of {self.steps.get(phase_name, step + 1)}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _load_timing_cache(job: Job, config: Any) -> None:
    """Load the cache; if the file does not fit, TensorRT warns and fills it anew."""
    path = Path(job.timing_cache) if job.timing_cache else None
    if path is not None and path.exists():
        cache = config.create_timing_cache(path.read_bytes())
        config.set_timing_cache(cache, ignore_mismatch=False)


def _save_timing_cache(path: Path, config: Any) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))
