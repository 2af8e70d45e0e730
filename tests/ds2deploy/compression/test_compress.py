"""A smaller network computes what it should, exports, streams, and never overwrites anything."""

from __future__ import annotations

import copy
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.compression.compress import apply_sizes, compress
from ds2deploy.compression.importance import importance
from ds2deploy.compression.low_rank import factor_inputs
from ds2deploy.compression.plan import Model, Sizes, plan_energy, plan_speed, sizes_of
from ds2deploy.config import Recipe
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.format import ExportFormat
from ds2deploy.export.onnx import lowering
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.parity.speech import speech_features
from ds2deploy.model.checkpoint import Checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.operations import multiply_adds
from ds2deploy.model.streaming import streaming_description, torch_session
from ds2deploy.runtimes.artifact import ModelShape, WeightsSource
from ds2deploy.runtimes.errors import ConfigError, ParityError
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.runtimes.streaming.state import run_in_blocks
from ds2deploy.runtimes.tensors import with_tensors

CONFIG = FeatureConfig(normalize="global", mean=(0.1,) * 161, deviation=(0.3,) * 161)
FEATURES = np.stack(speech_features(CONFIG, utterances=2, frames=80))[:, None]
LENGTHS = np.array([80, 51], np.int64)
TOLERANCE = 2e-4  # of log-probabilities, float32 against float32, with weights of large gain
BIDIRECTIONAL = ModelShape(hidden=24, layers=3)
FORWARD = ModelShape(hidden=24, layers=3, bidirectional=False, lookahead=5)


def log_probs(network) -> np.ndarray:
    """In float64; past the lengths zero."""
    inputs = torch.from_numpy(FEATURES).double()
    with torch.no_grad():
        found, lengths = copy.deepcopy(network).double()(inputs, torch.from_numpy(LENGTHS))
    for row, length in zip(found, lengths, strict=True):
        row[length:] = 0
    return found.numpy()


