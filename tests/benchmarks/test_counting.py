"""Operations and bytes of the network, against counts that are made another way."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ds2deploy.model.network import DeepSpeech2
from ds2deploy.runtimes.artifact import ModelShape

SHAPES = [
    ModelShape(hidden=24, layers=2),
    ModelShape(rnn="gru", hidden=16, layers=3),
    ModelShape(rnn="rnn", hidden=16, layers=1, bidirectional=False, lookahead=5),
]


@pytest.fixture
def counting(benchmark_module) -> ModuleType:
    return benchmark_module("counting")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.rnn)
@pytest.mark.parametrize(("batch", "frames"), [(1, 37), (3, 50)])
def test_operations_are_those_that_torch_counts(
    counting: ModuleType, shape: ModelShape, batch: int, frames: int
):
    network = DeepSpeech2(shape).eval()
    # Without oneDNN's fused cells, of which torch's counter knows nothing, every step is a product.
    with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=False):
        counter = FlopCounterMode(display=False)
        with counter:
            network(torch.zeros(batch, 1, 161, frames), torch.full((batch,), frames))
    counted = sum(
        stage.operations for stage in counting.network_stages(shape, 161, 29, batch, frames)
    )
    assert counted == counter.get_total_flops()


def test_the_large_network_by_hand(counting: ModuleType):
    """Batch 8 of 10 s: 1001 frames, 501 steps."""
    stages = {s.name: s for s in counting.network_stages(ModelShape(), 161, 29, 8, 1001)}
    rows = 8 * 501
    assert stages["conv1"].operations == 2 * rows * 32 * 81 * 41 * 11
    assert stages["conv2"].operations == 2 * rows * 32 * 41 * 32 * 21 * 11
    assert stages["rnn1 input"].operations == 2 * rows * 1312 * 4096 * 2
    assert stages["rnn5 recurrent"].operations == 2 * rows * 1024 * 4096 * 2
    assert stages["output"].operations == 2 * rows * 1024 * 29
    assert len(stages) == 13


def test_bytes_are_those_of_the_written_weights(
    counting: ModuleType, lively_network, describe, tmp_path: Path
):
    """R of the ONNX file is read at every step, and one direction of it is the working set."""
    from ds2deploy.export.onnx.graph import build_graph
    from ds2deploy.export.onnx.lowering import lower

    shape = ModelShape(hidden=24, layers=2)
    model = build_graph(lower(lively_network(shape)), describe(shape))
    written = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    frames, batch = 101, 3
    stages = {s.name: s for s in counting.network_stages(shape, 161, 29, batch, frames)}
    outputs = 4 * batch * 51 * shape.hidden
    for layer in ("rnn1", "rnn2"):
        recurrent = stages[f"{layer} recurrent"]
        assert recurrent.bytes == 51 * written[f"{layer}/R"].nbytes + outputs
        assert recurrent.working_set == written[f"{layer}/R"].nbytes / 2
    assert stages["conv2"].working_set == written["conv2/weight"].nbytes
    eighth = counting.network_stages(shape, 161, 29, batch, frames, "int8")
    assert {s.name for s in eighth if s.precision == "int8"} == {
        name for name in stages if name.startswith(("rnn", "conv2"))
    }
    int8 = {s.name: s for s in eighth}["rnn2 recurrent"]
    assert int8.working_set == stages["rnn2 recurrent"].working_set / 4
    assert int8.operations == stages["rnn2 recurrent"].operations


def test_the_larger_of_the_two_limits_binds(counting: ModuleType):
    rates = counting.Rates(multiply={"fp32": 100.0}, read={10: 50.0, 100: 5.0})
    quick_read = counting.Stage("rnn1 input", "fp32", 1000.0, 100.0, 8.0)
    slow_read = counting.Stage("rnn1 recurrent", "fp32", 1000.0, 100.0, 60.0)
    least = counting.least_times([quick_read, slow_read], rates)
    assert [(item.seconds, item.binds) for item in least] == [
        (10.0, "arithmetic"),
        (20.0, "reading"),
    ]
    assert counting.least_time([quick_read, slow_read], rates) == 30.0
    assert counting.what_binds([quick_read, slow_read], rates) == (
        "67% recurrent products (reading their weights), 33% input products (fp32 arithmetic)"
    )


def test_reading_is_as_fast_as_the_best_that_is_as_large(counting: ModuleType):
    rates = counting.Rates(multiply={}, read={1: 40.0, 4: 20.0, 16: 25.0})
    assert [rates.reading(size) for size in (0.5, 1, 2, 10, 99)] == [40.0, 40.0, 25.0, 25.0, 25.0]


def test_probes_do_what_they_say(benchmark_module):
    """Products of the same numbers; as many bytes as were asked for."""
    probes = benchmark_module("probes")
    random = np.random.default_rng(0)
    left, right = random.standard_normal((5, 7)), random.standard_normal((7, 3))
    left, right = left.astype(np.float32), right.astype(np.float32)
    (product,) = probes.product_in_onnxruntime(left, right, "fp32")()
    np.testing.assert_allclose(product, left @ right, rtol=1e-5, atol=1e-5)
    (integers,) = probes.product_in_onnxruntime(left, right, "int8")()
    assert integers.dtype == np.int32
    for library in ("torch", "numpy"):
        assert probes.read_probe(1 << 20, library=library).amount == probes.LEAST_READ
        assert probes.read_probe(1 << 29, library=library).amount == 1 << 29
    made = {"fp32 a": probes.Probe("multiply", "fp32", 10.0, lambda: None)}
    made |= {"fp32 b": probes.Probe("multiply", "fp32", 10.0, lambda: None)}
    made |= {"read": probes.Probe("read", 1 << 20, 8.0, lambda: None)}
    took = {"fp32 a": [2.0, 5.0], "fp32 b": [1.0, 10.0], "read": [4.0, 2.0]}
    best = probes.rates(made, took)
    assert (best.multiply, best.read) == ({"fp32": 10.0}, {1 << 20: 4.0})
    second = probes.rates(made, took, round_=1)
    assert (second.multiply, second.read) == ({"fp32": 2.0}, {1 << 20: 4.0})


def test_every_probe_runs_before_every_case(benchmark_module, monkeypatch: pytest.MonkeyPatch):
    probes = benchmark_module("probes")
    turns = {"a [0]": [3.0, 5.0], "x": [9.0, 8.0], "a [1]": [2.0, 6.0], "y": [7.0, 7.0]}

    def take_turns(cases: Any, rounds: int, progress: Any) -> dict[str, list[float]]:
        assert (list(cases), rounds, progress) == (list(turns), 2, print)
        return turns

    monkeypatch.setattr(probes, "take_turns", take_turns)
    probe = probes.Probe("read", 1 << 20, 8.0, lambda: None)
    found = probes.take_turns_with({"a": probe}, {"x": print, "y": print}, 2, print)
    assert found == {"x": [9.0, 8.0], "y": [7.0, 7.0], "a": [2.0, 5.0]}
