"""The guard of speed: too slow fails, within the margin passes, another machine is told apart."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from ds2deploy.bench.machine import describe_machine

PORTABLE = "int8 file, times smaller"
COMMITTED = {PORTABLE: 3.8, "training step against packed": 3.0}
RUNS = [COMMITTED | {"training step against packed": value} for value in (2.9, 3.0, 3.1, 3.0, 3.0)]


@pytest.fixture
def check(benchmark_module) -> ModuleType:
    return benchmark_module("check")


@pytest.fixture
def ratios(check: ModuleType, tmp_path: Path) -> Path:
    path = tmp_path / "ratios.json"
    check.write_guards(path, describe_machine(), check.calibrate(RUNS))
    return path


def answers(monkeypatch: pytest.MonkeyPatch, check: ModuleType, *found: dict[str, float]) -> list:
    """Each measurement gives the next of these; what was asked for is noted."""
    asked: list[bool] = []
    given = iter(found)

    def measure(_: Any, portable: bool = False) -> dict[str, float]:
        asked.append(portable)
        return next(given)

    monkeypatch.setattr(check, "measure_ratios", measure)
    return asked


def test_the_margin_is_what_the_runs_justify(check: ModuleType):
    """By what is below their median, but never less than a tenth."""
    guards = check.calibrate(RUNS)
    step = guards["training step against packed"]
    assert step.ratio == 3.0
    assert step.margin == pytest.approx(
        7.173 * np.std([2.9, 3, 3.1, 3, 3], ddof=1) * 1.2**0.5, 1e-3
    )
    lifted = check.calibrate([{"a": value} for value in (2.9, 3.0, 9.0, 3.0, 3.0)])["a"]
    assert (lifted.ratio, lifted.margin) == (step.ratio, step.margin)
    assert guards["int8 file, times smaller"].margin == pytest.approx(0.38)


def test_one_in_a_thousand(check: ModuleType):
    """Runs of a bell curve, five to calibrate and two to check: next to no false alarm."""
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(4000):
        *runs, last, again = random.normal(3.0, 0.5, 7)
        guards = check.calibrate([{"a": value} for value in runs])
        alarms += bool(check.too_low({"a": max(last, again)}, guards))
    assert 0 < alarms <= 12


def test_within_the_margin(check, ratios, monkeypatch, capsys):
    asked = answers(monkeypatch, check, COMMITTED | {"training step against packed": 2.6})
    assert check.main(["--ratios", str(ratios)]) == 0
    assert asked == [False]
    printed = capsys.readouterr().out
    assert "| training step against packed | 2.60 | 3.00 | 2.44 | ok |" in printed


def test_too_low_twice_fails(check, ratios, monkeypatch, capsys):
    slow = COMMITTED | {"training step against packed": 2.3}
    asked = answers(monkeypatch, check, slow, slow)
    assert check.main(["--ratios", str(ratios)]) == 1
    assert asked == [False, False]
    said = capsys.readouterr()
    assert "| training step against packed | 2.30 | 3.00 | 2.44 | TOO LOW |" in said.out
    assert "slower than committed: training step against packed" in said.err


def test_too_low_once_is_measured_again(check, ratios, monkeypatch):
    slow = COMMITTED | {"training step against packed": 2.3}
    answers(monkeypatch, check, slow, COMMITTED)
    assert check.main(["--ratios", str(ratios)]) == 0


def test_another_machine(check, ratios, monkeypatch, capsys):
    """Only what every machine has alike is measured, and a slow ratio is no alarm."""
    other = msgspec.structs.replace(describe_machine(), instructions=("amx_int8",), cores=64)
    monkeypatch.setattr(check, "describe_machine", lambda: other)
    asked = answers(monkeypatch, check, {"int8 file, times smaller": 3.8})
    assert check.main(["--ratios", str(ratios)]) == 0
    assert asked == [True]
    printed = capsys.readouterr().out
    assert "No ratios are committed for this kind of machine (amx_int8, 64 cores" in printed
    assert "training step" not in printed
    answers(monkeypatch, check, *[{"int8 file, times smaller": 2.0}] * 2)
    assert check.main(["--ratios", str(ratios)]) == 1


def test_sets_stand_beside_each_other(check, ratios):
    other = msgspec.structs.replace(describe_machine(), cores=64)
    check.write_guards(ratios, other, check.calibrate(RUNS))
    kinds = list(json.loads(ratios.read_bytes()))
    assert len(kinds) == 2
    assert kinds[1].endswith("64 cores")


def test_without_committed_ratios_the_check_fails(check, tmp_path, capsys):
    assert check.main(["--ratios", str(tmp_path / "none.json")]) == 2
    assert "--calibrate 5" in capsys.readouterr().err


def test_committed_ratios_are_those_that_are_measured(check):
    """A set that was calibrated before a ratio was new lacks it, and no set has a name of its own.

    None has a margin so wide that it guards nothing.
    """
    sets = check.read_guards(check.RATIOS)
    if not sets:
        pytest.skip("no ratios are committed: python benchmarks/check.py --calibrate 5")
    names = max((found.ratios.keys() for found in sets.values()), key=len)
    for found in sets.values():
        assert PORTABLE in found.ratios
        assert found.ratios.keys() <= names
        for name, guard in found.ratios.items():
            assert 0 < guard.margin < guard.ratio, name
            assert len(guard.runs) >= 5


@pytest.mark.slow
def test_it_really_measures(check, tmp_path, capsys):
    """Calibrated by three runs at the sizes of a test, and compared."""
    path = tmp_path / "ratios.json"
    measured = check.measure_ratios(check.QUICK)
    for committed in check.read_guards(check.RATIOS).values():
        assert measured.keys() >= committed.ratios.keys()
    assert len(measured) == 14
    assert all(value > 0 for value in measured.values())
    assert measured[PORTABLE] > 1
    check.write_guards(path, describe_machine(), check.calibrate([measured, measured]))
    assert (
        check.read_guards(path)[check.kind_of(describe_machine())].ratios.keys() == measured.keys()
    )
    assert check.measure_ratios(check.QUICK, portable=True).keys() == {PORTABLE}


@pytest.mark.parametrize(
    ("measured", "floor", "status", "shown"),
    [
        (2.5, None, "met", ""),
        (1.5, None, "not met", ""),
        (1.5, 1.8, "beyond the floor of this machine", "1.8x"),
        (1.5, 2.4, "not met", "2.4x"),
        (1.5, 1.2, "not met", "exceeded"),  # it is no floor
        (None, 1.2, "not measured", "1.2x"),
    ],
)
def test_a_goal_and_the_machines_floor(
    measured: float | None, floor: float | None, status: str, shown: str, benchmark_module
):
    goal = benchmark_module("report").Goal("speed", 2.0, measured, floor=floor)
    assert goal.status == status
    assert goal.row()[3] == shown
