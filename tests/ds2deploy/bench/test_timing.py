"""Turns alternate, and a slow moment hits both sides of a ratio."""

from __future__ import annotations

import pytest

from ds2deploy.bench.timing import latency, ratio, take_turns


class Clock:
    """Stands still but for what cases take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_every_case_runs_once_in_each_round_and_the_order_turns():
    ran: list[str] = []
    cases = {name: lambda name=name: ran.append(name) for name in "abc"}
    seconds = take_turns(cases, rounds=3, warm_up=1)
    assert "".join(ran) == "abcbcacababc"
    assert {name: len(runs) for name, runs in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_warm_up_is_not_counted(clock: Clock):
    costs = iter([100.0, 50.0, 1.0, 2.0])

    def case() -> None:
        clock.now += next(costs)

    assert take_turns({"case": case}, 2, warm_up=2, clock=clock) == {"case": [1.0, 2.0]}


def test_progress_names_case_and_round():
    said: list[str] = []
    take_turns({"a": lambda: None}, rounds=2, warm_up=1, progress=said.append)
    assert said == ["a, warm-up", "a, round 1 of 2", "a, round 2 of 2"]
    said.clear()
    take_turns({"a": lambda: None}, rounds=1, warm_up=2, progress=said.append)
    assert said == ["a, warm-up 1 of 2", "a, warm-up 2 of 2", "a, round 1 of 1"]


def test_a_noisy_machine_does_not_move_the_ratio(clock: Clock):
    """Half as long in every round, while the machine gets ten times slower and faster again."""
    slow_by = {"now": 1.0}
    noise = iter([1.0, 10.0, 3.0, 7.0, 1.0, 2.0])

    def case(cost: float) -> None:
        clock.now += cost * slow_by["now"]

    def first() -> None:
        slow_by["now"] = next(noise)

    seconds = take_turns(
        {"noise": first, "reference": lambda: case(2.0), "fast": lambda: case(1.0)},
        rounds=6,
        warm_up=0,
        clock=clock,
    )
    # The order turns, so that in some rounds the noise comes between the two.
    pairs = [ref / fast for ref, fast in zip(seconds["reference"], seconds["fast"], strict=True)]
    assert pairs.count(2.0) == 4
    assert ratio(seconds["reference"], seconds["fast"]).median == 2.0


def test_a_ratio_pairs_by_round():
    result = ratio([2.0, 40.0, 6.0, 80.0], [1.0, 10.0, 6.0, 10.0])
    assert result.median == pytest.approx(3.0)  # of 2, 4, 1, 8; the medians' ratio is 2.88
    assert (result.low, result.high) == (1.75, 5.0)
    assert str(result) == "3.00x (1.75 to 5.00)"


def test_percentiles():
    result = latency([float(value) for value in range(100, -1, -1)])
    assert (result.p50, result.p95, result.p99, result.runs) == (50.0, 95.0, 99.0, 101)
