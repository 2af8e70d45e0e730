"""Behaviour of OpenVINO alone; `test_sessions.py` has the contract of every runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ds2deploy
from ds2deploy.doctor import examine
from ds2deploy.export.parity.speech import speech_features, speech_waveforms
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.features import pad_features, pad_waveforms
from ds2deploy.runtimes.streaming.state import run_in_blocks

pytest.importorskip("openvino", reason="the extra openvino is not installed")

TOLERANCE = 1e-4
"""As for every fp32 artifact; measured 1.2e-5. In bf16, OpenVINO's own choice, it is 1e-2."""


def speech(description: ArtifactDescription, batch: int, frames: int):
    """Speech of several lengths, as features or as samples."""
    config, lengths = description.features, np.linspace(frames, max(1, frames // 3), batch)
    if description.input == "features":
        sounds = speech_features(config, batch, frames)
        cut = [row[:, :n] for row, n in zip(sounds, lengths.astype(int), strict=True)]
        return pad_features(cut)
    waves = speech_waveforms(config, batch, frames)
    return pad_waveforms(
        [wave[: int(n) * config.stride] for wave, n in zip(waves, lengths, strict=True)]
    )


@pytest.mark.parametrize(("batch", "frames", "stagger"), [(1, 200, 0), (3, 300, 2)])
def test_streams_at_different_places_compute_what_each_computes_alone(
    streaming_onnx: Path, batch: int, frames: int, stagger: int
):
    session = ds2deploy.load(streaming_onnx, runtime="openvino").session
    sound, lengths = speech(session.description, batch, frames)
    found, rows = run_in_blocks(session, sound, lengths, stagger)
    reference = ds2deploy.load(streaming_onnx, runtime="onnxruntime").session
    for i, length in enumerate(lengths):
        expected, count = reference.run(sound[i : i + 1, ..., :length], lengths[i : i + 1])
        assert rows[i] == count[0]
        assert np.abs(found[i, : rows[i]] - expected[0, : rows[i]]).max() < TOLERANCE


def test_a_recording_gives_the_same_text(digits_onnx: Path, random: np.random.Generator):
    samples = (0.1 * random.standard_normal(16_000)).astype(np.float32)
    texts = {
        ds2deploy.load(digits_onnx, runtime=runtime).transcribe(samples, 16_000).text
        for runtime in ("openvino", "onnxruntime")
    }
    assert len(texts) == 1


def test_doctor_says_that_it_works():
    [finding] = [item for item in examine() if "openvino" in item.name]
    assert finding.works
    assert "OpenVINO 20" in finding.detail


def test_its_telemetry_is_not_imported(digits_onnx: Path):
    code = (
        "import sys, ds2deploy\n"
        f"ds2deploy.load({str(digits_onnx)!r}, runtime='openvino')\n"
        "print([name for name in sys.modules if 'openvino_telemetry.' in name])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
