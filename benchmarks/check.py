"""Check of the project's speed: measured ratios are compared with committed ones.

    python benchmarks/check.py                  # exit 1 if a ratio is worse than its margin allows
    python benchmarks/check.py --calibrate 5    # measure 5 times, and write the ratios

Only ratios are compared, never seconds. Both sides of a ratio run in turns in the same process, so
that a slow or busy machine slows both. Each side has a single thread, because threads that wait for
each other are slowed unpredictably on a busy machine. Ratios still depend on the processor, so
there is a set of ratios for each combination of instructions and cores. On another machine, only
ratios that do not depend on it are compared.

**The margin** below the median of n runs is that of a prediction interval, t * s * sqrt(1 + 1/n),
where t is from Student's distribution. s is the standard deviation of the lower half of the runs
and its mirror image: load that slows only the reference raises a ratio, and says nothing about low
values. A ratio that is too low is measured a second time. With five normally distributed runs, both
measurements are too low by chance once or twice in a thousand times. A margin is never smaller than
`LEAST_MARGIN` of the ratio, because consecutive runs differ less than runs on different days.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from guarded import FULL, QUICK, Sizes, measure_ratios
from report import RESULTS, markdown_table, progress
from scipy.stats import t as student

from ds2deploy.bench.machine import Machine, describe_machine
from ds2deploy.runtimes.files import whole_file

RATIOS = RESULTS / "ratios.json"

CONFIDENCE = 0.999
"""Quantile of Student's distribution for the margins."""

RUNS = range(2, 11)
"""Allowed numbers of runs for calibration."""

LEAST_MARGIN = 0.1
"""Minimum margin, as a fraction of the ratio."""

WIDE_MARGIN = 0.5
"""Margin, as a fraction of the ratio, above which calibration warns: it hides most regressions."""


class Guard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Committed ratio; higher is better.

    Attributes:
        ratio: median of the calibration runs.
        margin: maximum amount by which a run may be below the median.
        runs: ratios of the calibration runs.
    """

    ratio: float
    margin: float
    runs: list[float]

    @property
    def least(self) -> float:
        """Minimum ratio that passes."""
        return self.ratio - self.margin


class GuardSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Committed ratios of a kind of machine."""

    machine: Machine
    ratios: dict[str, Guard]


def kind_of(machine: Machine) -> str:
    """Name the kind of a machine, such as `avx2, 2 cores`."""
    return f"{'+'.join(machine.instructions) or machine.system}, {machine.cores} cores"


def calibrate(runs: Sequence[Mapping[str, float]]) -> dict[str, Guard]:
    """Compute ratios and margins from repeated runs.

    Args:
        runs: 2 to 10 results of `measure_ratios`.
    """
    guards = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        middle, count = statistics.median(values), len(values)
        below = sum(min(0, value - middle) ** 2 for value in values)
        deviation = math.sqrt(2 * below / (count - 1))
        quantile = float(student.ppf(CONFIDENCE, count - 1))
        margin = max(quantile * deviation * math.sqrt(1 + 1 / count), LEAST_MARGIN * middle)
        guards[name] = Guard(round(middle, 3), round(margin, 3), [round(v, 3) for v in values])
    return guards


def too_low(measured: Mapping[str, float], guards: Mapping[str, Guard]) -> list[str]:
    """List the names of the ratios that are worse than their margins allow."""
    return [name for name, value in measured.items() if value < guards[name].least]


def read_guards(path: Path) -> dict[str, GuardSet]:
    """Read the committed ratios by kind of machine; empty if there is no file."""
    if not path.is_file():
        return {}
    return msgspec.json.decode(path.read_bytes(), type=dict[str, GuardSet])


def write_guards(path: Path, machine: Machine, guards: dict[str, Guard]) -> None:
    """Add the ratios of a kind of machine, or replace them."""
    sets = read_guards(path) | {kind_of(machine): GuardSet(machine, guards)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(sets), indent=1) + b"\n")


def table(measured: Mapping[str, float], guards: Mapping[str, Guard]) -> str:
    """Format a table of measured and committed ratios."""
    bad = too_low(measured, guards)
    rows = [
        [
            name,
            f"{value:.2f}",
            f"{guards[name].ratio:.2f}",
            f"{guards[name].least:.2f}",
            "TOO LOW" if name in bad else "ok",
        ]
        for name, value in measured.items()
    ]
    return markdown_table(["ratio", "measured", "committed", "at least", ""], rows)


def check(sets: Mapping[str, GuardSet], machine: Machine, sizes: Sizes) -> int:
    """Measure, compare and print; return the exit status."""
    if not sets:
        print(
            "no committed ratios; measure them: python benchmarks/check.py --calibrate 5",
            file=sys.stderr,
        )
        return 2
    kind = kind_of(machine)
    known = kind in sets
    if not known:
        print(
            f"No ratios are committed for this kind of machine ({kind}; committed: "
            f"{'; '.join(sets)}). Only ratios that do not depend on the machine are compared. To "
            "add this kind: python benchmarks/check.py --calibrate 5\n"
        )
    guards = (sets[kind] if known else next(iter(sets.values()))).ratios
    measured = comparable(measure_ratios(sizes, portable=not known), guards)
    if too_low(measured, guards):
        progress(f"below the limit, measuring again: {', '.join(too_low(measured, guards))}")
        again = comparable(measure_ratios(sizes, portable=not known), guards)
        measured = {name: max(value, again[name]) for name, value in measured.items()}
    print(table(measured, guards))
    if bad := too_low(measured, guards):
        print(f"\nslower than committed: {', '.join(bad)}", file=sys.stderr)
        return 1
    return 0


def comparable(measured: Mapping[str, float], guards: Mapping[str, Guard]) -> dict[str, float]:
    """Return the ratios that have committed values, and report the others."""
    for name in measured.keys() - guards.keys():
        progress(
            f"{name}: has no committed ratio; add it: python benchmarks/check.py --calibrate 5"
        )
    return {name: value for name, value in measured.items() if name in guards}


def main(words: Sequence[str] | None = None) -> int:
    """Compare, or calibrate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calibrate", type=int, metavar="RUNS", choices=RUNS)
    parser.add_argument("--ratios", type=Path, default=RATIOS, help="file of the committed ratios")
    parser.add_argument("--quick", action="store_true", help="use small sizes, as the tests do")
    options = parser.parse_args(words)
    sizes, machine = QUICK if options.quick else FULL, describe_machine()
    if options.calibrate is None:
        return check(read_guards(options.ratios), machine, sizes)
    runs = []
    for number in range(options.calibrate):
        progress(f"run {number + 1} of {options.calibrate}")
        runs.append(measure_ratios(sizes))
    guards = calibrate(runs)
    write_guards(options.ratios, machine, guards)
    print(f"{options.ratios}: {kind_of(machine)}\n\n{table(runs[-1], guards)}")
    for name, guard in guards.items():
        if guard.margin > WIDE_MARGIN * guard.ratio:
            print(
                f"{name}: the runs differ widely; calibrate again on an idle machine",
                file=sys.stderr,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
