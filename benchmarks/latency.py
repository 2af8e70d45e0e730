"""Latency of a batch of speech in torch and ONNX Runtime, and its growth with length and batch.

    python benchmarks/latency.py [--quick] [--json] [--out DIR]

5 x BiLSTM-1024 with random weights. The reference is the same network in torch over packed
sequences, as DeepSpeech 2 is usually computed. The machine's rates are measured in turns with the
cases; next to each goal stands the best value that the lower bound of `limits.py` allows.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from counting import stages_of_speech
from models import LARGE, TINY, make_checkpoint, network_run, open_network, shape_name, write_onnx
from probes import Probe, floors, machine_probes, take_turns_with
from report import Goal, Plot, Result, Table, arguments, at_most, deliver, progress

from ds2deploy.bench.timing import latency, ratio, take_turns
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.session import Session

PACKED = "torch, packed sequences"
UNPACKED = "torch"
FP32, INT8 = "ONNX Runtime fp32", "ONNX Runtime int8"

SIZE_GOAL = 27.0
"""Maximum size of the int8 file, in percent of the fp32 file."""

GROWTH_GOAL = 1.25
"""Maximum factor by which the cost of a second of audio may grow with length or batch size."""


class Sizes(NamedTuple):
    """Sizes of a run: network, seconds, batches and rounds of the comparison, and of the growth."""

    shape: ModelShape
    seconds: float
    batches: tuple[int, int]
    rounds: int
    durations: tuple[float, ...]
    growing: tuple[int, ...]
    growth_rounds: int


FULL = Sizes(LARGE, 10.0, (1, 8), 4, (1, 10, 60, 600), (1, 2, 4, 8, 16, 32), 2)
QUICK = Sizes(TINY, 0.2, (1, 8), 2, (0.2, 0.4, 0.8), (1, 2), 1)


class Models(NamedTuple):
    """Network on every runtime, and the sizes of its files in bytes."""

    sessions: dict[str, Session]
    sizes: dict[str, int]


def open_models(shape: ModelShape, folder: Path, threads: int = 0) -> Models:
    """Write the network to a folder, and open it on all runtimes; 0 threads takes all cores."""
    checkpoint = make_checkpoint(shape, folder)
    files = {FP32: write_onnx(checkpoint, folder), INT8: write_onnx(checkpoint, folder, "int8")}
    sessions = {
        PACKED: open_network(checkpoint, "torch packed", threads),
        UNPACKED: open_network(checkpoint, "torch", threads),
    }
    sessions |= {name: open_network(path, "onnxruntime", threads) for name, path in files.items()}
    return Models(sessions, {name: path.stat().st_size for name, path in files.items()})


def measure(sizes: Sizes, quick: bool = False) -> Result:
    """Compare the runtimes, then measure the growth of the cost of the two artifacts.

    Args:
        sizes: sizes of the run.
        quick: True measures the machine's rates at the sizes of a test.
    """
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as folder:
        models = open_models(sizes.shape, Path(folder))
        probes = machine_probes(quick)
        cases: dict[str, Callable[[], object]] = {}
        for batch in sizes.batches:
            for name, session in models.sessions.items():
                cases[f"{name} x {batch}"] = network_run(session, batch, sizes.seconds)
        took = take_turns_with(probes, cases, sizes.rounds, progress)
        growth = measure_growth(models, sizes)
    goals = speed_goals(sizes, probes, took)
    percent = 100 * models.sizes[INT8] / models.sizes[FP32]
    goals.append(at_most("int8 file against fp32's", SIZE_GOAL, percent, "%"))
    return Result(
        name="latency",
        title=f"Latency: {shape_name(sizes.shape)}, random weights",
        quick=quick,
        goals=goals + growth_goals(growth),
        tables=[comparison_table(sizes, took), *growth_tables(growth)],
        plots=growth_plots(growth),
        notes=[f"Files: {', '.join(f'{n} {s / 1e6:.1f} MB' for n, s in models.sizes.items())}."],
        data={"seconds": took, "growth": growth, "file_bytes": models.sizes},
    )


def speed_goals(
    sizes: Sizes, probes: Mapping[str, Probe], took: Mapping[str, Sequence[float]]
) -> list[Goal]:
    """Make the goals for the speed of each artifact relative to packed torch."""
    small, large = sizes.batches
    wanted = {(FP32, small): 1.1, (FP32, large): 2.2, (INT8, small): 3.0, (INT8, large): 6.0}
    goals = []
    for (name, batch), least in wanted.items():
        packed = took[f"{PACKED} x {batch}"]
        found = ratio(packed, took[f"{name} x {batch}"])
        stages = stages_of_speech(sizes.shape, batch, sizes.seconds, name.split()[-1])
        floor = ratio(packed, floors(probes, took, stages))
        goals.append(
            Goal(
                f"{name} against packed torch, batch {batch} x {sizes.seconds:g} s",
                least,
                found.median,
                floor=floor.median,
                detail=found.spread,
            )
        )
    return goals


def comparison_table(sizes: Sizes, took: Mapping[str, Sequence[float]]) -> Table:
    """Make a table of percentiles, real-time factors, and ratios to packed torch."""
    rows = []
    for batch in sizes.batches:
        packed = took[f"{PACKED} x {batch}"]
        for name in (PACKED, UNPACKED, FP32, INT8):
            seconds = took[f"{name} x {batch}"]
            found = latency(seconds)
            rows.append(
                [
                    f"{name}, batch {batch}",
                    f"{found.p50:.3f}",
                    f"{found.p95:.3f}",
                    f"{found.p50 / (batch * sizes.seconds):.4f}",
                    str(ratio(packed, seconds)),
                ]
            )
    columns = ["", "p50 (s)", "p95 (s)", "s per s of audio", "against packed torch"]
    return Table(f"{sizes.seconds:g} s of audio each", columns, rows)


def measure_growth(models: Models, sizes: Sizes) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Measure the time of a run by `duration` (one utterance) and by `batch`, for each artifact.

    The result is the minimum of two rounds, because disturbances only add time, and the first run
    of a size also allocates memory (600 s in int8: 22.9 s, then 19.1 s; two cores, AMD Zen 4).
    """
    growth: dict[str, dict[str, list[tuple[float, float]]]] = {"duration": {}, "batch": {}}
    for name in (FP32, INT8):
        session = models.sessions[name]
        plans = {
            "duration": [(1, seconds) for seconds in sizes.durations],
            "batch": [(batch, sizes.seconds) for batch in sizes.growing],
        }
        for axis, plan in plans.items():
            cases = {
                f"{name}, {batch} x {seconds:g} s": network_run(session, batch, seconds)
                for batch, seconds in plan
            }
            took = take_turns(cases, sizes.growth_rounds, warm_up=0, progress=progress)
            where = sizes.durations if axis == "duration" else sizes.growing
            growth[axis][name] = [
                (float(x), min(seconds)) for x, seconds in zip(where, took.values(), strict=True)
            ]
    return growth


