"""Bulk transcription killed at random moments: the same lines as without, and nothing twice.

    python benchmarks/bulk_killed.py --model M.onnx [--audio FOLDER] [--files 2000] [--seed 0]

The inputs are the recordings of a folder, repeated until there are enough (without --audio:
synthetic speech), with one damaged file in fifty. They go through one worker, two workers, and
two actors of Ray; then, for processes and for Ray, the command or a worker is killed five times
(--kills) by SIGKILL at moments drawn from the seed, and started again. All lines, sorted, must be
the same bytes. Prints one JSON document; exit code 1 where lines differ.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import soundfile

from ds2deploy.export.parity.speech import synthesize

RATE = 16_000
DAMAGED_OF = 50
WORKER_NAMES = ("spawn_main", "ray::_Actor")
PATIENCE_S = 300


def make_inputs(folder: Path, audio: Path | None, count: int, seed: int) -> Path:
    """Write a list of `count` paths, one in fifty of a file that no one can read."""
    chance = random.Random(seed)
    if audio is None:
        audio = folder / "speech"
        audio.mkdir()
        for i in range(40):
            samples = synthesize(RATE, int(RATE * chance.uniform(0.5, 4)), seed=i)
            soundfile.write(audio / f"{i:03}.wav", samples, RATE)
    good = sorted(audio.rglob("*.wav"))
    whole = good[0].read_bytes()
    contents = (b"", b"RIFF of no use", whole[:30], b"text\n" * 99)
    damaged = [folder / f"damaged-{i}.wav" for i in range(len(contents))]
    for path, content in zip(damaged, contents, strict=True):
        path.write_bytes(content)
    damaged.append(folder / "not there.wav")
    paths = [good[i % len(good)] for i in range(count - count // DAMAGED_OF)]
    paths += [damaged[i % len(damaged)] for i in range(count // DAMAGED_OF)]
    chance.shuffle(paths)
    listed = folder / "list.txt"
    listed.write_text("".join(f"{path}\n" for path in paths))
    return listed


def lines_of(out: Path) -> list[bytes]:
    """All lines of a folder of results, sorted."""
    return sorted(
        line for path in out.glob("part-*.jsonl") for line in path.read_bytes().splitlines(True)
    )


def count_lines(out: Path) -> int:
    """Count the whole lines written so far."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("part-*.jsonl"))


def workers_of(driver: int) -> list[psutil.Process]:
    """Find the processes that recognise: children of the command, at any depth."""
    found = []
    for one in psutil.Process(driver).children(recursive=True):
        try:
            if any(name in " ".join(one.cmdline()) for name in WORKER_NAMES):
                found.append(one)
        except psutil.Error:
            continue
    return found


def killed_run(command: list[str], out: Path, moments: list[tuple[int, bool]]) -> list[str]:
    """Run a command until it ends, with kills on the way.

    Args:
        command: the command.
        out: its folder of results.
        moments: for each kill the number of lines to wait for, and True for the command, False for
            one of its workers.

    Returns:
        What was killed, and after how many lines.
    """
    log: list[str] = []
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603
    for least, is_driver in moments:
        deadline = time.monotonic() + PATIENCE_S
        while running.poll() is None and count_lines(out) < least:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{out}: has {count_lines(out)} lines, expected {least} within {PATIENCE_S:g} s"
                )
            time.sleep(0.005)
        if running.poll() is not None:
            log.append(f"ended before line {least}")
            break
        lines = count_lines(out)
        workers = workers_of(running.pid)
        if is_driver or not workers:
            running.send_signal(signal.SIGKILL)
            running.wait()
            broken = [path.name for path in out.glob("part-*.jsonl") if not _ends_whole(path)]
            log.append(f"command at {lines}" + (f", half a line in {broken}" if broken else ""))
            running = subprocess.Popen(  # noqa: S603
                command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        else:
            workers[least % len(workers)].kill()
            log.append(f"worker at {lines}")
    running.wait()
    return log


def _ends_whole(path: Path) -> bool:
    content = path.read_bytes()
    return not content or content.endswith(b"\n")


def main() -> int:
    """Run everything, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-ray", action="store_true", help="do not test Ray")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        return run(wanted, Path(name))


def run(wanted: argparse.Namespace, folder: Path) -> int:
    """Compare the ways, in a folder of their own."""
    listed = make_inputs(folder, wanted.audio, wanted.files, wanted.seed)
    start = [sys.executable, "-m", "ds2deploy", "bulk", str(wanted.model), str(listed)]
    start += ["--threads", "1", "--json"]
    ways = {"1 process": ["--workers", "1"], "2 processes": ["--workers", "2"]}
    if not wanted.no_ray:
        ways["2 actors of Ray"] = ["--workers", "2", "--engine", "ray"]
    report: dict[str, object] = {"inputs": wanted.files, "seed": wanted.seed}
    expected: list[bytes] = []
    failed = 0
    for way, options in ways.items():
        out = folder / way
        subprocess.run([*start, "--out", str(out), *options], check=False, capture_output=True)  # noqa: S603
        found = lines_of(out)
        expected = expected or found
        failed += found != expected or len(found) != wanted.files
        errors = sum(b'"error":' in line for line in found)
        report[way] = {"lines": len(found), "errors": errors, "identical": found == expected}
        print(way, report[way], file=sys.stderr, flush=True)
    chance = random.Random(wanted.seed)
    for way, options in list(ways.items())[1:]:
        out = folder / f"{way}, killed"
        moments = [
            (least, chance.random() < 0.6)
            for least in sorted(chance.sample(range(1, wanted.files * 9 // 10), wanted.kills))
        ]
        log = killed_run([*start, "--out", str(out), *options], out, moments)
        found = lines_of(out)
        failed += found != expected
        report[f"{way}, killed"] = {
            "kills": log, "lines": len(found), "identical": found == expected,
        }  # fmt: skip
        print(way, report[f"{way}, killed"], file=sys.stderr, flush=True)
    print(json.dumps(report, indent=1))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
