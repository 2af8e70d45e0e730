"""Layers in int8: the sums are exact, padding is never read, and the words decide."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.config import Recipe
from ds2deploy.data.manifest import read_manifest
from ds2deploy.export import verified_onnx
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.format import ExportFormat
from ds2deploy.export.onnx import graph, quantization
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.export.onnx.quantization import column_scale, quantize
from ds2deploy.export.parity.report import TOLERANCES, Tolerance
from ds2deploy.export.parity.speech import speech_waveforms
from ds2deploy.export.verification import verify_artifact
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.errors import ConfigError, ParityError, RuntimeUnavailableError
from ds2deploy.runtimes.features import FeatureConfig, FeatureExtractor, pad_features
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.runtimes.streaming.state import run_in_blocks

GLOBAL = FeatureConfig(normalize="global", mean=(0.1,) * 161, deviation=(0.3,) * 161)
FRAMES = (97, 1, 5, 33, 64, 2)


# The numbers ------------------------------------------------------------------------------------


def weights(rows: int = 96, inputs: int = 1313) -> np.ndarray:
    """As trained ones are: some columns much larger than others."""
    random = np.random.default_rng(0)
    columns = np.exp(random.standard_normal(inputs))
    return (random.standard_normal((2, rows, inputs)) * columns).astype(np.float32)


def test_rounding():
    W = weights(16, 40)
    W[0, 3] = 0
    matrix = quantize(W)
    assert matrix.values.shape == (2, 40, 16)
    assert (matrix.values.dtype, matrix.zero_point.dtype) == (np.int8, np.int8)
    assert matrix.scale.shape == matrix.zero_point.shape == (2, 16)
    assert not matrix.zero_point.any()
    back = matrix.values.astype(np.float32) * matrix.scale[:, None, :]
    assert np.all(np.abs(back - W.transpose(0, 2, 1)) <= 0.5001 * matrix.scale[:, None, :])


def test_no_processor_cuts_a_sum_off():
    """Activations of 255 wherever they add up; x86 without VNNI adds two products in 16 bits."""
    values = quantize(weights()).values[0]
    node = helper.make_node("MatMulInteger", ["a", "w"], ["y"])
    product = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["rows", len(values)])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", values.shape[1]])],
        [numpy_helper.from_array(values, "w")],
    )
    model = helper.make_model(product, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    session = onnxruntime.InferenceSession(model.SerializeToString())
    loud = np.concatenate([values.T > 0, values.T < 0]).astype(np.uint8) * 255
    exact = loud.astype(np.int64) @ values.astype(np.int64)
    np.testing.assert_array_equal(session.run(None, {"a": loud})[0], exact)
    assert np.abs(values).max() > 64  # better than halving every weight


def test_a_convolution_cuts_no_sum_off_either(lively_network, describe):
    """Steps of 127 wherever they add up, through the operator as the artifact has it."""
    shape = ModelShape(hidden=8, layers=1)
    network = lively_network(shape)
    model = build_graph(lower(network, columns=False), describe(shape, "int8"))
    (node,) = (node for node in model.graph.node if node.op_type == "QLinearConv")
    arrays = {array.name: numpy_helper.to_array(array) for array in model.graph.initializer}
    values = arrays["conv2/weight"]
    assert 2 * 127 * np.abs(values.astype(int)).max() < 2**15  # whatever this processor does
    maps, channels, bins, frames = values.shape
    loud = np.where(values > 0, 127, 0).astype(np.uint8)
    quiet = (np.abs(values.astype(int)).sum(axis=(1, 2, 3)) / 128).astype(np.float32)
    arrays["conv2/weight_scale"] = 1 / quiet  # so that each sum, whatever its sign, has a byte
    arrays["conv2/bias"] = np.zeros(maps, np.int32)
    node = helper.make_node("QLinearConv", node.input, node.output)  # of one place, unpadded
    product = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info(node.input[0], TensorProto.UINT8, loud.shape)],
        [helper.make_tensor_value_info(node.output[0], TensorProto.UINT8, None)],
        [numpy_helper.from_array(arrays[name], name) for name in set(node.input[1:])],
    )
    model = helper.make_model(product, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, {node.input[0]: loud})[0][:, :, 0, 0]
    sums = np.einsum("ncij,mcij->nm", loud.astype(np.int64), values.astype(np.int64))
    np.testing.assert_allclose(found, np.clip(np.rint(sums / quiet), 0, 255), atol=1)
    assert found.diagonal().min() > 50


def test_a_convolution_in_steps_is_that_in_float32(digits_checkpoint: Path):
    """Trained, on speech: within a step or two, and the same to the bit whatever the padding."""
    checkpoint = load_checkpoint(digits_checkpoint)
    config, deploy = checkpoint.recipe.features, lower(checkpoint.network)
    extract = FeatureExtractor(config)
    speech = [extract(samples) for samples in speech_waveforms(config, 3, 120)]
    utterances = [
        features[:, :frames] for features, frames in zip(speech, (120, 41, 8), strict=True)
    ]
    padded = pad_features(utterances)
    found = {}
    for precision in ("fp32", "int8"):
        lowered = lower(checkpoint.network, columns=precision != "int8")
        model = build_graph(lowered, ExportFormat().describe(checkpoint, precision))
        model.graph.output.append(
            helper.make_tensor_value_info("conv2/mask", TensorProto.FLOAT, None)
        )
        session = onnxruntime.InferenceSession(model.SerializeToString())

        def maps(features, lengths, session=session) -> np.ndarray:
            feed = {"features": features, "lengths": lengths}
            return session.run(["conv2/mask"], feed)[0]

        found[precision] = maps(*padded)
        if precision == "int8":
            for row, utterance in zip(found["int8"], utterances, strict=True):
                (alone,) = maps(*pad_features([utterance]))
                np.testing.assert_array_equal(row[:, :, : alone.shape[2]], alone)
                assert not row[:, :, alone.shape[2] :].any()
    step = quantization.map_steps(deploy.convolutions[1], 255)[:, None, None]
    off = np.abs(found["int8"] - found["fp32"]) / step
    assert found["fp32"].max() > 50 * step.max()
    assert off.mean() < 0.5
    assert np.percentile(off, 99.9) < 4


def test_large_columns_are_divided():
    W = weights()
    scale = column_scale(W)
    assert scale.shape == (W.shape[2],)
    assert np.ptp(np.log(np.abs(W / scale).max(axis=(0, 1)))) < np.ptp(
        np.log(np.abs(W).max(axis=(0, 1)))
    )
    W[:, :, 7] = 0
    assert np.isfinite(column_scale(W)).all()


# Padding and streams ----------------------------------------------------------------------------


def in_float32(g, deploy, units, name, x, weights, counts_and_states, states) -> str:
    """A layer that is told of padding in the same way, but rounds nothing."""
    arrays = [g.weight(f"{name}/{key}", array) for key, array in weights._asdict().items()]
    direction = "bidirectional" if deploy.shape.bidirectional else "forward"
    options = {"hidden_size": units, "direction": direction}
    rows, *_ = g.node_of("LSTM", name, (name, *states), x, *arrays, *counts_and_states, **options)
    return g.node("ReduceSum", f"{name}/sum", rows, g.integers(1), keepdims=0)


@pytest.mark.parametrize(
    ("bidirectional", "block_ms"),
    [(True, None), (False, None), (False, 20), (False, 60), (False, 320)],
)
def test_invalid_frames_are_never_read(
    bidirectional: bool,
    block_ms: float | None,
    lively_network,
    describe,
    monkeypatch: pytest.MonkeyPatch,
):
    """Whole utterances in a padded batch, and streams that begin in the middle of a block."""
    import torch

    monkeypatch.setattr(quantization, "_layer", in_float32)
    monkeypatch.setattr(graph, "quantized_convolution", graph._convolution)
    shape = ModelShape(hidden=24, layers=3, bidirectional=bidirectional, lookahead=4)
    network = lively_network(shape)
    description = describe(shape, "int8", GLOBAL, "features", block_ms)
    model = build_graph(lower(network, columns=False), description)
    session = OnnxSession.__new__(OnnxSession)
    session.at_once = None
    session._session = onnxruntime.InferenceSession(model.SerializeToString())
    session.description, session.runtime, session.profile = description, "onnxruntime", None
    extract = FeatureExtractor(GLOBAL)
    speech = speech_waveforms(GLOBAL, len(FRAMES), max(FRAMES))
    utterances = [
        extract(samples)[:, :frames] for samples, frames in zip(speech, FRAMES, strict=True)
    ]
    features, lengths = pad_features(utterances)
    if block_ms is None:
        found, counts = session.run(features, lengths)
    else:
        found, counts = run_in_blocks(session, features, lengths, 1)
    for rows, count, utterance in zip(found, counts, utterances, strict=True):
        alone, length = pad_features([utterance])
        with torch.inference_mode():
            wanted = network(torch.from_numpy(alone), torch.from_numpy(length))[0][0].numpy()
        assert count == len(wanted)
        decisive = np.maximum(wanted, rows[:count]) > -10
        assert np.abs(rows[:count] - wanted)[decisive].max() <= 2e-5


def test_the_file_is_a_quarter_of_its_size(lively_network, describe, tmp_path: Path):
    shape = ModelShape(hidden=512, layers=3)
    network = lively_network(shape)
    sizes = {}
    for precision in ("fp32", "int8"):
        model = build_graph(lower(network, columns=precision != "int8"), describe(shape, precision))
        onnx.checker.check_model(model, full_check=True)
        sizes[precision] = model.ByteSize()
    assert sizes["int8"] <= 0.27 * sizes["fp32"]


# Judged by words --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_words_of_real_speech(
    streaming: bool,
    digits_checkpoint: Path,
    streaming_checkpoint: Path,
    digit_strings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """At most 0.2 % of the words of the digit test strings differ from PyTorch's."""
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 457))
    checkpoint = streaming_checkpoint if streaming else digits_checkpoint
    export_format = ExportFormat(streaming=streaming)
    [exported] = export_onnx(
        checkpoint, tmp_path, ["int8"], digit_strings, export_format=export_format
    )
    assert Path(exported.path).name == (
        "model.streaming.int8.onnx" if streaming else "model.int8.onnx"
    )
    words = exported.report.words
    assert words is not None
    assert words.words == 600
    assert words.different <= 1
    again = verify_artifact(exported.path, checkpoint, few(digit_strings, tmp_path))
    assert again.words is not None
    assert again.passed