def silence(network, maps: list[int], units: list[int]) -> None:
    """Make maps and units zero, in a network whose batch norms have seen that."""
    with torch.no_grad():
        for index in (1, 4):
            network.conv.layers[index].weight[maps] = 0
            network.conv.layers[index].bias[maps] = -1
        norms = [*(layer.batch_norm for layer in network.rnns[1:]), network.output_norm]
        for layer, norm in zip(network.rnns, norms, strict=True):
            size = layer.rnn.hidden_size
            for name, parameter in layer.rnn.named_parameters():
                rows = parameter.view(len(parameter) // size, size, -1)
                rows[:, units] = 0
                if name.startswith("weight_hh"):
                    parameter[:, units] = 0
            norm.running_mean[units] = 0


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("shape", [BIDIRECTIONAL, FORWARD])
@pytest.mark.parametrize(
    ("scale", "variance"),
    [pytest.param(0.0, 1.0, id="nothing reads them"), pytest.param(5.0, 1e-12, id="constant")],
)
def test_units_that_give_nothing_are_removed_first(lively_network, cell, shape, scale, variance):
    # The output has no bias: the norm before it takes over what is lost if units outnumber labels.
    network = lively_network(msgspec.structs.replace(shape, rnn=cell, hidden=40))
    silence(network, [3, 17], [0, 5, 11])
    with torch.no_grad():
        for norm in [*(layer.batch_norm for layer in network.rnns[1:]), network.output_norm]:
            norm.weight[[0, 5, 11]] = scale
            norm.running_var[[0, 5, 11]] = variance
    smaller = apply_sizes(network, Sizes((30, 30), (37, 37, 37), (0, 0, 0)))
    assert (smaller.shape.hidden, smaller.shape.maps) == (37, (30, 30))
    assert np.abs(log_probs(smaller) - log_probs(network)).max() < 2e-6


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_unit_that_the_lookahead_clips_stays_if_its_layer_reads_it(lively_network, cell):
    network = lively_network(msgspec.structs.replace(FORWARD, rnn=cell))
    layer, norm = network.rnns[-1], network.output_norm
    with torch.no_grad():
        layer.rnn.weight_hh_l0[:, 7] *= 20
        norm.running_var[[7]] = 1e-12
    assert importance(network).units[-1][7] > 1 / FORWARD.units[-1]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("shape", [BIDIRECTIONAL, FORWARD])
def test_full_rank_leaves_the_outputs(lively_network, cell, shape):
    network = lively_network(msgspec.structs.replace(shape, rnn=cell))
    ranks = [len(shares) for shares in importance(network).directions]
    factored = factor_inputs(network, ranks)
    assert factored.shape.ranks == tuple(ranks)
    assert np.abs(log_probs(factored) - log_probs(network)).max() < TOLERANCE
    lower = factor_inputs(network, [4, 4, 4])
    assert np.abs(log_probs(lower) - log_probs(network)).max() > 100 * TOLERANCE


def artifact_session(network, shape: ModelShape, path: Path, streaming: bool) -> OnnxSession:
    source = WeightsSource(name="test.ckpt", sha256="0" * 64, kind="ds2deploy")
    checkpoint = Checkpoint(
        network=network, recipe=Recipe(model=shape, features=CONFIG), source=source
    )
    whole = checkpoint.description()
    description = streaming_description(whole) if streaming else with_tensors(whole)
    onnx.save(build_graph(lowering.lower(network), description), path)
    return OnnxSession(path, threads=1, description=description)


@st.composite
def shapes(draw) -> ModelShape:
    layers = draw(st.integers(1, 3))
    sizes = st.lists(st.integers(1, 9), min_size=layers, max_size=layers)
    return ModelShape(
        rnn=draw(st.sampled_from(["lstm", "gru", "rnn"])),
        layers=layers,
        hidden=tuple(draw(sizes)),
        ranks=tuple(draw(st.lists(st.integers(0, 9), min_size=layers, max_size=layers))),
        maps=(draw(st.integers(1, 5)), draw(st.integers(1, 5))),
        bidirectional=draw(st.booleans()),
        lookahead=draw(st.integers(1, 4)),
    )


@settings(max_examples=12)
@given(shape=shapes())
def test_any_sizes_export_and_stream(lively_network, tmp_path_factory, shape):
    network = lively_network(shape)
    folder = tmp_path_factory.mktemp("sizes")
    expected = log_probs(network)
    found, _ = artifact_session(network, shape, folder / "a.onnx", False).run(FEATURES, LENGTHS)
    for index, length in enumerate((40, 26)):
        assert np.abs(found[index, :length] - expected[index, :length]).max() < TOLERANCE
    if shape.bidirectional:
        return
    session = artifact_session(network, shape, folder / "s.onnx", True)
    source = WeightsSource(name="test.ckpt", sha256="0" * 64, kind="ds2deploy")
    recipe = Recipe(model=shape, features=CONFIG)
    reference = torch_session(Checkpoint(network=network, recipe=recipe, source=source))
    blocks = reference.streaming()
    assert blocks is not None
    for streams in (session, blocks):
        found, _ = run_in_blocks(streams, FEATURES, LENGTHS, stagger=1)
        for index, length in enumerate((40, 26)):
            assert np.abs(found[index, :length] - expected[index, :length]).max() < TOLERANCE


@settings(max_examples=15)
@given(
    speed=st.floats(1.05, 8), method=st.sampled_from(["units", "both"]), layers=st.integers(1, 3)
)
def test_speed_reaches_its_ratio(lively_network, speed, method, layers):
    shape = ModelShape(hidden=40, layers=layers)
    network = lively_network(shape)
    model = Model(shape, 161, 29)
    sizes = plan_speed(model, importance(network), speed, method)
    assert model.operations(sizes_of(shape)) / model.operations(sizes) >= speed
    smaller = sizes.shape(shape)
    counted = sum(multiply_adds(smaller, 161, 29).values())
    assert counted == model.operations(sizes)


def test_energy_keeps_its_share_of_every_layer(lively_network):
    network = lively_network(BIDIRECTIONAL)
    found = importance(network)
    sizes = plan_energy(Model(BIDIRECTIONAL, 161, 29), found, 0.5, "units")
    for shares, count in zip(found.units + found.maps, sizes.units + sizes.maps, strict=True):
        assert shares.sort(descending=True).values[:count].sum() >= 0.5
        assert count < len(shares)


def test_recipe_takes_a_list_and_old_ones_read_as_before():
    assert ModelShape(hidden=(8, 8), layers=2) == ModelShape(hidden=8, layers=2)
    assert ModelShape(hidden=8, layers=3).units == (8, 8, 8)
    for wrong in ({"hidden": (8,)}, {"hidden": (8, 0)}, {"ranks": (1, 2, 3)}, {"maps": (0, 1)}):
        with pytest.raises(ConfigError, match="model"):
            ModelShape(layers=2, **wrong)
    assert "maps" not in Checkpoint.description(load_checkpoint(DIGITS)).to_json()


DIGITS = Path(__file__).parents[2] / "models" / "digits.ckpt"


@pytest.fixture(
    scope="module", params=["digits", pytest.param("digits-streaming", marks=pytest.mark.slow)]
)
def compressed(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("small") / f"{request.param}.ckpt"
    report = compress(DIGITS.with_stem(request.param), path, speed=2)
    assert report.speed >= 2
    assert report.bytes[1] == path.stat().st_size < report.bytes[0]
    return path


def test_compressed_trained_model_exports_verified(compressed, tmp_path, monkeypatch):
    if compressed.stem == "digits":  # the slow one is verified on the whole grid
        monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 120))
    exported = export_onnx(compressed, tmp_path, ["fp32", "fp16"])
    if compressed.stem == "digits-streaming":
        exported += export_onnx(compressed, tmp_path, export_format=ExportFormat(streaming=True))
    assert all(Path(item.path).is_file() for item in exported)


