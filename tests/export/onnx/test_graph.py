"""The exported graph: its size, its operators, its symbolic axes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from ds2deploy.config import Recipe
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.weights import build_network
from ds2deploy.runtimes.artifact import ModelShape

CELLS = ["lstm", "gru", "rnn"]
DIRECTIONS = {"both ways": True, "lookahead": False}
PRECISIONS = ["fp32", "fp16"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bidirectional", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_five_layers(cell: str, bidirectional: bool, precision: str, lively_network, describe):
    shape = ModelShape(rnn=cell, hidden=16, layers=5, bidirectional=bidirectional)
    model = build_graph(lower(lively_network(shape)), describe(shape, precision))
    onnx.checker.check_model(model, full_check=True)
    operators = Counter(node.op_type for node in model.graph.node)
    assert len(model.graph.node) <= 70
    assert not operators.keys() & {"Loop", "Scan", "If", "BatchNormalization"}
    assert operators[{"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}[cell]] == 5
    assert [opset.version for opset in model.opset_import] == [18]
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    # TensorRT takes sequence_lens in fp32 only; the initial states are of the graph's type.
    recurrent = [node for node in model.graph.node if node.op_type in ("LSTM", "GRU", "RNN")]
    states = ["rnn/zero_state"] * (2 if cell == "lstm" else 1)
    assert all(list(node.input[4:]) == ["", *states] for node in recurrent)


def test_inputs_and_outputs(lively_network, describe):
    shape = ModelShape(hidden=8, layers=1)
    model = build_graph(lower(lively_network(shape)), describe(shape, "fp16"))

    def described(values):
        return {
            value.name: (
                [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
                onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            )
            for value in values
        }

    assert described(model.graph.input) == {
        "features": (["batch", 1, 161, "time"], "FLOAT"),
        "lengths": (["batch"], "INT64"),
    }
    assert described(model.graph.output) == {
        "log_probs": (["batch", "output_time", 29], "FLOAT"),
        "output_lengths": (["batch"], "INT64"),
    }


@pytest.mark.parametrize("frames", [120, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bidirectional", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_kind_exports_verified(
    cell: str,
    bidirectional: bool,
    frames: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lively_network,
):
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40, frames))
    shape = ModelShape(rnn=cell, hidden=24, layers=2, bidirectional=bidirectional, lookahead=7)
    recipe = Recipe(model=shape)
    save_checkpoint(tmp_path / "x.ckpt", lively_network(shape), recipe, {})
    artifacts = export_onnx(tmp_path / "x.ckpt", tmp_path / "out", PRECISIONS)
    assert [exported.precision for exported in artifacts] == PRECISIONS
    for exported in artifacts:
        assert exported.report.passed
        answers = {case.argmax_share for case in exported.report.cases}
        assert min(answers) > (0.999 if exported.precision == "fp32" else 0.9)


def test_export_at_8_khz_with_custom_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 120))
    from ds2deploy.runtimes.features import FeatureConfig

    recipe = Recipe(
        labels="_abc ",
        model=ModelShape(hidden=8, layers=1),
        features=FeatureConfig(sample_rate=8000),
    )
    network = build_network(recipe)
    assert network.bins == 81
    save_checkpoint(tmp_path / "x.ckpt", network, recipe, {})
    assert export_onnx(tmp_path / "x.ckpt", tmp_path)[0].report.passed


@pytest.mark.thorough
def test_the_default_model_is_written_in_the_time_of_six_small_batches(
    tmp_path: Path, lively_network, monkeypatch: pytest.MonkeyPatch
):
    """Folding, writing and checking, against the parity check; measured, 0.4 of its time."""
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 300))
    recipe = Recipe()
    assert (recipe.model.hidden, recipe.model.layers, recipe.model.bidirectional) == (1024, 5, True)
    save_checkpoint(tmp_path / "large.ckpt", lively_network(recipe.model, gain=1), recipe, {})
    exported = export_onnx(tmp_path / "large.ckpt", tmp_path)[0]
    assert exported.build_s < exported.verify_s
    assert exported.nodes <= 70
    assert exported.report.passed


def test_gates_are_in_onnx_order(lively_network):
    """The update gate's hold weight stands where ONNX has that gate, first, and nowhere else."""
    network = lively_network(ModelShape(rnn="gru", hidden=4, layers=1))
    recurrence = lower(network).recurrences[0]
    column = recurrence.W[0, :, 1312]
    np.testing.assert_array_equal(column, [1e4] * 4 + [0] * 8)
    weight = network.rnns[0].rnn.weight_ih_l0.detach().numpy()
    np.testing.assert_array_equal(recurrence.W[0, :4, :1312], weight[4:8])  # torch: reset, update