@pytest.mark.slow
def test_a_wrong_scale_is_noticed(
    digits_checkpoint: Path, digit_strings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))

    def wrong(matrix: np.ndarray) -> quantization.QuantizedMatrix:
        right = quantize(matrix)
        return right._replace(scale=right.scale * np.float32(2))

    monkeypatch.setattr(quantization, "quantize", wrong)
    anything = Tolerance(log_probs=1e9, tie=1e9, words=TOLERANCES["int8"].words, by_words=True)
    monkeypatch.setitem(TOLERANCES, "int8", anything)
    with pytest.raises(ParityError, match=r"of \d+ words differ \(allowed: 0\.2 %\)"):
        export_onnx(digits_checkpoint, tmp_path / "out", ["int8"], few(digit_strings, tmp_path))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_no_words_to_judge_by(
    digits_checkpoint: Path,
    digit_strings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """A network that says nothing would agree with anything."""
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))
    monkeypatch.setattr(verified_onnx, "Reference", silenced(verified_onnx.Reference))
    with pytest.raises(ParityError, match="recognises no words in it"):
        export_onnx(digits_checkpoint, tmp_path / "out", ["int8"], few(digit_strings, tmp_path))


def few(strings: Path, folder: Path) -> Path:
    """The first of them."""
    read_manifest(strings).subset(first=20).to_file(folder / "few.jsonl.gz")
    return folder / "few.jsonl.gz"


