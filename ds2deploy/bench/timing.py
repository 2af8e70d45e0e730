"""Fair timing on a noisy machine: cases run in turns, and ratios are computed within a round.

Other processes slow down the case that is measured at that moment. Every case therefore runs once
per round, and cases are compared within a round, so that a slow moment affects both. The order
rotates from round to round, so that no case always follows the same neighbour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

WARM_UP = 1
"""Number of warm-up runs of each case, which allocate memory and start threads."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles of the times of a case, in seconds.

    Attributes:
        p50: median of the runs.
        p95: 95th percentile of the runs.
        p99: 99th percentile of the runs; with fewer than 100 runs, close to the slowest.
        runs: number of measured runs.
    """

    p50: float
    p95: float
    p99: float
    runs: int


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """Speed of a case as a multiple of its reference, round by round.

    Attributes:
        median: median of the rounds; above 1 is faster.
        low: first quartile of the rounds.
        high: third quartile of the rounds.
    """

    median: float
    low: float
    high: float

    @property
    def spread(self) -> str:
        """Middle half of the rounds, such as `(1.90 to 2.10)`."""
        return f"({self.low:.2f} to {self.high:.2f})"

    def __str__(self) -> str:
        return f"{self.median:.2f}x {self.spread}"


def take_turns(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = WARM_UP,
    progress: Callable[[str], None] = lambda message: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Run every case once per round.

    Args:
        cases: functions to measure, by name; each is called without arguments.
        rounds: number of measured rounds, at least 1.
        warm_up: number of rounds before the measured ones.
        progress: function that is called with a description of the current run.
        clock: function that returns the time in seconds.

    Returns:
        Times of the runs in seconds, by name, in the order of the rounds.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            progress(f"{name}, {_round_name(number, warm_up, rounds)}")
            started = clock()
            cases[name]()
            if number >= warm_up:
                seconds[name].append(clock() - started)
    return seconds


def _round_name(number: int, warm_up: int, rounds: int) -> str:
    """Name a round: those of the warm-up are not counted."""
    if number >= warm_up:
        return f"round {number - warm_up + 1} of {rounds}"
    return "warm-up" if warm_up == 1 else f"warm-up {number + 1} of {warm_up}"


def latency(seconds: Sequence[float]) -> Latency:
    """Compute percentiles of the runs of a case."""
    p50, p95, p99 = (float(value) for value in np.percentile(seconds, (50, 95, 99)))
    return Latency(p50=p50, p95=p95, p99=p99, runs=len(seconds))


def ratio(reference: Sequence[float], seconds: Sequence[float]) -> Ratio:
    """Compare the runs of a case with those of the reference, from `take_turns`.

    Args:
        reference: times of the reference in seconds, round by round.
        seconds: times of the case in seconds, in the same rounds.
    """
    pairs = np.asarray(reference, np.float64) / np.asarray(seconds, np.float64)
    low, median, high = (float(value) for value in np.percentile(pairs, (25, 50, 75)))
    return Ratio(median=median, low=low, high=high)
