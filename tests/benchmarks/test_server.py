"""The benchmark of the server: its arithmetic, and a run at the sizes of a test."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def server(benchmark_module: Any) -> ModuleType:
    return benchmark_module("server")


def test_percentiles_of_a_histogram_are_of_what_was_added(server: ModuleType) -> None:
    def metrics(*counts: int) -> dict[str, float]:
        bounds = ("0.1", "0.2", "+Inf")
        return {
            f'm_bucket{{le="{bound}",model="a"}}': float(count)
            for bound, count in zip(bounds, counts, strict=True)
        }

    before = metrics(50, 50, 50)
    assert server.bucket_percentiles(before, before, "m") == {}
    found = server.bucket_percentiles(before, metrics(50, 150, 150), "m")
    assert found == {"p50": 150.0, "p95": 195.0, "p99": 199.0}
    found = server.bucket_percentiles(before, metrics(100, 100, 150), "m")
    assert found == {"p50": 100.0, "p95": 200.0, "p99": 200.0}  # at least: the bound is not known


def test_reasons_for_failure(server: ModuleType) -> None:
    good = {"final_s": [0.1] * 100, "problems": [], "late_s": 0.0}
    assert server.failure(good) == ""
    assert "overloaded" in server.failure(good | {"problems": ["overloaded"]})
    assert "client" in server.failure(good | {"late_s": 1.0})
    assert "2 s" in server.failure(good | {"final_s": [0.1] * 90 + [5.0] * 10})


@pytest.mark.thorough
def test_a_quick_run(run_script: Any) -> None:
    result = run_script("server.py", "--quick", "--streams", "1,2", "--seconds", "1")
    runs = result["data"]["runs"]
    assert [run["streams"] for run in runs] == [1, 2] * 4
    assert [table["title"].split(", ")[2:] for table in result["tables"]] == [
        ["greedy", "Batch Dispatch"], ["greedy", "every 320 ms"],
        ["beam 16", "Batch Dispatch"], ["beam 16", "every 320 ms"],
    ]  # fmt: skip
    for run in runs:
        assert len(run["final_s"]) == run["streams"]
        assert run["audio_s"] >= run["streams"]
        assert 0 < run["final_ms"]["p50"] <= run["final_ms"]["p99"]
        assert 0 < run["lateness_ms"]["p50"] <= run["lateness_ms"]["p99"]
        assert run["memory_mb"] > 30


@pytest.mark.thorough
def test_a_quick_run_of_overload_and_soak(run_script: Any) -> None:
    result = run_script("server_endurance.py", "--quick", "--streams", "2")
    assert [goal["name"].split(",")[0] for goal in result["goals"]] != []
    runs = result["data"]["overload"]["runs"]
    assert all(run["refused"] == 0 for run in runs["1"])
    assert all(run["refused"] > 0 for run in runs["3"])
    assert all(run["problems"] == [] for found in runs.values() for run in found)
    soak = result["data"]["soak"]
    assert soak["streams"] == 1
    assert soak["problems"] == []
    assert len(soak["samples"]) > 4
    assert {goal["name"]: goal["measured"] for goal in result["goals"]}[
        "file descriptors left"
    ] == 0
