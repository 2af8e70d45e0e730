"""Conditions of recordings: each change does what its name says."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

RATE = 16_000


@pytest.fixture
def conditions(benchmark_module: Any) -> ModuleType:
    return benchmark_module("conditions")


@pytest.fixture
def changed(conditions: ModuleType) -> dict[str, Any]:
    """A tone of a second, changed by every condition."""
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    one = conditions.Utterance(tone, RATE, "ONE")
    return {
        name: change(one, np.random.default_rng(1))
        for name, change in conditions.conditions().items()
    }


def test_each_condition_changes_what_it_names(changed: dict[str, Any]) -> None:
    tone = changed["clean"].samples
    assert {one.text for one in changed.values()} == {"ONE"}
    for seconds in (0.1, 1, 2):
        found = changed[f"silence of {seconds:g} s around"].samples
        count = int(seconds * RATE)
        assert np.array_equal(found[count:-count], tone)
        assert np.abs(found[:count]).max() < 1e-3
    for snr in (20, 10):
        added = changed[f"noise, {snr} dB"].samples - tone
        assert 10 * np.log10(np.mean(tone**2) / np.mean(added**2)) == pytest.approx(snr, abs=0.1)
    assert changed["8 kHz"].rate == 8000
    assert len(changed["8 kHz"].samples) == RATE // 2
    assert changed["gain of -30 dB"].samples == pytest.approx(tone * 10**-1.5)
    rooms = [changed[f"room, RT60 {rt60} s"].samples for rt60 in (0.3, 0.6)]
    assert all(np.abs(found - tone).max() > 0.01 for found in rooms)


def test_rates_are_of_all_words(conditions: ModuleType) -> None:
    rate, low, high = conditions.rate_of([("ONE TWO", "ONE TWO"), ("ONE TWO", "ONE")])
    assert rate == pytest.approx(25.0)
    assert low <= rate <= high


@pytest.mark.slow
def test_a_quick_run(
    run_script: Any, streaming_checkpoint: Path, spoken_digits: Path, tmp_path: Path
) -> None:
    names = ("3_jackson_0", "1_jackson_1", "4_jackson_2")
    lines = []
    for name, text in zip(names, ("THREE", "ONE", "FOUR"), strict=True):
        path = spoken_digits / f"{name}.wav"
        info = soundfile.info(path)
        duration = info.frames / info.samplerate
        lines.append(json.dumps({
            "id": name, "start": 0, "duration": duration, "channel": 0, "type": "MonoCut",
            "supervisions": [{"id": name, "recording_id": name, "start": 0, "duration": duration,
                              "channel": 0, "text": text}],
            "recording": {"id": name, "sampling_rate": info.samplerate, "duration": duration,
                          "num_samples": info.frames, "channel_ids": [0],
                          "sources": [{"type": "file", "channels": [0], "source": str(path)}]},
        }))  # fmt: skip
    manifest = tmp_path / "digits.jsonl"
    manifest.write_text("\n".join(lines))
    result = run_script(
        "conditions.py", "--quick", "--drift-minutes", "0.1", str(streaming_checkpoint),
        str(manifest),
    )  # fmt: skip
    (name,) = [key for key in result["data"] if key != "false_words"]
    assert set(result["data"][name]["wer"]) >= {"clean", "8 kHz", "gain of -30 dB"}
    assert 0 <= result["data"][name]["wer"]["clean"] < 100
    assert set(result["data"]["false_words"]) >= {"digital silence", "noise", "music"}
    assert [row[0] for row in result["data"][name]["drift"]] == ["one stream", "segments at pauses"]
