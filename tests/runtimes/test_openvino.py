"""OpenVINO runs what ONNX Runtime runs, with the same numbers."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

import ds2deploy
from ds2deploy.doctor import examine
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.export.parity.speech import speech_features, speech_waveforms
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.errors import DeviceError, ModelFileError, RuntimeUnavailableError
from ds2deploy.runtimes.features import pad_features, pad_waveforms
from ds2deploy.runtimes.onnx.metadata import read_onnx_description
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


@pytest.mark.parametrize(("batch", "frames"), [(1, 40), (3, 200), (8, 457)])
def test_an_offline_model_computes_what_pytorch_computes(
    digits_onnx: Path, digits_checkpoint: Path, batch: int, frames: int
):
    with ds2deploy.load(digits_onnx, runtime="openvino") as recognizer:
        features, lengths = speech(recognizer.description, batch, frames)
        found, found_lengths = recognizer.log_probs(features, lengths)
    expected, expected_lengths = ds2deploy.load(digits_checkpoint).log_probs(features, lengths)
    assert found_lengths.tolist() == expected_lengths.tolist()
    for row, other, length in zip(found, expected, found_lengths, strict=True):
        assert np.abs(row[:length] - other[:length]).max() < TOLERANCE


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


def test_several_threads_may_call_one_session(digits_onnx: Path):
    recognizer = ds2deploy.load(digits_onnx, runtime="openvino")
    inputs = [speech(recognizer.description, 1 + i % 3, 60 + 20 * i) for i in range(6)]
    expected = [recognizer.log_probs(*item)[0] for item in inputs]
    differ: list[int] = []

    def call(i: int) -> None:
        for _ in range(3):
            if not np.array_equal(recognizer.log_probs(*inputs[i])[0], expected[i]):
                differ.append(i)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differ == []


def test_a_damaged_file_is_named(digits_onnx: Path, tmp_path: Path):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(digits_onnx.read_bytes()[:-2000])
    with pytest.raises(ModelFileError, match=r"damaged\.onnx"):
        ds2deploy.load(damaged, runtime="openvino")


def test_a_description_of_another_graph_is_refused_at_loading(small_onnx: Path, monkeypatch):
    def of_another(path: Path) -> ArtifactDescription:
        description = read_onnx_description(path)
        return msgspec.structs.replace(description, labels=description.labels[:-1])

    monkeypatch.setattr("ds2deploy.runtimes.openvino.read_onnx_description", of_another)
    with pytest.raises(ModelFileError, match="export it again"):
        ds2deploy.load(small_onnx, runtime="openvino")


def test_a_run_that_fails_names_the_shape(digits_onnx: Path):
    session = ds2deploy.load(digits_onnx, runtime="openvino").session
    wrong = np.zeros((1, 1, 7, 40), np.float32)
    with pytest.raises(DeviceError, match=r"\(1, 1, 7, 40\)"):
        session.compute({"features": wrong, "lengths": np.array([40])})


def test_a_bf16_file_is_refused_with_the_remedy(small_onnx: Path, monkeypatch):
    def as_bf16(path: Path) -> ArtifactDescription:
        return msgspec.structs.replace(read_onnx_description(path), precision="bf16")

    monkeypatch.setattr("ds2deploy.runtimes.openvino.read_onnx_description", as_bf16)
    with pytest.raises(RuntimeUnavailableError, match="fp32"):
        ds2deploy.load(small_onnx, runtime="openvino")


def test_int8_gives_the_labels_of_the_checkpoint(digits_checkpoint: Path, tmp_path: Path):
    loaded = load_checkpoint(digits_checkpoint)
    description = msgspec.structs.replace(loaded.description(), precision="int8")
    path = tmp_path / "model.int8.onnx"
    onnx.save(build_graph(lower(loaded.network, columns=False), description), path)
    append_description(path, description)
    features, lengths = speech(description, 1, 300)
    found = ds2deploy.load(path, runtime="openvino").log_probs(features, lengths)[0][0]
    expected = ds2deploy.load(digits_checkpoint).log_probs(features, lengths)[0][0]
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) > 0.95


def test_doctor_says_that_it_works():
    [finding] = [item for item in examine() if "openvino" in item.name]
    assert finding.works
    assert "OpenVINO 20" in finding.detail


def test_doctor_names_the_command_where_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    [finding] = [item for item in examine() if "openvino" in item.name]
    assert not finding.works
    assert finding.remedy == "pip install 'ds2deploy[openvino]'"


def test_its_telemetry_is_not_imported(digits_onnx: Path):
    code = (
        "import sys, ds2deploy\n"
        f"ds2deploy.load({str(digits_onnx)!r}, runtime='openvino')\n"
        "print([name for name in sys.modules if 'openvino_telemetry.' in name])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
