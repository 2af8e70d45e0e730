"""Speed of runtimes on a GPU: TensorRT, TensorRT-RTX, ONNX Runtime CUDA, torch and torch.compile.

    python benchmarks/gpu.py [--precisions fp32,fp16] [--quick] [--json] [--out DIR]

5 x BiLSTM-1024 with random weights, 10 s of audio, features already extracted: latency, throughput,
CUDA graphs on and off, and the build time of engines. Runtimes that are not installed or cannot run
the network are listed with the reason. Without a GPU, the script prints one line and exits with 2.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from models import LARGE, TINY, make_checkpoint, network_run, shape_name, write_onnx
from report import Result, Table, arguments, deliver, progress

from ds2deploy.bench.timing import latency, take_turns
from ds2deploy.export.tensorrt.build_process import make_job, run_build
from ds2deploy.export.tensorrt.options import EngineOptions
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.session import TorchSession
from ds2deploy.model.streaming import torch_session
from ds2deploy.runtimes.artifact import ModelShape, Precision
from ds2deploy.runtimes.engine_description import BuildFacts, EngineDescription, Flavor
from ds2deploy.runtimes.errors import Ds2Error, RuntimeUnavailableError
from ds2deploy.runtimes.files import file_sha256
from ds2deploy.runtimes.onnx.metadata import read_onnx_description
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.runtimes.session import Session
from ds2deploy.runtimes.tensorrt.cuda import examine_device, open_device
from ds2deploy.runtimes.tensorrt.engine_file import description_path, sealed
from ds2deploy.runtimes.tensorrt.library import import_tensorrt
from ds2deploy.runtimes.tensorrt.rtx_devices import RTX_CAPABILITIES
from ds2deploy.runtimes.tensorrt.session import TensorRtSession

FLAVORS: tuple[Flavor, ...] = ("tensorrt", "rtx")
TITLES = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
WARM_UP = 5
"""Number of warm-up runs of each case, in which repeated shapes are captured as graphs, and
torch.compile compiles."""


class Sizes(NamedTuple):
    """Sizes of a run: network, seconds of audio, batches, rounds."""

    shape: ModelShape
    seconds: float
    batches: tuple[int, ...]
    rounds: int


FULL, QUICK = Sizes(LARGE, 10.0, (1, 8, 32), 30), Sizes(TINY, 0.5, (1, 2), 2)


class Engine(NamedTuple):
    """Engine that was built."""

    path: Path
    facts: BuildFacts


def build_engine(onnx: Path, flavor: Flavor, sizes: Sizes) -> Engine:
    """Build an engine for this GPU without a parity check, because the weights are random.

    Raises:
        RuntimeUnavailableError: the library is missing, or does not support this GPU.
    """
    library = import_tensorrt(flavor)
    capability = open_device().compute_capability
    if flavor == "rtx" and capability not in RTX_CAPABILITIES:
        raise RuntimeUnavailableError(
            f"TensorRT-RTX does not support GPUs of compute capability {capability}"
        )
    description = read_onnx_description(onnx)
    options = EngineOptions(
        flavor=flavor,
        batch=(1, sizes.batches[-1], sizes.batches[-1]),
        seconds=(sizes.seconds / 2, sizes.seconds, sizes.seconds),
        targets=(capability,) if flavor == "rtx" else (),
    )
    engine = onnx.with_suffix(f".{flavor}.engine")
    profile = options.profile(description.features, None)
    progress(f"building {engine.name} with {library.title}")
    job = make_job(onnx, engine, options, description, profile)
    parse_s, build_s, peak_mb, layers = run_build(job, lambda phase: None)
    facts = BuildFacts(
        parse_s=parse_s,
        build_s=build_s,
        network_check_s=0.0,
        engine_check_s=None,
        peak_memory_mb=peak_mb,
        layers=layers,
    )
    described = EngineDescription(
        flavor=flavor,
        version=library.version,
        compute_capabilities=(capability,),
        profile=profile,
        onnx_sha256=file_sha256(onnx),
        engine_sha256=file_sha256(engine),
        size=engine.stat().st_size,
        network_parity={},
        compared_with="nothing",
        verification="not verified: random weights of a benchmark",
        rebuild="python benchmarks/gpu.py",
        build=facts,
    )
    document = sealed(msgspec.structs.replace(description, engine=described)).to_json()
    description_path(engine).write_text(document, encoding="utf-8")
    return Engine(engine, facts)


def ways(
    device: str,
    checkpoint: Path,
    artifacts: dict[Precision, Path],
    engines: dict[tuple[Flavor, Precision], Engine],
) -> Iterator[tuple[str, Callable[[], Session]]]:
    """List every way to run the network on a device: its name, and what opens its session."""
    loaded = load_checkpoint(checkpoint)
    yield f"torch {device} fp32", lambda: torch_session(load_checkpoint(checkpoint), device)
    if device != "cpu":
        yield (
            f"torch.compile {device} fp32",
            lambda: TorchSession(torch.compile(loaded.network), loaded.description(), device),  # type: ignore[arg-type]
        )
    for precision, path in artifacts.items():
        if precision != "bf16":
            yield f"ONNX Runtime {device} {precision}", partial(OnnxSession, path, device)
    for (flavor, precision), engine in engines.items():
        for graphs in (True, False):
            yield (
                f"{TITLES[flavor]} {precision}, CUDA graphs {'on' if graphs else 'off'}",
                partial(TensorRtSession, engine.path, cuda_graphs=graphs, keep_cache=False),
            )


def measure(
    device: str, sizes: Sizes, precisions: Sequence[Precision], quick: bool = False
) -> Result:
    """Build the engines, open every way, and run them in turns.

    Args:
        device: `cuda`; in tests `cpu`, which measures everything except engines.
        sizes: sizes of the run.
        precisions: precisions of the artifacts.
        quick: True for the sizes of a test.
    """
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as name, ExitStack() as stack:
        folder = Path(name)
        checkpoint = make_checkpoint(sizes.shape, folder)
        artifacts = {p: write_onnx(checkpoint, folder, p) for p in precisions}
        engines: dict[tuple[Flavor, Precision], Engine] = {}
        for flavor in FLAVORS:
            for precision, path in artifacts.items():
                try:
                    engines[flavor, precision] = build_engine(path, flavor, sizes)
                except (Ds2Error, RuntimeError) as error:
                    failures[f"{TITLES[flavor]} {precision}"] = first_line(error)
        sessions: dict[str, Session] = {}
        for way, open_session in ways(device, checkpoint, artifacts, engines):
            try:
                sessions[way] = open_session()
                stack.callback(sessions[way].close)
            except (Ds2Error, RuntimeError) as error:
                failures[way] = first_line(error)
        took = run_in_turns(sessions, sizes, failures)
        graphs = {n: s.cuda_graphs for n, s in sessions.items() if isinstance(s, TensorRtSession)}
    return Result(
        name="gpu",
        title=f"On a GPU: {shape_name(sizes.shape)}, {sizes.seconds:g} s of audio",
        quick=quick,
        tables=tables(sizes, took, failures, engines),
        notes=[f"{device_name(device)}.", *(f"{n}: {said}." for n, said in graphs.items())],
        data={
            "device": device_name(device),
            "seconds": {f"{n} x {b}": seconds for (n, b), seconds in took.items()},
            "failures": failures,
            "cuda_graphs": graphs,
            "build": {f"{TITLES[f]} {p}": e.facts for (f, p), e in engines.items()},
        },
    )


def run_in_turns(
    sessions: dict[str, Session], sizes: Sizes, failures: dict[str, str]
) -> dict[tuple[str, int], list[float]]:
    """Measure the seconds of every session and batch, without cases that fail in the first run."""
    took: dict[tuple[str, int], list[float]] = {}
    for batch in sizes.batches:
        cases: dict[str, Callable[[], object]] = {}
        for name, session in sessions.items():
            cases[name] = network_run(session, batch, sizes.seconds)
            try:
                cases[name]()
            except (Ds2Error, RuntimeError) as error:
                failures[f"{name}, batch {batch}"] = first_line(error)
                del cases[name]
        found = take_turns(cases, sizes.rounds, warm_up=WARM_UP) if cases else {}
        took |= {(name, batch): seconds for name, seconds in found.items()}
    return took


def first_line(error: Exception) -> str:
    """Return the first line of the message of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def device_name(device: str) -> str:
    """Return the name of the GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else device


def tables(
    sizes: Sizes,
    took: dict[tuple[str, int], list[float]],
    failures: dict[str, str],
    engines: dict[tuple[Flavor, Precision], Engine],
) -> list[Table]:
    """Make tables of latency and throughput, of engines, and of cases that did not run."""
    rows = []
    for (name, batch), seconds in took.items():
        found = latency(seconds)
        speed = batch * sizes.seconds / found.p50
        times = (f"{1000 * value:.2f}" for value in (found.p50, found.p95, found.p99))
        rows.append([name, str(batch), *times, f"{speed:.0f}"])
    columns = ["", "batch", "p50 (ms)", "p95 (ms)", "p99 (ms)", "s of audio per s"]
    made = [Table("In turns", columns, rows)]
    built = [
        [
            f"{TITLES[flavor]} {precision}",
            f"{engine.facts.parse_s:.1f}",
            f"{engine.facts.build_s:.1f}",
            f"{engine.facts.peak_memory_mb:.0f}",
            str(engine.facts.layers),
        ]
        for (flavor, precision), engine in engines.items()
    ]
    columns = ["", "parse (s)", "build (s)", "peak (MB)", "layers"]
    made += [Table("Engines", columns, built)] if built else []
    missing = [[name, reason] for name, reason in failures.items()]
    made += [Table("Not run", ["", "why"], missing)] if missing else []
    return made


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--precisions",
        default="fp32,fp16",
        help="precisions, separated by commas: fp32, fp16, bf16",
    )
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main() -> int:
    """Measure, and print or write the result; return 2 if there is no GPU."""
    options = parse()
    if options.device != "cpu":
        works, reason, remedy = examine_device(options.device)
        if not works:
            print(f"gpu.py: no usable GPU: {reason}; {remedy}", file=sys.stderr)
            return 2
    precisions = options.precisions.split(",")
    sizes = QUICK if options.quick else FULL
    deliver(measure(options.device, sizes, precisions, options.quick), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