def silenced(reference: type) -> type:
    """A reference in which every recording is said to be silent, and decoded as such."""

    class Silent(reference):  # type: ignore[misc]
        texts = ("",)

        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            frame = np.zeros_like(self.recordings[0])[:, :2]
            self.recordings = [frame]
            self.texts = [""]

    return Silent


# Refused ----------------------------------------------------------------------------------------


def test_unquantisable_networks_are_refused(
    tmp_path: Path, digits_checkpoint: Path, tone_corpus: Path
):
    save_checkpoint(
        tmp_path / "gru.ckpt",
        load_checkpoint(digits_checkpoint).network.__class__(
            ModelShape(rnn="gru", hidden=8, layers=1)
        ),
        Recipe(model=ModelShape(rnn="gru", hidden=8, layers=1)),
        {},
    )
    with pytest.raises(ConfigError, match=r"gru\.ckpt: int8: .*--precision fp32"):
        export_onnx(tmp_path / "gru.ckpt", tmp_path, ["int8"])
    command = ["export", str(digits_checkpoint), "--out", str(tmp_path / "out")]
    for options, message in (
        (["--precision", "int8"], "digits.ckpt: int8 is verified with real speech: add --audio"),
        (["--precision", "int8", "--audio", "x", "--rtx"], "choose --precision fp16 for an engine"),
    ):
        result = CliRunner().invoke(app, [*command, *options])
        assert result.exit_code == 2
        assert message in result.stderr, result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_int8_is_refused_on_a_gpu(lively_network, describe, tmp_path: Path):
    shape = ModelShape(hidden=8, layers=1)
    description = describe(shape, "int8")
    path = tmp_path / "model.int8.onnx"
    onnx.save(build_graph(lower(lively_network(shape), columns=False), description), path)
    append_description(path, msgspec.structs.replace(description, parity={"passed": True}))
    for provider in ("cuda", "tensorrt", "rtx"):
        with pytest.raises(RuntimeUnavailableError, match="fp16 or fp32 file"):
            OnnxSession(path, "cuda", provider=provider)  # type: ignore[arg-type]
    result = CliRunner().invoke(app, ["export", str(path), "--rtx", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "choose --precision fp16 for an engine" in result.stderr
    assert OnnxSession(path).description.precision == "int8"
