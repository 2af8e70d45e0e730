"""Lateness is measured from the arrival of the audio that completes a block."""

from __future__ import annotations

import pytest

from ds2deploy.serve.arrivals import GRAIN_S, Arrivals


def test_each_block_has_the_time_of_its_last_audio() -> None:
    arrivals = Arrivals(0.32)
    for i in range(1, 11):
        arrivals.add(0.1 * i, now=float(i))
    # 0.32 s came with the fourth piece, 0.64 s with the seventh, 0.96 s with the tenth.
    assert [arrivals.next_block() for _ in range(3)] == [4.0, 7.0, 10.0]
    assert arrivals.next_block() is None


def test_backlog_counts_from_the_arrival_and_not_from_the_last_tick() -> None:
    arrivals = Arrivals(0.5)
    arrivals.add(2.0, now=1.0)
    assert [arrivals.next_block() for _ in range(4)] == [1.0] * 4


def test_end_completes_the_last_block() -> None:
    arrivals = Arrivals(0.5)
    arrivals.add(0.6, now=1.0)
    arrivals.end(now=2.0)
    assert [arrivals.next_block() for _ in range(2)] == [1.0, 2.0]


def test_tiny_messages_are_kept_as_few_marks() -> None:
    arrivals = Arrivals(0.32)
    for i in range(1, 160_001):
        arrivals.add(i / 16_000, now=i / 16_000)
    assert len(arrivals._marks) <= 2 * 10 / GRAIN_S
    for block in range(1, 30):
        assert arrivals.next_block() == pytest.approx(0.32 * block, abs=GRAIN_S)
