"""Latency of `ds2deploy serve` for different numbers of live streams, over loopback.

    python benchmarks/server.py [--streams 1,8] [--seconds 20] [--minutes 30] [--json] [--out DIR]

A client process simulates speakers in real time, who begin at random times and send pieces of
random sizes to a server process. Cases are greedy decoding and a beam search, with batches that
begin when the previous one has ended (Batch Dispatch) or every 320 ms. The number of streams grows
until one is refused, gets no transcript, or waits too long for it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from models import make_checkpoint, shape_name, write_onnx
from report import Result, Table, arguments, deliver, progress
from server_client import OFFSET_S, PATIENCE_S
from startup import COMMAND

from ds2deploy.export.format import ExportFormat
from ds2deploy.runtimes.artifact import ModelShape

STREAMS = (1, 8, 16, 32, 64, 128, 256, 512)
LARGE = ModelShape(bidirectional=False)
"""Network of 5 forward LSTMs of 1024 units, with a lookahead."""

DIGITS = Path(__file__).resolve().parents[1] / "tests" / "models" / "digits-streaming.ckpt"
STREAMING = ExportFormat(streaming=True, waveform=True)

DECODERS: dict[str, list[str]] = {"greedy": [], "beam 16": ["--beam", "16"]}
TICKS = {"Batch Dispatch": 0.0, "every 320 ms": 0.32}

FAILED_S = 2.0
"""Maximum 95th percentile of the time from the end of a stream to its transcript, in seconds."""

CLIENT_LATE_S = 0.2
"""Maximum delay of the client, in seconds; beyond it, the client is the bottleneck."""

START_S = 120.0


class Case(NamedTuple):
    """Configuration of a server: model, decoder and schedule."""

    model: str
    decoder: str
    tick: str


def main() -> None:
    """Measure, and print or write the result."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--streams",
        default=",".join(map(str, STREAMS)),
        help="numbers of simultaneous streams, ascending, separated by commas",
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="duration of each stream in seconds"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=30.0,
        help="start no further case after this many minutes",
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of the server; 0 uses all cores"
    )
    options = parser.parse_args()
    counts = [int(count) for count in options.streams.split(",")]
    if options.quick:
        options.seconds = min(options.seconds, 3.0)
    deliver(measure(counts, options), options)


def measure(counts: Sequence[int], options: argparse.Namespace) -> Result:
    """Run all cases, each with increasing numbers of streams."""
    deadline = time.monotonic() + 60 * options.minutes
    found: list[dict[str, Any]] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as folder:
        models = make_models(Path(folder), options.quick)
        cases = [Case(m, d, t) for m in models for d in DECODERS for t in TICKS]
        for case in cases:
            if time.monotonic() > deadline:
                notes.append(f"Not measured within {options.minutes:g} minutes: {', '.join(case)}.")
                continue
            found += run_case(case, models[case.model], counts, options, deadline)
    threads = options.threads or "all"
    return Result(
        name="server",
        title="Server: live streams over the loopback interface",
        quick=options.quick,
        tables=tables(found),
        notes=[
            f"Each stream: {options.seconds:g} s of synthetic speech in real time. Threads of the "
            f"server's engine: {threads}; the client has a process of its own on the same machine.",
            *notes,
        ],
        data={"runs": found, "seconds": options.seconds},
    )


def make_models(folder: Path, quick: bool) -> dict[str, Path]:
    """Write the models; a quick run only has the small one."""
    models = {"digits-streaming, fp32": write_onnx(DIGITS, folder, "fp32", STREAMING)}
    if not quick:
        checkpoint = make_checkpoint(LARGE, folder)
        name = f"{shape_name(LARGE)}, random weights, int8"
        models[name] = write_onnx(checkpoint, folder, "int8", STREAMING)
    return models


def run_case(
    case: Case, model: Path, counts: Sequence[int], options: argparse.Namespace, deadline: float
) -> list[dict[str, Any]]:
    """Serve a model to increasing numbers of speakers until it fails."""
    found = []
    arguments = [*DECODERS[case.decoder], "--tick", str(TICKS[case.tick])]
    with serve(model, [*arguments, "--threads", str(options.threads)]) as (process, url):
        talk(url, 1, 1.0)  # allocates memory and starts threads
        for count in counts:
            if time.monotonic() > deadline:
                break
            run = {**case._asdict(), "streams": count, **observe(process, url, count, options)}
            progress(json.dumps({key: run[key] for key in run if key != "final_s"}))
            found.append(run)
            if run["failure"]:
                break
    return found


@contextlib.contextmanager
def serve(
    model: Path, options: Sequence[str], streams: int | None = 100_000
) -> Iterator[tuple[psutil.Process, str]]:
    """Run a server; gives the process and its URL.

    Args:
        model: ONNX file.
        options: further options of the command.
        streams: maximum of live streams; None lets the server measure it.
    """
    command = [sys.executable, "-c", COMMAND, "serve", str(model), "--port", "0"]
    limit = [] if streams is None else ["--streams", str(streams)]
    log = model.with_suffix(".log")
    with log.open("w") as stderr:
        server = subprocess.Popen(  # noqa: S603
            [*command, *limit, *options], stdout=subprocess.DEVNULL, stderr=stderr
        )
    try:
        deadline = time.monotonic() + START_S
        while " at http" not in (text := log.read_text()):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {text}")
            time.sleep(0.05)
        yield psutil.Process(server.pid), text.partition(" at ")[2].split()[0]
    finally:
        server.kill()
        server.wait()


