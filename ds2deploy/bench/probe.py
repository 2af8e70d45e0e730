"""Measurement of a model's start in a separate process: imports, loading, first run, memory.

These can only be measured in a process where nothing is loaded yet. The process gets `Settings` as
a JSON document, and prints an `Answer` as JSON in the last line of its standard output. A runtime
that crashes its process is detected here, too.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ds2deploy.runtimes.files import json_text, manifest_line

if TYPE_CHECKING:
    from ds2deploy.bench.plan import Case
    from ds2deploy.runtimes.backends import FileKind
    from ds2deploy.runtimes.features import FloatArray
    from ds2deploy.runtimes.recognizer import Recognizer

PROBE = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    "from ds2deploy.bench.probe import main; main()"
)
"""Program without the current folder in its path, which may contain a folder named like a library.
"""

LONGEST_S = 600.0
"""Timeout of a process that starts a model (seconds)."""

WARM_RUNS = 3


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Start of a model on a runtime, in a fresh process, with one utterance.

    Attributes:
        model: name of the model.
        runtime: name of the runtime, see `plan.NAMES`.
        session: library and device, such as `onnxruntime cpu`.
        audio_s: duration of the utterance, in seconds: the longest of the benchmark, or the
            maximum of an engine.
        imports_s: time for importing the libraries, numpy included, in seconds.
        loading_s: time for opening the model, in seconds.
        first_run_s: time of the first run from samples to text, in seconds.
        warm_run_s: time of a later run, in seconds: the median of three.
        peak_memory_mib: peak resident memory of the process, in MiB; None if it is not known.
        device_memory_mib: GPU memory that loading and running occupy besides CUDA's own, in MiB;
            None without a GPU or cuda-bindings.
        sample_rate: sample rate of the model, in Hz.
    """

    model: str
    runtime: str
    session: str
    audio_s: float
    imports_s: float
    loading_s: float
    first_run_s: float
    warm_run_s: float
    peak_memory_mib: float | None
    device_memory_mib: float | None
    sample_rate: int


class Settings(msgspec.Struct, frozen=True):
    """Settings of the process.

    Attributes:
        path: path of the model.
        model: name of the model.
        runtime: name of the runtime, see `plan.NAMES`.
        threads: number of CPU threads; 0 lets the runtime choose.
        audio: path of a .npy file, (samples,) float32.
        audio_rate: sample rate of that file, in Hz.
    """

    path: str
    model: str
    runtime: str
    threads: int
    audio: str
    audio_rate: int


class Answer(msgspec.Struct, frozen=True):
    """Result of the process.

    Attributes:
        start: measured start; None if the model does not run.
        reason: reason for not running; empty if it runs.
        bad_file: True if the file is the cause, not this machine.
    """

    start: Start | None = None
    reason: str = ""
    bad_file: bool = False


def run_probe(case: Case, threads: int, audio: Path, audio_rate: int) -> Answer:
    """Measure the start of a model in a new process.

    Args:
        case: model and runtime.
        threads: number of CPU threads; 0 lets the runtime choose.
        audio: path of a .npy file, (samples,) float32.
        audio_rate: sample rate of that file, in Hz.
    """
    settings = Settings(str(case.path), case.model, case.runtime, threads, str(audio), audio_rate)
    document = manifest_line(msgspec.to_builtins(settings))
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter and module
            [sys.executable, "-c", PROBE, document],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=LONGEST_S,
        )
    except subprocess.TimeoutExpired:
        return Answer(reason=f"starting it took longer than {LONGEST_S:g} s; try it alone")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:  # libraries may print other lines
        return msgspec.json.decode(lines[-1], type=Answer)
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    printed = done.stderr.strip().splitlines()
    return Answer(reason=f"its process ended with {how}: {(printed or ['no message'])[-1]}")


def main() -> None:
    """Read the settings from the only argument, measure, and print the answer."""
    from ds2deploy.runtimes.errors import Ds2Error, MissingFileError, ModelFileError

    settings = msgspec.convert(json.loads(sys.argv[1]), Settings)
    try:
        answer = Answer(start=_measure(settings))
    except (ModelFileError, MissingFileError) as error:
        answer = Answer(reason=str(error), bad_file=True)
    except Ds2Error as error:
        answer = Answer(reason=str(error))
    print(json_text(answer))


def _measure(settings: Settings) -> Start:
    started = time.perf_counter()
    import numpy as np

    from ds2deploy.bench.plan import ON_GPU, Case, open_case
    from ds2deploy.loading import file_kind
    from ds2deploy.training.memory import peak_memory_mib

    path = Path(settings.path)
    kind = file_kind(path)
    _import_libraries(settings.runtime, kind)
    imports_s = time.perf_counter() - started

    device_memory = _device_memory() if settings.runtime in ON_GPU else None
    before = device_memory() if device_memory else 0.0
    case = Case(path, settings.model, settings.runtime, kind)
    opening = time.perf_counter()
    with open_case(case, settings.threads) as recognizer:
        loading_s = time.perf_counter() - opening
        audio = _audio(recognizer, np.load(settings.audio), settings.audio_rate)
        rate = recognizer.description.features.sample_rate
        runs = [_seconds(lambda: recognizer.transcribe(audio, rate)) for _ in range(1 + WARM_RUNS)]
        return Start(
            model=settings.model,
            runtime=settings.runtime,
            session=recognizer.session.runtime,
            audio_s=len(audio) / rate,
            imports_s=imports_s,
            loading_s=loading_s,
            first_run_s=runs[0],
            warm_run_s=sorted(runs[1:])[WARM_RUNS // 2],
            peak_memory_mib=peak_memory_mib(),
            device_memory_mib=round(device_memory() - before, 1) if device_memory else None,
            sample_rate=rate,
        )


def _import_libraries(runtime: str, kind: FileKind) -> None:
    """Import the libraries of the runtime; opening the model reports a missing one."""
    from ds2deploy.loading import backends_for
    from ds2deploy.runtimes.errors import RuntimeUnavailableError

    takes = backends_for(kind)
    backend = next((item for item in takes if item.name == runtime), takes[0])
    with contextlib.suppress(ImportError, RuntimeUnavailableError):
        backend.preload(kind)


def _audio(recognizer: Recognizer, samples: FloatArray, rate: int) -> FloatArray:
    """Convert the utterance to the model's rate, and cut it to an engine's maximum."""
    from ds2deploy.runtimes.audio.samples import convert_audio
    from ds2deploy.runtimes.tensors import samples_of

    features, profile = recognizer.description.features, recognizer.session.profile
    audio = convert_audio(samples, rate, features.sample_rate)
    if profile is None or recognizer.description.blocks is not None:
        return audio
    return audio[: samples_of(profile.frames[2], features)]


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _device_memory() -> Callable[[], float] | None:
    """Return a function that reads the MiB in use on the GPU; None without CUDA."""
    from ds2deploy.runtimes.tensorrt.cuda import NoDeviceError, open_device

    try:
        device = open_device()
    except NoDeviceError:
        return None

    def used() -> float:
        free, total = device.call("cudaMemGetInfo")
        return float(total - free) / 2**20

    return used