def growth_goals(growth: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> list[Goal]:
    """Make the goals for linear growth: the cost of a second of audio must not grow."""
    goals = []
    for axis, series in growth.items():
        for name, points in series.items():
            if axis == "duration":  # the shortest run mostly shows the fixed cost of a run
                points = points[1:]
            cost = [seconds / x for x, seconds in points]
            worst = max(cost[i] / min(cost[:i]) for i in range(1, len(cost)))
            goals.append(
                at_most(
                    f"{name}: cost of an {'utterance' if axis == 'batch' else 'audio second'} "
                    f"over {axis} {points[0][0]:g} to {points[-1][0]:g}",
                    GROWTH_GOAL,
                    worst,
                )
            )
    return goals


def growth_tables(growth: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> list[Table]:
    """Make tables of seconds, and seconds per unit."""
    tables = []
    for axis, unit in (("duration", "s of audio"), ("batch", "utterance")):
        names = list(growth[axis])
        rows = [
            [
                f"{growth[axis][names[0]][i][0]:g}",
                *(
                    f"{points[i][1]:.3f} ({points[i][1] / points[i][0]:.4f})"
                    for points in growth[axis].values()
                ),
            ]
            for i in range(len(growth[axis][names[0]]))
        ]
        title = f"Seconds by {axis} (and per {unit})"
        tables.append(Table(title, [axis, *names], rows))
    return tables


def growth_plots(
    growth: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
) -> list[Plot]:
    """Make plots with logarithmic axes, in which linear growth is a straight line of slope one."""
    labels = {"duration": "seconds of audio", "batch": "utterances in a batch"}
    return [
        Plot(
            file=f"growth-{axis}.png",
            title=f"Cost over {axis}",
            x_label=labels[axis],
            y_label="seconds",
            series={name: list(points) for name, points in series.items()},
            log=True,
        )
        for axis, series in growth.items()
    ]


def main() -> None:
    """Measure, and print or write the result."""
    options: argparse.Namespace = arguments(__doc__ or "").parse_args()
    deliver(measure(QUICK if options.quick else FULL, options.quick), options)


if __name__ == "__main__":
    main()
