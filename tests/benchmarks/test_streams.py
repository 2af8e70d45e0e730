"""The benchmark of many streams runs, and what it prints is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "streams.py"


def test_a_few_streams(streaming_onnx: Path):
    command = [sys.executable, str(SCRIPT), str(streaming_onnx), "--streams", "3"]
    done = subprocess.run(
        [*command, "--seconds", "4", "--json"], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["same_text"] == result["streams"] == 3
    assert result["block_ms"] == 320
    tick = result["tick_ms"]
    assert 0 < tick["p50"] <= tick["p95"] <= tick["p99"]
    assert result["ticks"] >= 3
    assert result["streams_per_core"] == round(result["full_speed"] / result["threads"], 1) > 0
    printed = subprocess.run(
        [*command, "--seconds", "4"], capture_output=True, text=True, check=True
    ).stdout
    assert "same text as without other streams: 3 of 3" in printed
    assert "streams per core" in printed
