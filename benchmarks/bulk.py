"""Bulk transcription against `transcribe` on the same files, its memory, its driver, and a cluster.

    python benchmarks/bulk.py --model M.onnx [--files 1024] [--rounds 2] [--inputs 300000]
                              [--repeat 20000] [--no-ray]

Four parts; each can be left out with 0:

1. throughput (--files, --rounds): `transcribe_many` in this process, bulk with one and two
   processes of one thread, and one and two actors of Ray, in turns. Times begin with the results of
   every worker's first chunk, since Ray delivers chunks as a whole: take files for eight chunks of
   128 at least. Ratios are of the medians. Goals: 0.95 without Ray, 0.85 with, for each worker.
2. memory (--repeat): greatest memory of the driver and of a worker in each quarter of a manifest
   that repeats recordings of 1 to 2 s; flat: the last is not above the second by more than 5 %.
3. driver (--inputs): a run over inputs of zero length, and the run after it that finds all done:
   seconds and MiB for a million.
4. cluster: 50,000 hours on 10, 100 and 1,000 workers, simulated from the rate of part 1 and the
   driver's time for a line of part 3, with slow workers and with workers that fail.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import soundfile

import ds2deploy
from ds2deploy.bulk import run as bulk_run
from ds2deploy.bulk.inputs import Input
from ds2deploy.bulk.results import Header
from ds2deploy.bulk.run import Report, make_header, run_bulk
from ds2deploy.bulk.worker import CHUNK, Done, Job
from ds2deploy.export.parity.speech import synthesize

RATE = 16_000
HOURS = 50_000
UTTERANCE_S = 10.0


def write_files(folder: Path, count: int, longest_s: float = 12.0) -> list[Path]:
    """Write synthetic speech of 1 s or longer."""
    chance = random.Random(0)
    paths = []
    folder.mkdir(exist_ok=True)
    for i in range(count):
        samples = synthesize(RATE, int(RATE * chance.uniform(1, longest_s)), seed=i % 32)
        paths.append(folder / f"{i:05}.wav")
        soundfile.write(paths[-1], samples, RATE)
    return paths


def write_list(path: Path, paths: list[Path]) -> Path:
    """Write a list of paths."""
    path.write_text("".join(f"{one}\n" for one in paths))
    return path


def throughput(
    job: Job, paths: list[Path], rounds: int, with_ray: bool, folder: Path
) -> dict[str, Any]:
    """Speed after the first chunk of every worker, as ratios to `transcribe_many`."""
    ways: dict[str, dict[str, Any]] = {
        "transcribe": {}, "1 process": {"workers": 1}, "2 processes": {"workers": 2},
    }  # fmt: skip
    if with_ray:
        ways |= {
            "1 actor of Ray": {"workers": 1, "engine": "ray"},
            "2 actors of Ray": {"workers": 2, "engine": "ray"},
        }
    listed = write_list(folder / "list.txt", paths)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds):
        for way, options in ways.items():
            marks: list[tuple[float, float]] = []
            if options:

                def mark(report: Report, marks: list[tuple[float, float]] = marks) -> None:
                    marks.append((time.perf_counter(), report.audio_s))

                run_bulk(listed, folder / f"{way} {turn}", job, on_progress=mark, **options)
            else:
                audio_s = 0.0
                with ds2deploy.load(job.model, threads=1) as recognizer:
                    for found in recognizer.transcribe_many(paths):
                        audio_s += found.audio_s
                        marks.append((time.perf_counter(), audio_s))
            began = marks[CHUNK * int(options.get("workers", 1)) - 1]
            rates[way].append((marks[-1][1] - began[1]) / (marks[-1][0] - began[0]))
            print(f"round {turn + 1}: {way}: {rates[way][-1]:.1f}x", file=sys.stderr, flush=True)
    base = statistics.median(rates["transcribe"])
    return {
        "transcribe_factor": round(base, 2),
        "ratios": {way: round(statistics.median(one) / base, 3) for way, one in rates.items()},
    }


def memory(job: Job, repeat: int, folder: Path) -> dict[str, Any]:
    """Greatest memory of the driver and its worker in each quarter, in MiB."""
    short = write_files(folder / "short", 32, longest_s=2.0)
    listed = write_list(folder / "repeated.txt", [short[i % len(short)] for i in range(repeat)])
    quarters: list[dict[str, float]] = [{"driver": 0.0, "worker": 0.0} for _ in range(4)]
    count = 0

    def look(_: Report) -> None:
        nonlocal count
        quarter = quarters[min(3, 4 * count // repeat)]
        if count % 50 == 0:
            mine = psutil.Process()
            quarter["driver"] = max(quarter["driver"], mine.memory_info().rss / 2**20)
            for child in mine.children():
                quarter["worker"] = max(quarter["worker"], child.memory_info().rss / 2**20)
        count += 1

    run_bulk(listed, folder / "memory", job, on_progress=look)
    return {
        "inputs": repeat,
        "quarters_mib": [{k: round(v, 1) for k, v in one.items()} for one in quarters],
        "flat": all(quarters[3][who] <= 1.05 * quarters[1][who] for who in ("driver", "worker")),
    }


def driver(count: int, folder: Path) -> dict[str, Any]:
    """Time and memory for a million inputs that cost nothing, in the first run and the next."""
    header = Header(format_version=1, model_sha256="m", decoder_sha256="d")
    out, listed = folder / "driver", folder / "many.txt"
    with listed.open("w") as file:
        file.writelines(f"s3://bucket/of/recordings/{i:08}.wav\n" for i in range(count))

    class Closed:
        def close(self) -> None:
            """Nothing is open."""

    def free(_: str, job: Job, chunks: Any, *__: Any) -> Iterator[Done]:
        line = '{{"audio":"{}","text":"","words":[],"key":"{}","size":-2,"mtime_ns":0}}\n'
        for chunk in chunks:
            for i in sorted(chunk.wanted):
                item: Input = chunk.inputs[i]
                yield Done(i, line.format(item.audio, "0" * 64).encode(), 0.0)

    kept = bulk_run.open_model, bulk_run._run
    bulk_run.open_model, bulk_run._run = lambda job: Closed(), free  # type: ignore[assignment]
    job = Job(model="none", header=header)
    found: dict[str, Any] = {"inputs": count}
    millions = count / 1e6
    try:
        for name in ("first run", "next run"):
            before, started = psutil.Process().memory_info().rss, time.perf_counter()
            processor = time.process_time()
            report = run_bulk(listed, out, job)
            assert report.inputs == count, report
            took, used = time.perf_counter() - started, time.process_time() - processor
            grown = (psutil.Process().memory_info().rss - before) / 2**20
            found[name] = {
                "s_a_million": round(took / millions, 1),
                "processor_s_a_million": round(used / millions, 1),
                "mib_a_million": round(grown / millions, 1),
            }
    finally:
        bulk_run.open_model, bulk_run._run = kept
    found["files"] = len(list(out.glob("part-*")))
    found["bytes_a_line"] = sum(p.stat().st_size for p in out.glob("part-*")) // count
    return found


def cluster(factor: float, line_s: float) -> dict[str, Any]:
    """Simulate the hours that a corpus takes on 10, 100 and 1,000 workers.

    One worker in twenty is three times as slow; a worker fails once in 200 h and loses its chunk,
    and another takes 60 s to start. The driver writes results in the order in which they arrive,
    one after the other, and takes `line_s` for each line.
    """
    return {f"{workers} workers": _cluster(workers, factor, line_s) for workers in (10, 100, 1000)}


def _cluster(workers: int, factor: float, line_s: float) -> dict[str, Any]:
    chance = random.Random(workers)
    merge = 8  # chunks at once, for fewer events
    chunk_s, write_s = merge * CHUNK * UTTERANCE_S / factor, merge * CHUNK * line_s
    chunks = int(HOURS * 3600 / UTTERANCE_S / CHUNK / merge)
    slow = [3.0 if chance.random() < 0.05 else 1.0 for _ in range(workers)]
    events: list[tuple[float, int, float]] = []  # end, worker, seconds of a finished chunk or 0

    def begin(at_s: float, who: int) -> None:
        takes = chunk_s * slow[who] * chance.uniform(0.8, 1.25)
        failed = chance.random() < takes / (200 * 3600)
        end_s = at_s + (chance.uniform(0, takes) if failed else takes)
        heapq.heappush(events, (end_s, who, 0.0 if failed else takes))

    for who in range(workers):
        begin(0.0, who)
    driver_s, failures, busy_s, done = 0.0, 0, 0.0, 0
    while done < chunks:
        now, who, took = heapq.heappop(events)
        if not took:
            failures += 1
            begin(now + 60, who)
            continue
        done += 1
        busy_s += took
        driver_s = max(driver_s, now) + write_s
        # a worker has a second chunk, and waits only for a driver that is further behind
        begin(max(now, driver_s - took), who)
    ideal_s = HOURS * 3600 / factor / sum(1 / one for one in slow)
    return {
        "hours": round(driver_s / 3600, 2),
        "of_ideal": round(driver_s / ideal_s, 3),
        "workers_busy": round(busy_s / workers / driver_s, 3),
        "driver_busy": round(chunks * write_s / driver_s, 4),
        "failures": failures,
    }


def main() -> None:
    """Measure, and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--files", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=20_000)
    parser.add_argument("--inputs", type=int, default=300_000)
    parser.add_argument("--no-ray", action="store_true")
    wanted = parser.parse_args()
    if 0 < wanted.files < 4 * CHUNK:
        parser.error(f"--files {wanted.files}: expected 0, or at least {4 * CHUNK}")
    job = Job(model=str(wanted.model), header=make_header(wanted.model, None), threads=1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if wanted.inputs:
            results["driver"] = driver(wanted.inputs, folder)
            print(results["driver"], file=sys.stderr, flush=True)
        if wanted.files and wanted.rounds:
            paths = write_files(folder / "speech", wanted.files)
            results["throughput"] = throughput(job, paths, wanted.rounds, not wanted.no_ray, folder)
        if wanted.repeat:
            results["memory"] = memory(job, wanted.repeat, folder)
    if {"driver", "throughput"} <= set(results):
        line_s = results["driver"]["first run"]["processor_s_a_million"] / 1e6
        results["cluster"] = cluster(results["throughput"]["transcribe_factor"], line_s)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