def talk(
    url: str, streams: int, seconds: float, lasting_s: float = 0.0, first: int | None = None
) -> dict[str, Any]:
    """Run the client; it ends by itself. See `server_client.py`."""
    script = Path(__file__).with_name("server_client.py")
    socket = url.replace("http", "ws", 1) + "/stream"
    command = [sys.executable, str(script), socket, "--streams", str(streams)]
    most_s = 2 * seconds + lasting_s + 4 * PATIENCE_S + START_S
    command += ["--seconds", str(seconds), "--for", str(lasting_s)]
    command += [] if first is None else ["--first", str(first)]
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=True, timeout=most_s
    )
    return dict(json.loads(done.stdout))


def observe(
    process: psutil.Process, url: str, count: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure a server with a number of speakers."""
    before, memory = read_metrics(url), Watch(process, 0.2)
    cpu_s = sum(process.cpu_times()[:2])
    with memory:
        found = talk(url, count, options.seconds)
    after = read_metrics(url)
    audio_s = total(after, "ds2deploy_audio_seconds_total") - total(
        before, "ds2deploy_audio_seconds_total"
    )
    final_s = sorted(found["final_s"])
    return {
        "final_s": final_s,
        "final_ms": percentiles(final_s),
        "lateness_ms": bucket_percentiles(before, after, "ds2deploy_lateness_seconds"),
        "cpu_percent_per_stream": round(
            100 * (sum(process.cpu_times()[:2]) - cpu_s) / (options.seconds + OFFSET_S) / count, 2
        ),
        "audio_s": round(audio_s, 2),
        "memory_mb": round(memory.most_memory / 1e6, 1),
        "client_late_ms": round(1000 * found["late_s"], 1),
        "failure": failure(found),
    }


def failure(found: Mapping[str, Any]) -> str:
    """Explain why a number of streams is too large; empty if it is not."""
    if found["problems"]:
        return f"{len(found['problems'])} streams: {found['problems'][0]}"
    if found["late_s"] > CLIENT_LATE_S:
        return "the client could not send in time"
    if float(np.percentile(found["final_s"], 95)) > FAILED_S:
        return f"transcripts later than {FAILED_S:g} s"
    return ""


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Compute percentiles in milliseconds; empty without values."""
    if not seconds:
        return {}
    return {f"p{p}": round(1000 * float(np.percentile(seconds, p)), 1) for p in (50, 95, 99)}


def read_metrics(url: str) -> dict[str, float]:
    """Read the server's metrics, by name and labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:  # noqa: S310
        lines = response.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def total(metrics: Mapping[str, float], name: str) -> float:
    """Sum a metric over its labels."""
    return sum(value for key, value in metrics.items() if key.partition("{")[0] == name)


def bucket_percentiles(
    before: Mapping[str, float], after: Mapping[str, float], name: str
) -> dict[str, float]:
    """Compute percentiles of a histogram in milliseconds, interpolated within its buckets."""
    bounds: dict[float, float] = {}
    for key, value in after.items():
        if key.startswith(f"{name}_bucket"):
            bound = float(key.partition('le="')[2].partition('"')[0])
            bounds[bound] = bounds.get(bound, 0.0) + value - before.get(key, 0.0)
    counts = sorted(bounds.items())
    if not counts or not counts[-1][1]:
        return {}
    found = {}
    for percent in (50, 95, 99):
        wanted, low, below = counts[-1][1] * percent / 100, 0.0, 0.0
        for bound, count in counts:
            if count >= wanted:
                share = (wanted - below) / (count - below)
                high = low if bound == float("inf") else bound
                found[f"p{percent}"] = round(1000 * (low + share * (high - low)), 1)
                break
            low, below = bound, count
    return found


class Sample(NamedTuple):
    """State of a process at a moment."""

    at_s: float
    memory: int
    descriptors: int


class Watch:
    """Samples of a process, taken at intervals while it is watched, and one at the end.

    Args:
        process: process to watch.
        every_s: interval between samples, in seconds.

    Attributes:
        samples: measured samples.
    """

    def __init__(self, process: psutil.Process, every_s: float) -> None:
        self._process, self._every_s = process, every_s
        self._began, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.samples: list[Sample] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    @property
    def most_memory(self) -> int:
        """Largest resident memory of the samples, in bytes."""
        return max(sample.memory for sample in self.samples)

    def _look(self) -> None:
        found, at_s = self._process, time.monotonic() - self._began
        self.samples.append(Sample(at_s, found.memory_info().rss, found.num_fds()))

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            self._look()


COLUMNS = [
    "streams", "final p50 (ms)", "p95", "p99", "lateness p50 (ms)", "p95", "p99",
    "CPU per stream (%)", "memory (MB)", "",
]  # fmt: skip


def tables(runs: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Make one table for each model, decoder and schedule."""
    found: dict[str, list[list[str]]] = {}
    for run in runs:
        title = f"{run['model']}, {run['decoder']}, {run['tick']}"
        cells = [
            f"{run[name].get(p, float('nan')):.0f}"
            for name in ("final_ms", "lateness_ms")
            for p in ("p50", "p95", "p99")
        ]
        cpu, memory = f"{run['cpu_percent_per_stream']:.1f}", f"{run['memory_mb']:.0f}"
        row = [str(run["streams"]), *cells, cpu, memory, run["failure"]]
        found.setdefault(title, []).append(row)
    return [Table(title, COLUMNS, rows) for title, rows in found.items()]


if __name__ == "__main__":
    main()
