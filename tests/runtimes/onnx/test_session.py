"""ONNX Runtime on a CPU: a wide LSTM is run a few utterances at a time, with the same result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ds2deploy.runtimes.artifact import ArtifactDescription, ModelShape, WeightsSource
from ds2deploy.runtimes.blocks import make_blocks
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.onnx.session import OnnxSession, at_once
from ds2deploy.runtimes.pipeline import batch_limits
from ds2deploy.runtimes.streaming.state import run_whole
from ds2deploy.runtimes.tensors import Tensors

LARGE = ArtifactDescription(
    precision="fp32",
    labels="_AB",
    features=FeatureConfig(),
    model=ModelShape(),
    source=WeightsSource(name="large.ckpt", sha256="0" * 64, kind="ds2deploy"),
)


@pytest.mark.parametrize(
    ("shape", "precision", "threads", "expected"),
    [
        ({}, "fp32", 2, 4),
        ({}, "fp32", 4, 4),
        ({}, "fp32", 1, None),
        ({}, "fp32", 8, None),
        ({}, "int8", 2, None),
        ({"rnn": "gru"}, "fp32", 2, None),
        ({"hidden": 256}, "fp32", 2, None),
        ({"hidden": 257}, "fp32", 2, 4),
    ],
)
def test_wide_lstms_on_few_cores_are_run_four_at_a_time(
    shape: dict[str, Any], precision: Any, threads: int, expected: int | None
):
    model = msgspec.structs.replace(LARGE.model, **shape)
    described = msgspec.structs.replace(LARGE, model=model, precision=precision)
    assert at_once(described, threads) == expected


def test_blocks_of_streams_are_run_in_one_batch():
    model = msgspec.structs.replace(LARGE.model, bidirectional=False)
    blocks = make_blocks(model, LARGE.features, "features", 320.0)
    streaming = msgspec.structs.replace(LARGE, model=model, kind="streaming", blocks=blocks)
    assert at_once(streaming, 2) is None


class Spy:
    """Passes on to ONNX Runtime's session; notes the sizes of the batches."""

    def __init__(self, session: Any) -> None:
        self.session, self.sizes = session, []

    def run(self, names: list[str], tensors: Tensors, options: Any) -> Any:
        self.sizes.append(len(tensors["lengths"]))
        return self.session.run(names, tensors, options)


@pytest.mark.parametrize(("size", "expected"), [(3, [3]), (4, [4]), (5, [4, 1]), (10, [4, 4, 2])])
def test_a_batch_in_parts_is_the_batch(small_onnx: Path, size: int, expected: list[int]):
    session = OnnxSession(small_onnx, threads=1)
    random = np.random.default_rng(size)
    bins = session.description.features.bins
    features = random.standard_normal((size, 1, bins, 60)).astype(np.float32)
    lengths = random.integers(1, 61, size)
    lengths[-1] = 60
    whole, whole_lengths = session.run(features, lengths)
    session._session, session.at_once = Spy(session._session), 4
    parted, parted_lengths = session.run(features, lengths)
    assert session._session.sizes == expected
    np.testing.assert_array_equal(parted_lengths, whole_lengths)
    for i, length in enumerate(whole_lengths):
        np.testing.assert_allclose(parted[i, :length], whole[i, :length], atol=1e-5)


def test_streams_in_parts_are_the_streams(streaming_onnx: Path):
    session = OnnxSession(streaming_onnx, threads=1)
    waveforms = np.random.default_rng(0).standard_normal((5, 14_000)).astype(np.float32)
    lengths = np.array([14_000, 4_000, 10_001, 900, 13_999])
    whole, rows = run_whole(session, waveforms, lengths)
    session.at_once = 2
    parted, _ = run_whole(session, waveforms, lengths)
    for i, count in enumerate(rows):
        np.testing.assert_allclose(parted[i, :count], whole[i, :count], atol=1e-4)


def test_batches_of_many_files_are_as_large_as_what_is_run_at_once(small_onnx: Path):
    session = OnnxSession(small_onnx, threads=1)
    assert batch_limits(session)[1] == 64
    session.at_once = 4
    assert batch_limits(session)[1] == 4


MEMORY = """
import sys
import numpy as np
import ds2deploy

def read(key):
    return next(int(x.split()[1]) / 1e3 for x in open("/proc/self/status") if x.startswith(key))

with ds2deploy.load(sys.argv[1], threads=1) as recognizer:
    features = np.zeros((1, 1, recognizer.description.features.bins, 13_000), np.float32)
    before, peaks = read("VmRSS"), []
    for _ in range(3):
        recognizer.log_probs(features, [13_000])
        peaks.append(read("VmHWM"))
    print(before, *peaks, read("VmRSS"))
"""


@pytest.mark.slow
def test_memory_of_an_exceptional_run_is_given_back(digits_onnx: Path):
    """And a shape that comes again takes no more than the first time."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peaks of memory are known on Linux")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(digits_onnx)], capture_output=True, text=True, check=True
    )
    before, first, _, last, after = map(float, done.stdout.split())
    assert first - before > 100, "as large as a run that matters"
    assert after - before < (first - before) / 2
    assert last - before < 1.3 * (first - before)
