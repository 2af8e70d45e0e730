"""Limits of the machine, and the share of them that ONNX Runtime reaches.

    python benchmarks/limits.py [--quick] [--json] [--out DIR]

The script measures in turns, in one run: products of square matrices in each precision, reading of
working sets of different sizes, and 5 x BiLSTM-1024 in ONNX Runtime. The network's operations and
bytes (`counting.py`) give a lower bound of the time of any implementation, and thus the share that
is reached. A second table has the products at the network's own shapes; if those are slower than
square ones, the library limits the network, and not the machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from counting import GATES, Rates, Stage, least_time, least_times, stages_of_speech, what_binds
from latency import FP32, INT8
from models import LARGE, TINY, make_checkpoint, network_run, open_network, shape_name, write_onnx
from probes import (
    MIB,
    Probe,
    bf16_probe,
    floors,
    machine_probes,
    multiply_probes,
    rates,
    read_probe,
    run_probes,
    take_turns_with,
)
from report import Goal, Plot, Result, Table, arguments, deliver, progress

from ds2deploy.bench.timing import Ratio, ratio
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.geometry import conv_features, output_length
from ds2deploy.runtimes.session import usable_cores

BATCHES = (1, 8)
SHARE_GOAL = 50.0


def measure(shape: ModelShape, seconds: float, rounds: int, quick: bool = False) -> Result:
    """Measure the machine's rates, the network's least time, and the share of its speed reached.

    Args:
        shape: shape of the network.
        seconds: duration of each utterance, in seconds.
        rounds: number of interleaved rounds.
        quick: True measures the rates at the sizes of a test.
    """
    features = FeatureConfig()
    probes = machine_probes(quick) | {"bf16 torch": bf16_probe(quick)}
    frames = features.frames(int(seconds * features.sample_rate))
    cases: dict[str, Callable[[], object]] = {}
    stages: dict[str, list[Stage]] = {}
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as folder:
        checkpoint = make_checkpoint(shape, Path(folder))
        for name, precision in ((FP32, "fp32"), (INT8, "int8")):
            path = write_onnx(checkpoint, Path(folder), precision)  # type: ignore[arg-type]
            session = open_network(path, "onnxruntime")
            for batch in BATCHES:
                case = f"{name}, batch {batch}"
                cases[case] = network_run(session, batch, seconds)
                stages[case] = stages_of_speech(shape, batch, seconds, precision)
        took = take_turns_with(probes, cases, rounds, progress)
    best = rates(probes, took)
    least = {case: floors(probes, took, found) for case, found in stages.items()}
    shares = {case: ratio(least[case], took[case]) for case in stages}
    shapes = measure_shapes(shape, frames, quick)
    bandwidth = measure_bandwidth(quick)
    return Result(
        name="limits",
        title=f"Limits of the machine: {shape_name(shape)}, {seconds:g} s of audio",
        quick=quick,
        goals=share_goals(shares),
        tables=[
            rate_table(probes, took),
            share_table(shares, took, stages, best),
            stage_table(stages, best),
            shape_table(shapes, best),
        ],
        plots=[bandwidth_plot(bandwidth)],
        notes=[f"{case}: the least time is {what_binds(stages[case], best)}." for case in stages],
        data={
            "seconds": took,
            "multiply": dict(best.multiply),
            "read": {str(size): rate for size, rate in best.read.items()},
            "bandwidth": bandwidth,
            "shapes": shapes,
            "operations": {
                case: sum(s.operations for s in found) for case, found in stages.items()
            },
            "least_s": {case: least_time(found, best) for case, found in stages.items()},
            "floors_s": least,
        },
    )


def share_goals(shares: Mapping[str, Ratio]) -> list[Goal]:
    """Make the goal: half of the maximum speed in fp32 at the larger batch."""
    case = f"{FP32}, batch {BATCHES[-1]}"
    return [Goal(f"{case}: share of the floor's speed", SHARE_GOAL, 100 * shares[case].median, "%")]


def rate_table(probes: Mapping[str, Probe], took: Mapping[str, Sequence[float]]) -> Table:
    """Make a table of the best and the median rate of every probe."""
    rows = []
    for name, probe in probes.items():
        seconds = sorted(took[name])
        unit = "GB/s" if probe.kind == "read" else "Gop/s"
        fastest, middle = seconds[0], seconds[len(seconds) // 2]
        rows.append(
            [
                name,
                f"{probe.amount / fastest / 1e9:.1f} {unit}",
                f"{probe.amount / middle / 1e9:.1f} {unit}",
            ]
        )
    title = f"Rates of the machine on {usable_cores()} cores (square products; reading)"
    return Table(title, ["", "best", "median"], rows)


def share_table(
    shares: Mapping[str, Ratio],
    took: Mapping[str, Sequence[float]],
    stages: Mapping[str, Sequence[Stage]],
    best: Rates,
) -> Table:
    """Make a table of measured times, their lower bounds, and the ratios."""
    rows = []
    for case, found in stages.items():
        seconds = sorted(took[case])
        operations = sum(stage.operations for stage in found)
        rows.append(
            [
                case,
                f"{operations / 1e9:.0f}",
                f"{seconds[len(seconds) // 2]:.3f}",
                f"{least_time(found, best):.3f}",
                f"{shares[case].median:.0%} {shares[case].spread}",
            ]
        )
    columns = ["", "Gop", "measured (s)", "least (s)", "share of the floor's speed"]
    return Table("The network against the floor", columns, rows)


def stage_table(stages: Mapping[str, Sequence[Stage]], best: Rates) -> Table:
    """Make a table of the lower bound of every stage, and its limit."""
    cases = list(stages)
    columns = ["stage (least ms, what binds)", *cases]
    found = [least_times(stages[case], best) for case in cases]
    rows = [
        [items[0].stage.name, *(f"{1000 * item.seconds:.1f} {item.binds}" for item in items)]
        for items in zip(*found, strict=True)
    ]
    return Table("Where the least time goes", columns, rows)


def measure_shapes(shape: ModelShape, frames: int, quick: bool) -> dict[str, dict[str, float]]:
    """Measure operations per second at the network's own shapes, by shape and library."""
    rows = output_length(frames)
    units = GATES[shape.rnn] * shape.hidden
    wanted: dict[str, tuple[int, int, int]] = {}
    for batch in BATCHES:
        wanted[f"recurrent step, batch {batch}"] = (batch, shape.hidden, units)
        inputs = conv_features(FeatureConfig().bins)
        wanted[f"input product, batch {batch}"] = (batch * rows, inputs, units)
    found: dict[str, dict[str, float]] = {}
    for name, sides in wanted.items():
        probes = multiply_probes(*sides)
        took = run_probes(probes, 3 if quick else 7)
        title = f"{name}: ({sides[0]}, {sides[1]}) x ({sides[1]}, {sides[2]})"
        found[title] = {n: probe.amount / min(took[n]) for n, probe in probes.items()}
    return found


