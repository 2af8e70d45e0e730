"""A plugin of pytest for an environment with the wheel and its `cpu` extra, without what trains.

Of the runtime's tests some make their models with PyTorch: where one stops because a package of
another extra is missing it is skipped. Anything else that is wrong fails as ever.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

OTHER = {
    "torch", "lightning", "onnx", "lhotse", "jiwer", "scipy", "openvino", "polygraphy", "ray",
    "cuda-bindings", "tritonclient", "espeakng_loader", "ml_dtypes", "fastapi", "matplotlib",
    "tensorrt_rtx_bindings",
}  # fmt: skip
"""Packages of other extras."""

LEAST = 600
"""Tests that must pass, so that skips hide no failure."""

passed = 0


def _absent(error: BaseException | None) -> str:
    """Name the package of another extra whose absence an error reports; empty for other errors."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            name = (error.name or "").split(".")[0]
            return name if name in OTHER and importlib.util.find_spec(name) is None else ""
        if "pip install 'ds2deploy[" in str(error):
            return "an extra"
        error = error.__cause__ or error.__context__
    return ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turn an error of a missing package into a skip."""
    report = yield
    global passed
    passed += report.passed and report.when == "call"
    if report.failed and call.excinfo and (name := _absent(call.excinfo.value)):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: needs {name}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Turn it into a skip where a file of tests is imported, too."""
    report = yield
    if report.failed and (error := getattr(report, "call", None)) and error.excinfo:
        name = _absent(error.excinfo.value)
        if name:
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 0, f"Skipped: needs {name}")
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail where too few tests passed."""
    if passed < LEAST and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nonly {passed} tests passed; expected {LEAST} or more")
