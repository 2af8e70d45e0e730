"""Every runtime with a CPU keeps the contract of `Session`, for every kind of file it opens."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

import ds2deploy
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.errors import (
    DeviceError,
    FeaturesError,
    RuntimeUnavailableError,
)
from ds2deploy.runtimes.streaming.state import run_in_blocks
from tests.docs.test_spans import known_extras
from tests.runtimes.rows import Row, speech

TOLERANCE = 1e-4
"""Tolerance of every fp32 artifact; the weights are trained."""

# What it computes


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 40), (5, 120)])
def test_it_computes_what_another_runtime_computes(
    row: Row, trained: Path, offline_onnx: Path, digits_checkpoint: Path, batch: int, frames: int
):
    other = offline_onnx if row.kind == "checkpoint" else digits_checkpoint
    session = row.open(trained)
    features, lengths = speech(session.description.features, batch, frames)
    given = features.copy(), lengths.copy()
    found, found_lengths = session.run(features, lengths)
    for array, before in zip((features, lengths), given, strict=True):
        np.testing.assert_array_equal(array, before)  # what it is given stays as it is
    expected, expected_lengths = ds2deploy.load(other).log_probs(features, lengths)
    assert (found.dtype, found_lengths.dtype) == (np.float32, np.int64)
    assert found_lengths.tolist() == expected_lengths.tolist()
    for mine, its, length in zip(found, expected, found_lengths, strict=True):
        assert np.abs(mine[:length] - its[:length]).max() < TOLERANCE


def test_streams_in_one_batch_compute_what_each_computes_alone(
    row: Row, streaming_onnx: Path, streaming_checkpoint: Path
):
    path = streaming_onnx if row.kind == "onnx" else streaming_checkpoint
    session = row.open(path).streaming()
    assert session is not None
    config = session.description.features
    sound, lengths = speech(config, 3, 200)
    if session.description.input == "waveform":
        lengths = lengths * config.stride
        sound = 0.1 * np.random.default_rng(0).standard_normal((3, lengths.max()))
        sound = sound.astype(np.float32)
    found, rows = run_in_blocks(session, sound, lengths, stagger=2)
    for i, length in enumerate(lengths):
        one = sound[i : i + 1, ..., :length], lengths[i : i + 1]
        alone, count = run_in_blocks(session, *one, 0)
        assert rows[i] == count[0]
        assert np.abs(found[i, : rows[i]] - alone[0, : rows[i]]).max() < TOLERANCE


def test_a_model_of_whole_utterances_has_no_streams(row: Row, trained: Path):
    assert row.open(trained).streaming() is None


def test_results_stay_as_they_are_when_it_runs_again(row: Row, small: Path):
    session = row.open(small)
    features, lengths = speech(session.description.features, 2, 60)
    tensors = {"features": features, "lengths": lengths}
    first = session.compute(tensors)
    kept = {name: array.copy() for name, array in first.items()}
    session.compute({"features": features + 1, "lengths": lengths})
    assert list(first) == list(session.description.outputs)
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


def test_int8_gives_the_labels_of_the_checkpoint_or_is_refused(
    row: Row, digits_checkpoint: Path, tmp_path: Path
):
    if row.kind != "onnx":
        pytest.skip("checkpoints are fp32")
    loaded = load_checkpoint(digits_checkpoint)
    description = msgspec.structs.replace(loaded.description(), precision="int8")
    path = tmp_path / "model.int8.onnx"
    onnx.save(build_graph(lower(loaded.network, columns=False), description), path)
    append_description(path, description)
    try:
        session = row.open(path)
    except RuntimeUnavailableError:
        assert "fp32" in row.refused(path, RuntimeUnavailableError)
        return
    features, lengths = speech(description.features, 1, 300)
    found = session.run(features, lengths)[0][0]
    expected = ds2deploy.load(digits_checkpoint).log_probs(features, lengths)[0][0]
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) > 0.95


# Runs


def test_a_run_that_fails_names_the_shape(row: Row, small: Path):
    session = row.open(small)
    shape = (1, 1, 3 * session.description.features.bins, 40)
    with pytest.raises((DeviceError, FeaturesError)) as raised:
        session.compute({"features": np.zeros(shape, np.float32), "lengths": np.array([40])})
    message = str(raised.value)
    assert message.startswith((session.runtime, "features"))
    assert str(shape) in message
    assert "\n" not in message


def spent_ns() -> dict[str, int]:
    """Processor time of every thread of this process."""
    return {
        path.parent.name: int(path.read_text().split()[0])
        for path in Path("/proc/self/task").glob("*/schedstat")
    }


def test_one_thread_is_one_thread(row: Row, trained: Path):
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("processor times of threads are known on Linux")
    session = row.open(trained, threads=1)
    batch = speech(session.description.features, 8, 400)
    session.run(*batch)
    before = spent_ns()
    for _ in range(3):
        session.run(*batch)
    spent = [time - before.get(thread, 0) for thread, time in spent_ns().items()]
    assert max(spent) > 0.9 * sum(spent)


def test_closing_twice_does_nothing(row: Row, small: Path):
    session = row.open(small)
    session.close()
    session.close()


# Where it is missing


@pytest.fixture
def missing(row: Row, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Hides the package of the runtime; gives its name."""
    name = row.backend.module or row.backend.name
    monkeypatch.setitem(sys.modules, name, None)
    return name


def test_it_is_examined(row: Row):
    assert row.backend.examine is not None
    found = row.backend.examine()
    assert found.works
    assert re.search(r"\d+\.\d+", found.detail)
    assert found.remedy == ""
    row.backend.preload(row.kind)


def test_without_its_package_the_extra_is_named(row: Row, small: Path, missing: str):
    assert row.backend.examine is not None
    found = row.backend.examine()
    assert not found.works
    assert found.detail
    told = row.refused(small, RuntimeUnavailableError)
    for text in (found.remedy, told):
        extras = re.search(r"pip install 'ds2deploy\[([a-z,-]+)\]'", text)
        assert extras, text
        assert set(extras[1].split(",")) <= known_extras()
