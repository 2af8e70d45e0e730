"""Time of a fresh process of `ds2deploy transcribe`, from its start to its end.

    python benchmarks/startup.py [--quick] [--json] [--out DIR]

The trained model of digits recognises 3 s of audio, as an ONNX file and as a checkpoint on torch,
in processes that run in turns. Processes that only import the command's libraries show where the
time is spent, and one that opens a session with ONNX Runtime alone shows what nobody can save. The
modules are compiled once, in the warm-up round, as pip does when it installs them.
"""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import soundfile
from models import DIGITS, speech, write_onnx
from report import Goal, Result, Table, arguments, at_most, deliver, progress

from ds2deploy.bench.timing import latency, ratio, take_turns
from ds2deploy.model.load import load_checkpoint

ONNX, TORCH = "transcribe model.onnx", "transcribe model.ckpt (torch)"
BARE = "ONNX Runtime, without ds2deploy"
SECONDS = 3.0
WALL_GOAL, MEMORY_GOAL, RATIO_GOAL, BARE_GOAL = 0.8, 200.0, 3.0, 1.6

IMPORTS = {
    "python alone": "pass",
    "+ the command line": "import ds2deploy.cli.app",
    "+ numpy": "import ds2deploy.cli.app, numpy",
    "+ ONNX Runtime": (
        "import ds2deploy.cli.app, numpy\n"
        "from ds2deploy.runtimes.onnx.library import import_onnxruntime as run; run()"
    ),
    "torch alone": "import torch",
}
"""Code of the processes; each except the last also has the imports of the previous ones."""

COMMAND = "from ds2deploy.cli.app import main; main()"
"""Code of the installed command."""

SESSION = """
import sys, numpy, onnxruntime
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""
"""Code that opens the model and does nothing with it."""

WATCHED = """
import atexit, sys
from ds2deploy.training.memory import peak_memory_mib
atexit.register(lambda: print("peak", peak_memory_mib(), file=sys.stderr))
"""
"""Code that makes the command print its own peak memory at its end. The peak that the system
reports to a parent process includes memory of the parent, from before the program was started."""


def process(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process, with command-line arguments.

    Raises:
        CalledProcessError: the process failed.
    """
    command = [sys.executable, "-c", code, *words]
    # Without its bytecode every start would compile ds2deploy, for a fifth of the command's time.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=True, env=environment
    )


def peak_mb(*words: str) -> float | None:
    """Measure the peak resident memory of a command, in 10^6 bytes; None if it is not known."""
    last = process(WATCHED + COMMAND, *words).stderr.split()[-1]
    return None if last == "None" else float(last) * 2**20 / 1e6


def measure(rounds: int, quick: bool = False) -> Result:
    """Run the processes in turns, then each once more to measure its memory.

    Args:
        rounds: number of rounds, after a warm-up round (none for the sizes of a test).
        quick: True runs the two commands once, for a test.
    """
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as name:
        folder = Path(name)
        audio = folder / "a.wav"
        rate = load_checkpoint(DIGITS).recipe.features.sample_rate
        soundfile.write(audio, speech(rate, SECONDS), rate)
        onnx = str(write_onnx(DIGITS, folder))
        commands = {ONNX: (onnx, str(audio)), TORCH: (str(DIGITS), str(audio))}
        texts: dict[str, str] = {}

        def transcribe(case: str) -> Callable[[], object]:
            words = ("transcribe", *commands[case])
            return lambda: texts.update({case: process(COMMAND, *words).stdout})

        cases = {case: transcribe(case) for case in commands}
        imports = {
            title: functools.partial(process, code) for title, code in IMPORTS.items() if not quick
        }
        bare = {BARE: functools.partial(process, SESSION, onnx)}
        every = cases | bare | imports
        took = take_turns(every, rounds, warm_up=int(not quick), progress=progress)
        memory = {case: peak_mb("transcribe", *words) for case, words in commands.items()}
    faster, longer = ratio(took[TORCH], took[ONNX]), ratio(took[ONNX], took[BARE])
    goals = [
        at_most(
            "transcribe model.onnx a.wav, whole process", WALL_GOAL, latency(took[ONNX]).p50, "s"
        ),
        at_most("its resident memory at most", MEMORY_GOAL, memory[ONNX], "MB"),
        Goal("against the same through torch", RATIO_GOAL, faster.median, detail=faster.spread),
        at_most(
            "against a session of ONNX Runtime alone",
            BARE_GOAL,
            longer.median,
            detail=longer.spread,
        ),
    ]
    return Result(
        name="startup",
        title=f"A fresh process: digits model, {SECONDS:g} s of audio",
        quick=quick,
        goals=goals,
        tables=[wall_table(took, memory)],
        notes=[] if quick else [split(took)],
        data={"seconds": took, "peak_mb": memory, "texts": texts},
    )


def wall_table(took: dict[str, list[float]], memory: dict[str, float | None]) -> Table:
    """Make a table with the seconds of every process, and the megabytes of the commands."""
    rows = []
    for case, seconds in took.items():
        found, peak = latency(seconds), memory.get(case)
        shown = "" if peak is None else f"{peak:.0f}"
        rows.append([case, f"{found.p50:.3f}", f"{found.p95:.3f}", shown])
    return Table("Processes", ["", "p50 (s)", "p95 (s)", "peak (MB)"], rows)


def split(took: dict[str, list[float]]) -> str:
    """Describe where the ONNX command spends its time, as differences of medians."""
    names = [*list(IMPORTS)[:-1], ONNX]
    medians = [statistics.median(took[name]) for name in names]
    parts = [f"{1000 * medians[0]:.0f} ms Python"]
    titles = ("the command line", "numpy", "ONNX Runtime", "model, audio and recognition")
    for title, before, after in zip(titles, medians, medians[1:], strict=False):
        parts.append(f"{1000 * max(after - before, 0.0):.0f} ms {title}")
    return f"Of {1000 * medians[-1]:.0f} ms: {', '.join(parts)}."


def main() -> None:
    """Measure, and print or write the result."""
    options = arguments(__doc__ or "").parse_args()
    deliver(measure(1, quick=True) if options.quick else measure(15), options)


if __name__ == "__main__":
    main()
