"""The server under three times the load that it can hold, and under 80 % of it for half an hour.

    python benchmarks/server_endurance.py [--soak-minutes 30] [--overload-seconds 40] [--json]

The server measures how many streams it can hold. Overload: so many speakers, and three times as
many, in turns; those that are refused come again when the server said. Soak: four fifths of that
number, who speak again and again. Both over the loopback interface, in real time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from models import write_onnx
from report import Goal, Result, Table, arguments, at_most, deliver, progress
from server import DIGITS, STREAMING, Watch, read_metrics, serve, talk, total

TIMES = 3
"""Speakers in overload, for each stream that the server can hold."""

SHARE = 0.8
"""Load of the soak, as a share of the streams that the server can hold."""

ROUNDS = 3
SETTLED_S = 120.0
"""Seconds of the soak after which memory is compared."""


def main() -> None:
    """Measure, and print or write."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--soak-minutes",
        type=float,
        default=30.0,
        help="duration of the soak test in minutes; 0 skips it",
    )
    parser.add_argument(
        "--overload-seconds",
        type=float,
        default=40.0,
        help="duration of the overload test in seconds; 0 skips it",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the server's engine")
    parser.add_argument(
        "--streams",
        type=int,
        help="number of simultaneous streams; default: the server measures it",
    )
    parser.add_argument(
        "--utterance-seconds",
        type=float,
        default=8.0,
        help="duration of the audio that a speaker sends at a time, in seconds",
    )
    options = parser.parse_args()
    if options.quick:
        options.utterance_seconds = 1.0
        options.soak_minutes = min(options.soak_minutes, 0.2)
        options.overload_seconds = min(options.overload_seconds, 4.0)
    deliver(measure(options), options)


def measure(options: argparse.Namespace) -> Result:
    """Run both loads, each against a server of its own."""
    goals: list[Goal] = []
    tables: list[Table] = []
    data: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as folder:
        model = write_onnx(DIGITS, Path(folder), "fp32", STREAMING)
        for name, seconds, run in (
            ("overload", options.overload_seconds, overload),
            ("soak", 60 * options.soak_minutes, soak),
        ):
            if not seconds:
                continue
            with serve(model, ["--threads", str(options.threads)], options.streams) as (
                process,
                url,
            ):
                found = run(process, url, seconds, options.utterance_seconds)
            goals += found.goals
            tables.append(found.table)
            data[name] = found.data
    return Result(
        name="-".join(["server", *data]),
        title=f"Server: {' and '.join(data)}",
        quick=options.quick,
        goals=goals,
        tables=tables,
        notes=[
            f"digits-streaming, fp32, {options.threads} thread; each speaker sends "
            f"{options.utterance_seconds:g} s of synthetic speech at a time, in real time; the "
            "clients have a process of their own on the same machine."
        ],
        data=data,
    )


class Found(NamedTuple):
    """Findings of a load."""

    goals: list[Goal]
    table: Table
    data: dict[str, Any]


def overload(process: psutil.Process, url: str, seconds: float, utterance_s: float) -> Found:
    """Let as many speak as the server holds, and three times as many, in turns."""
    holds = capacity(url)
    talk(url, holds, utterance_s)
    runs: dict[int, list[dict[str, Any]]] = {1: [], TIMES: []}
    for _ in range(ROUNDS):
        for times, found in runs.items():
            # In overload the same speakers are accepted: they begin before the others.
            run = talk(url, holds * times, utterance_s, seconds, first=holds)
            run["memory"] = process.memory_info().rss
            run["minutes"] = by_minute(run["finals"])
            found.append(run)
            progress(f"{holds * times} speakers: {describe(run)}")
    recovered_s = recovery(url)
    held, over = (
        [statistics.median(p95(run) for run in runs[times]), [run["memory"] for run in runs[times]]]
        for times in runs
    )
    memory = max(over[1]) / max(held[1])
    goals = [
        at_most(
            f"latency of accepted streams (p95), {TIMES} times the load against what it holds",
            1.2,
            over[0] / held[0],
        ),
        at_most("memory in overload, against before", 1.05, memory),
        at_most(
            "after overload, seconds to a transcript of a new stream beyond its audio",
            1.0,
            recovered_s,
            "s",
        ),
        at_most(
            "accepted streams without a transcript",
            0,
            sum(len(run["problems"]) for found in runs.values() for run in found),
            "",
        ),
    ]
    rows = [
        [str(holds * times), *describe_row(run)] for times, found in runs.items() for run in found
    ]
    columns = ["speakers", "transcripts", "refused", "p50 (ms)", "p95", "p99", "memory (MB)"]
    table = Table(f"Overload: the server holds {holds} streams", columns, rows)
    kept: dict[str, list[dict[str, Any]]] = {}
    for times, found in runs.items():
        kept[str(times)] = [
            {key: value for key, value in run.items() if key not in ("finals", "final_s")}
            for run in found
        ]
    return Found(goals, table, {"holds": holds, "runs": kept})


def soak(process: psutil.Process, url: str, seconds: float, utterance_s: float) -> Found:
    """Let four fifths of what the server holds speak for a long time."""
    count = max(1, int(SHARE * capacity(url)))
    talk(url, 1, 1.0)
    descriptors = process.num_fds()
    with Watch(process, min(10.0, seconds / 20)) as watch:
        run = talk(url, count, utterance_s, seconds)
    time.sleep(1.0)
    left = process.num_fds() - descriptors
    settled = min(SETTLED_S, seconds / 4)
    memory_then = next(one.memory for one in watch.samples if one.at_s >= settled)
    memory_now = statistics.median(one.memory for one in watch.samples[-4:-1])
    part = min(300.0, seconds / 3)
    first = [late for at, late in run["finals"] if at < part]
    last = [late for at, late in run["finals"] if at > seconds - part]
    ratio = float(np.percentile(last, 99) / np.percentile(first, 99))
    goals = [
        at_most(
            f"memory at the end of the soak, against {settled:.0f} s after its begin",
            1.05,
            memory_now / memory_then,
        ),
        at_most("file descriptors left", 0, left, ""),
        at_most(f"p99 of the last {part:.0f} s against that of the first", 1.2, ratio),
        at_most("streams without a transcript", 0, len(run["problems"]) + run["refused"], ""),
    ]
    rows = [
        [name, str(len(late)), *(f"{1000 * np.percentile(late, p):.0f}" for p in (50, 95, 99))]
        for name, late in ((f"first {part:.0f} s", first), (f"last {part:.0f} s", last))
    ]
    title = f"Soak: {count} speakers for {seconds / 60:.1f} minutes"
    columns = ["", "transcripts", "p50 (ms)", "p95", "p99"]
    samples = [list(one) for one in watch.samples]
    return Found(goals, Table(title, columns, rows), {
        "streams": count, "samples": samples, "problems": run["problems"],
        "minutes": by_minute(run["finals"]),
    })  # fmt: skip


def by_minute(finals: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    """Summarise transcripts, each (moment, seconds to it), minute by minute."""
    found: dict[int, list[float]] = {}
    for at_s, late_s in finals:
        found.setdefault(int(at_s // 60), []).append(late_s)
    return [
        {"minute": minute, "transcripts": len(late), **{
            f"p{p}_ms": round(1000 * float(np.percentile(late, p)), 1) for p in (50, 99)
        }}
        for minute, late in sorted(found.items())
    ]  # fmt: skip


def capacity(url: str) -> int:
    """Read how many streams the server accepts."""
    return int(total(read_metrics(url), "ds2deploy_live_streams_limit"))


def recovery(url: str) -> float:
    """Open a stream, speak, and measure the seconds to its transcript beyond those of its audio."""
    seconds, began = 1.0, time.monotonic()
    found = talk(url, 1, seconds)
    if found["problems"]:
        return float("inf")
    started_s = time.monotonic() - began - seconds
    progress(
        f"new stream after overload: {started_s:.2f} s until its transcript, with the start of the "
        "client"
    )
    return float(found["final_s"][0])


def p95(run: dict[str, Any]) -> float:
    """95th percentile of the seconds to a transcript."""
    return float(np.percentile([late for _, late in run["finals"]], 95))


def describe_row(run: dict[str, Any]) -> list[str]:
    """Cells of a run: transcripts, refusals, percentiles of latency, memory."""
    late = [late for _, late in run["finals"]]
    shown = [f"{1000 * np.percentile(late, p):.0f}" for p in (50, 95, 99)]
    return [str(len(late)), str(run["refused"]), *shown, f"{run['memory'] / 1e6:.0f}"]


def describe(run: dict[str, Any]) -> str:
    """One line of a run."""
    names: Sequence[str] = ("transcripts", "refused", "p50", "p95", "p99", "MB")
    return ", ".join(f"{k} {v}" for k, v in zip(names, describe_row(run), strict=True))


if __name__ == "__main__":
    main()