def test_wrong_order_of_gates_is_caught(compressed, tmp_path, monkeypatch):
    monkeypatch.setitem(lowering.GATES, "lstm", (0, 1, 2, 3))
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))
    with pytest.raises(ParityError):
        export_onnx(compressed, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ([], "--speed 2"),
        (["--speed", "2", "--energy", "0.9"], "--speed 2"),
        (["--speed", "1"], "above 1"),
        (["--speed", "1e9"], "at most"),
        (["--speed", "9", "--method", "rank"], "--method both"),
        (["--energy", "0"], "above 0"),
        (["--energy", "1.5"], "at most 1"),
        (["--speed", "2", "--method", "magic"], "units, rank or both"),
    ],
)
def test_impossible_budgets_are_refused(tmp_path, options, remedy):
    out = tmp_path / "small.ckpt"
    result = CliRunner().invoke(app, ["compress", str(DIGITS), "--out", str(out), *options])
    assert result.exit_code == 2
    assert remedy in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_existing_file_is_never_overwritten(tmp_path):
    copied = tmp_path / "a.ckpt"
    copied.write_bytes(DIGITS.read_bytes())
    result = CliRunner().invoke(
        app, ["compress", str(copied), "--out", str(copied), "--speed", "2"]
    )
    assert result.exit_code == 2
    assert str(copied) in result.stderr
    assert copied.read_bytes() == DIGITS.read_bytes()


def test_json_report_names_every_layer(tmp_path):
    out = tmp_path / "small.ckpt"
    command = ["compress", str(DIGITS), "--out", str(out), "--energy", "0.9", "--json"]
    result = CliRunner().invoke(app, command)
    report = msgspec.json.decode(result.stdout)
    assert [layer["name"] for layer in report["layers"]] == [
        "conv1", "conv2", "rnn1", "rnn2", "rnn3", "output"
    ]  # fmt: skip
    assert load_checkpoint(out).recipe.model == msgspec.convert(report["model"], ModelShape)
