"""Fuzz what reads files from outside: `python tests/fuzz/run.py --minutes 10 --targets audio,pcm`.

Each target is read in a process of its own, which may take 10 s of a processor and 1 GB of memory
for a content. What ends otherwise than with a line for a person is saved with its bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker import CPU_S, MEMORY_FOLDER, Finding, innermost, read_current

FOLDER = Path(__file__).resolve().parent
CORPUS = FOLDER / "corpus"

ROUND_S = 60.0
"""Seconds of one process, so that what a reader leaves behind does not add up."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",  # each reserves address space
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONHASHSEED": "0",
}

MOST_DEATHS = 5
"""Processes that may die of one target; each costs seconds, and most would die of the same."""


class Hunt:
    """Reads contents of one target in processes, one after the other.

    Args:
        target: its name.
        out: folder of this target, for what the processes write.
        seed: seed of the random contents.
        engine: `own` or `atheris`.
        module: name of a module with `TARGETS`, `is_explained` and `furnish`.
        path: folder of that module.
        cpu_s: seconds of a processor for a content.

    Attributes:
        findings: one of each key.
        cases: contents that were read.
        deaths: processes that died.
    """

    def __init__(
        self,
        target: str,
        out: Path,
        seed: str = "0",
        engine: str = "own",
        module: str = "targets",
        path: str = str(FOLDER),
        cpu_s: float = CPU_S,
    ) -> None:
        self.target, self.out = target, out
        self.findings: list[Finding] = []
        self.cases = self.deaths = 0
        self._order: dict[str, Any] = {
            "target": target, "out": str(out), "seed": f"{seed} {target}", "engine": engine,
            "module": module, "path": [path], "files": [], "corpus": corpus(target), "cpu_s": cpu_s,
        }  # fmt: skip
        self._next = 0
        out.mkdir(parents=True, exist_ok=True)

    def random(self, seconds: float | None = None, last: int | None = None) -> None:
        """Read numbered contents for some seconds, or up to a number."""
        end = None if seconds is None else time.monotonic() + seconds
        while self.deaths < MOST_DEATHS:
            if (end and time.monotonic() >= end) or (last is not None and self._next >= last):
                return
            left = ROUND_S if end is None else min(ROUND_S, end - time.monotonic())
            before = self._next
            self._process({"first": self._next, "last": last}, left if last is None else None)
            self.cases += self._next - before

    def files(self, paths: Sequence[Path]) -> None:
        """Read files; a process that dies is followed by another, for the rest."""
        self._next = 0
        while self._next < len(paths):
            names = [str(path) for path in paths[self._next :]]
            start, self._next = self._next, 0
            self._process({"files": names, "first": 0, "last": None}, None)
            self._next += start
        self.cases += len(paths)

    def _process(self, order: dict[str, Any], seconds: float | None) -> None:
        for name in ("number", "current", "findings.jsonl"):
            (self.out / name).unlink(missing_ok=True)
        order = self._order | order | {"known": [f.key for f in self.findings]}
        environment = os.environ | ENVIRONMENT
        log = self.out / "log"
        with log.open("w+b") as written:
            process = subprocess.Popen(
                [sys.executable, str(FOLDER / "worker.py"), json.dumps(order)],
                stdout=written, stderr=written, env=environment,
            )  # fmt: skip
            stopped = self._wait(process, seconds)
        self._gather(process.returncode, stopped, log.read_text("utf-8", "replace"))

    def _wait(self, process: subprocess.Popen[bytes], seconds: float | None) -> bool:
        """Wait for its end; true where it was stopped because its time was up."""
        number = self.out / "number"
        try:
            while seconds is not None and process.poll() is None and not number.exists():
                time.sleep(0.02)  # what it imports is not of its time
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            return True
        except BaseException:
            process.kill()
            process.wait()
            raise
        return False

    def _gather(self, code: int, stopped: bool, log: str) -> None:
        number = self.out / "number"
        if not number.exists():
            raise RuntimeError(f"{self.target}: the process could not begin:\n{log[-3000:]}")
        for line in _lines(self.out / "findings.jsonl"):
            self.findings.append(Finding(**line | {"content": bytes.fromhex(line["content"])}))
        self._next = int.from_bytes(number.read_bytes(), "little") + 1
        if stopped or code == 0:
            return
        self.deaths += 1
        hung = code == -signal.SIGPROF or "Timeout (" in log
        content = read_current(self.out / "current")
        where = _place(log)
        if not hung:
            where = f"{signal.Signals(-code).name if code < 0 else code} {where}"
        finding = Finding(self.target, "hang" if hung else "crash", where, content, log[-4000:])
        if finding.key not in {known.key for known in self.findings}:
            self.findings.append(finding)


def corpus(target: str) -> list[str]:
    """Committed contents of a target."""
    return sorted(map(str, (CORPUS / target).glob("*")))


def save(finding: Finding, folder: Path) -> Path:
    """Write the bytes, and beside them what they led to."""
    folder = folder / finding.target
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{finding.kind} {finding.where}")[:70].strip("-")
    path = folder / name
    path.write_bytes(finding.content)
    path.with_name(f"{name}.txt").write_text(
        f"{finding.kind}: {finding.where}\n\n{finding.trace}\n"
    )
    return path


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _place(log: str) -> str:
    """The innermost line of the project in what faulthandler wrote."""
    return innermost(re.findall(r'File "([^"]+)", line \d+ in (\S+)', log))


def main() -> int:
    """Entry point; 1 where something was found."""
    from targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of all targets together (10)")
    parser.add_argument("--targets", default=",".join(TARGETS), help="names, with commas between")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder for findings")
    parser.add_argument("--seed", default="0", help="decides the contents (0)")
    parser.add_argument("--cases", type=int, help="contents per target, instead of --minutes")
    parser.add_argument("--engine", choices=("own", "atheris"), default="own")
    options = parser.parse_args()
    names = options.targets.split(",")
    if unknown := set(names) - TARGETS.keys():
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and its process with it
    seconds = None if options.cases else 60 * options.minutes / len(names)
    failed = False
    for name in names:
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY_FOLDER) as folder:
            hunt = Hunt(name, Path(folder) / name, options.seed, options.engine)
            started = time.monotonic()
            hunt.random(seconds, options.cases)
        took = time.monotonic() - started
        print(
            f"{name}: {hunt.cases} contents in {took:.0f} s, {len(hunt.findings)} findings",
            flush=True,
        )
        if hunt.deaths >= MOST_DEATHS:
            print(f"  given up after {hunt.deaths} processes that died")
        for finding in hunt.findings:
            failed = True
            print(f"  {finding.kind}: {finding.where} -> {save(finding, options.out)}", flush=True)
    print(f"limits of each: {CPU_S:g} s of a processor, 1 GB of memory")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
