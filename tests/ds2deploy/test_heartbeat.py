"""Lines of long work in a log: never far apart, and true of the work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ds2deploy import heartbeat as module
from ds2deploy.heartbeat import Heartbeat, heartbeat, status


class Clock:
    """Seconds that pass when a test wants it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(module, "SILENCE_S", 10.0)
    return Clock()


Lines = Callable[[], list[str]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    return lambda: capsys.readouterr().err.splitlines()


def test_steps_that_come_often_are_written_now_and_then(clock: Clock, lines: Lines):
    beating = Heartbeat("exporting", clock=clock)
    for number in range(60):
        clock.now += 1
        beating.tell(f"shape {number}")
    assert lines() == [f"exporting: shape {number}" for number in (9, 19, 29, 39, 49, 59)]


def test_a_single_long_step_is_written_with_its_time(clock: Clock, lines: Lines):
    beating = Heartbeat("exporting", clock=clock)
    beating.tell("folding")
    for _ in range(25):
        clock.now += 1
        beating.beat()
    assert lines() == [f"exporting: folding, for {n} s so far" for n in (10, 20)]
    clock.now += 5
    beating.tell("writing")
    assert lines() == ["exporting: writing"]


def test_work_without_steps_has_its_title_written(clock: Clock, lines: Lines):
    beating = Heartbeat("importing torch", clock=clock)
    clock.now += 12
    beating.beat()
    assert lines() == ["importing torch, for 12 s so far"]


def test_a_line_of_something_else_counts(clock: Clock, lines: Lines):
    beating = Heartbeat("training", clock=clock)
    clock.now += 9
    beating.note_line()
    clock.now += 9
    beating.tell("step 3")
    assert lines() == []
    clock.now += 1
    beating.tell("step 4")
    assert lines() == ["training: step 4"]


def test_days_do_not_fill_the_log(clock: Clock, lines: Lines):
    beating = Heartbeat("training", clock=clock)
    for step in range(3 * 24 * 60):
        clock.now += 60
        beating.tell(f"step {step}")
    assert 120 < len(lines()) < 1000


def test_short_work_is_silent(lines: Lines):
    with status("verifying") as step:
        step("batch 1")
    assert lines() == []


def test_a_process_that_does_not_report_is_silent(
    clock: Clock, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "SILENCE_S", 0.0)
    with heartbeat("training", wanted=False) as beating:
        beating.tell("step 1")
        beating.beat()
    assert lines() == []


def test_a_step_that_never_reports_is_written_by_the_thread(tmp_path: Path):
    """The work waits for the line, and reports nothing itself."""
    code = (
        "import os, sys; from ds2deploy import heartbeat as h; h.SILENCE_S = 0.0\n"
        "with h.heartbeat('installing') as beating: sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("installing, for ")
        process.communicate()
    assert process.returncode == 0