def shape_table(shapes: Mapping[str, Mapping[str, float]], best: Rates) -> Table:
    """Make a table of the rates at the network's shapes, relative to square products."""
    names = list(next(iter(shapes.values())))
    rows = [
        [
            title,
            *(
                f"{found[n] / 1e9:.1f} ({found[n] / best.multiply[n.split()[0]]:.0%})"
                for n in names
            ),
        ]
        for title, found in shapes.items()
    ]
    title = "Gop/s at the network's own shapes (share of the best square product)"
    return Table(title, ["", *names], rows)


def measure_bandwidth(quick: bool) -> dict[str, list[tuple[float, float]]]:
    """Measure GB/s by the size of the working set in MiB, for one and for all threads."""
    sizes = [1, 16] if quick else [1, 2, 4, 8, 16, 32, 64, 128, 256]
    found: dict[str, list[tuple[float, float]]] = {}
    for threads in sorted({1, usable_cores()}):
        probes = {str(size): read_probe(size * MIB, threads) for size in sizes}
        took = run_probes(probes, 3)
        found[f"{threads} thread{'s' if threads > 1 else ''}"] = [
            (float(size), probe.amount / min(took[size]) / 1e9) for size, probe in probes.items()
        ]
    return found


def bandwidth_plot(bandwidth: Mapping[str, list[tuple[float, float]]]) -> Plot:
    """Make a plot of the reading rate, which drops where the working set exceeds a cache."""
    return Plot(
        file="bandwidth.png",
        title="Reading again and again",
        x_label="MiB",
        y_label="GB/s",
        series=dict(bandwidth),
        log=True,
    )


def main() -> None:
    """Measure, and print or write the result."""
    options = arguments(__doc__ or "").parse_args()
    if options.quick:
        deliver(measure(TINY, 0.2, rounds=2, quick=True), options)
    else:
        deliver(measure(LARGE, 10.0, rounds=4), options)


if __name__ == "__main__":
    main()
