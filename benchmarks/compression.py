"""Measure what `ds2deploy compress` gains against what the operations say.

Every model of one precision and batch runs in turn, several rounds, on one thread; a figure is the
ratio of medians of one run, so that what else the machine does weighs on all of them.

    python benchmarks/compression.py WHOLE.ckpt SMALL.ckpt... [--seconds 10] [--rounds 7]
    python benchmarks/compression.py --random 5 1024 --speed 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from models import make_checkpoint, network_run, open_network, write_onnx

from ds2deploy.bench.timing import take_turns
from ds2deploy.compression.compress import compress
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.operations import multiply_adds
from ds2deploy.runtimes.artifact import ModelShape, Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


def operations(path: Path) -> int:
    """Multiply-adds of an output frame."""
    network = load_checkpoint(path).network
    return sum(multiply_adds(network.shape, network.bins, network.labels).values())


def measure(
    checkpoints: list[Path], folder: Path, seconds: float, rounds: int, batches: list[int]
) -> list[dict[str, Any]]:
    """Time all checkpoints in turns; the first is what the others are compared with."""
    rows = []
    counts = [operations(path) for path in checkpoints]
    for precision in PRECISIONS:
        files = [write_onnx(path, folder / str(i), precision) for i, path in enumerate(checkpoints)]
        sessions = [open_network(file, "onnxruntime", threads=1) for file in files]
        for batch in batches:
            cases = {str(i): network_run(one, batch, seconds) for i, one in enumerate(sessions)}
            times = [median(found) for found in take_turns(cases, rounds).values()]
            for path, file, count, took in zip(checkpoints, files, counts, times, strict=True):
                rows.append(
                    {
                        "model": path.stem,
                        "precision": precision,
                        "batch": batch,
                        "fewer operations": round(counts[0] / count, 3),
                        "faster": round(times[0] / took, 3),
                        "median s": round(took, 4),
                        "MB": round(file.stat().st_size / 1e6, 2),
                    }
                )
    return rows


def main() -> None:
    """Parse the command, measure, print one JSON line for each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--random", nargs=2, type=int, metavar=("LAYERS", "UNITS"))
    parser.add_argument("--speed", type=float, default=2.0)
    parser.add_argument("--methods", default="units,both")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", default="1,8")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = list(options.checkpoints)
        if options.random:
            layers, units = options.random
            checkpoints = [make_checkpoint(ModelShape(layers=layers, hidden=units), folder)]
            for method in options.methods.split(","):
                small = folder / f"{method}.ckpt"
                compress(checkpoints[0], small, speed=options.speed, method=method)
                checkpoints.append(small)
        batches = [int(batch) for batch in options.batches.split(",")]
        for row in measure(checkpoints, folder, options.seconds, options.rounds, batches):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
