"""Refused clients come again one after the other."""

from __future__ import annotations

import itertools

from ds2deploy.serve.retries import LEAST_S, MOST_S, PER_S, Retries


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


def test_each_client_has_a_moment_of_its_own() -> None:
    clock = Clock()
    retries = Retries(clock)
    moments = []
    for _ in range(20):
        moments.append(clock.now + retries.after_s())
        clock.now += 0.01
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert moments[0] == 1000.0 + LEAST_S
    assert all(abs(gap - 1 / PER_S) < 1e-6 for gap in gaps)


def test_nobody_waits_longer_than_the_longest_time() -> None:
    retries = Retries(Clock())
    assert max(retries.after_s() for _ in range(10_000)) == MOST_S


def test_after_the_rush_a_client_waits_no_longer_than_at_first() -> None:
    clock = Clock()
    retries = Retries(clock)
    for _ in range(100):
        retries.after_s()
    clock.now += MOST_S
    assert retries.after_s() == LEAST_S
