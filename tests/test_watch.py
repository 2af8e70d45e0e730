"""The installation in a log: what pip is at, every few seconds, and its exit code."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WATCH = Path(__file__).resolve().parents[1] / ".ci" / "watch.py"
PIP = """
import sys, time
from pathlib import Path
print("Downloading torch (191.1 MB)", flush=True)
print("Progress 70000000 of 191100000", flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
sys.exit(3)
"""


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    function: Callable[[list[str]], int] = runpy.run_path(str(WATCH))["watch"]
    monkeypatch.setitem(function.__globals__, "EVERY_S", 0.01)
    return function


def test_the_last_line_is_shown_while_a_command_runs(
    watch: Callable[[list[str]], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The command ends when its progress has been shown."""
    shown: list[str] = []

    def show(line: str, flush: bool) -> None:
        shown.append(line)
        if "70 of 191 MB" in line:
            (tmp_path / "go").touch()

    monkeypatch.setitem(watch.__globals__, "print", show)
    assert watch([sys.executable, "-c", PIP, str(tmp_path / "go")]) == 3
    assert re.fullmatch(r" +\d+ s: Downloading torch \(191.1 MB\) \(70 of 191 MB\)", shown[-1])


@pytest.mark.parametrize(("code", "shown"), [(0, ""), (1, "no matching distribution\n")])
def test_a_short_command_is_silent_unless_it_fails(
    code: int,
    shown: str,
    watch: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(watch.__globals__, "EVERY_S", 600.0)
    script = "import sys; print('Collecting numpy'); "
    script += f"print('no matching distribution', file=sys.stderr); sys.exit({code})"
    assert watch([sys.executable, "-c", script]) == code
    assert capsys.readouterr() == ("", shown)
