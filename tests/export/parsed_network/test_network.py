"""The network as TensorRT parsed it, computed on the CPU: I3 without a GPU."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.config import Recipe
from ds2deploy.data.manifest import read_manifest
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.export.parity.check import check_parity
from ds2deploy.export.parity.reference import Reference, decode_all
from ds2deploy.export.parity.report import TOLERANCES
from ds2deploy.export.parsed_network import evaluator as network_evaluator
from ds2deploy.export.parsed_network.convolution import convolve
from ds2deploy.export.parsed_network.evaluator import NetworkEvaluator, NetworkSession
from ds2deploy.export.parsed_network.layers import Layer, ParsedNetwork
from ds2deploy.export.parsed_network.operations import divide
from ds2deploy.export.parsed_network.reader import read_network
from ds2deploy.export.parsed_network.rounding import round_bfloat16
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.session import TorchSession
from ds2deploy.runtimes.artifact import ModelShape, Precision
from ds2deploy.runtimes.errors import ModelFileError
from ds2deploy.runtimes.tensorrt.library import TensorRt
from ds2deploy.training.scoring import count_errors

RAGGED = [(1, 40), (3, 200), (8, 90)]


def written(checkpoint: Path, precision: Precision, path: Path) -> Path:
    """An artifact, written and not verified."""
    loaded = load_checkpoint(checkpoint)
    described = msgspec.structs.replace(loaded.description(), precision=precision)
    onnx.save(build_graph(lower(loaded.network), described), path)
    append_description(path, described)
    return path


def sessions(
    checkpoint: Path, precision: Precision, rtx: TensorRt, folder: Path
) -> tuple[NetworkSession, TorchSession]:
    loaded = load_checkpoint(checkpoint)
    described = msgspec.structs.replace(loaded.description(), precision=precision)
    path = written(checkpoint, precision, folder / f"{precision}.onnx")
    return NetworkSession(path, rtx, described), TorchSession(loaded.network, loaded.description())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_trained_model(
    precision: Precision, digits_checkpoint: Path, rtx: TensorRt, tmp_path: Path
):
    session, trusted = sessions(digits_checkpoint, precision, rtx, tmp_path)
    report = check_parity(session, Reference(trusted), shapes=RAGGED)
    assert report.passed, report
    assert report.runtime == f"network parsed by TensorRT-RTX {rtx.version}, on the CPU"
    if precision == "fp32":
        assert report.max_difference <= 1e-4
        assert all(case.argmax_share == 1 for case in report.cases)
    else:
        # Rounding shows, or the network was not computed in its types.
        assert report.max_difference > 1e-3


@pytest.mark.slow
def test_the_words_of_the_digit_strings(
    digits_checkpoint: Path,
    digit_strings: Path,
    rtx: TensorRt,
    tmp_path: Path,
):
    """At most 0.2 % may differ in fp16, every layer rounded to the network's types."""
    session, trusted = sessions(digits_checkpoint, "fp16", rtx, tmp_path)
    reference = Reference(trusted, ("test-joined", read_manifest(digit_strings)))
    errors = count_errors(reference.texts, decode_all(session, reference.recordings))
    assert errors.words >= 590
    assert errors.word_errors <= 0.002 * errors.words, errors


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("digits-bigru128x2", "fp16"),
        ("digits-unilstm160x2", "fp32"),
        pytest.param("digits-bigru128x2", "fp32", marks=pytest.mark.slow),
        pytest.param("digits-unilstm160x2", "fp16", marks=pytest.mark.slow),
    ],
)
def test_checkpoints_of_deepspeech_pytorch(
    name: str, precision: Precision, reference_checkpoints: Path, rtx: TensorRt, tmp_path: Path
):
    session, trusted = sessions(reference_checkpoints / f"{name}.ckpt", precision, rtx, tmp_path)
    report = check_parity(session, Reference(trusted), shapes=RAGGED)
    assert report.passed, report
    with np.load(reference_checkpoints / f"{name}.npz") as arrays:
        rows = zip(arrays["features"], arrays["lengths"], strict=True)
        texts = decode_all(session, [row[0, :, :length] for row, length in rows])
    expected = json.loads((reference_checkpoints / "expected.json").read_text())[name]
    assert texts == [item["hypothesis"] for item in expected["utterances"]]


KINDS = [
    (rnn, bidirectional, precision)
    for rnn, bidirectional, precision in itertools.product(
        ("lstm", "gru", "rnn"), (True, False), ("fp32", "fp16", "bf16")
    )
    if (rnn, precision) != ("gru", "bf16")  # which the parser refuses, below
]


@pytest.fixture
def kind_checkpoint(
    request: pytest.FixtureRequest, tmp_path: Path, lively_network
) -> tuple[Path, Precision]:
    rnn, bidirectional, precision = request.param
    shape = ModelShape(rnn=rnn, hidden=24, layers=2, bidirectional=bidirectional, lookahead=7)
    save_checkpoint(tmp_path / "x.ckpt", lively_network(shape), Recipe(model=shape), {})
    return tmp_path / "x.ckpt", precision


@pytest.mark.parametrize("kind_checkpoint", KINDS, indirect=True)
def test_every_kind(kind_checkpoint: tuple[Path, Precision], rtx: TensorRt, tmp_path: Path):
    checkpoint, precision = kind_checkpoint
    session, trusted = sessions(checkpoint, precision, rtx, tmp_path)
    report = check_parity(session, Reference(trusted), shapes=[(1, 40), (3, 200)])
    assert report.max_difference <= TOLERANCES[precision].log_probs, report
    shares = [case.argmax_share for case in report.cases]
    assert min(shares) > {"fp32": 0.999, "fp16": 0.97, "bf16": 0.8}[precision]


# A check that cannot fail is none ---------------------------------------------------------------


def change(model: onnx.ModelProto, name: str, to: Callable[[np.ndarray], np.ndarray]) -> None:
    (tensor,) = [item for item in model.graph.initializer if item.name == name]
    array = to(numpy_helper.to_array(tensor))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))


def swap_two_gates(model: onnx.ModelProto) -> None:
    def swapped(array: np.ndarray) -> np.ndarray:
        i, o, f, c = np.split(array, 4, axis=1)
        return np.concatenate([i, f, o, c], axis=1)

    for name in ("rnn2/W", "rnn2/R"):
        change(model, name, swapped)


def flip_the_reverse_direction(model: onnx.ModelProto) -> None:
    for name in ("rnn1/W", "rnn1/R", "rnn1/B"):
        change(model, name, lambda array: array[::-1])


def drop_the_mask(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "conv1/mask":
                node.input[place] = "conv1/clip"


DAMAGES = [swap_two_gates, flip_the_reverse_direction, drop_the_mask]


@pytest.fixture
def parser_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """What the parser reads is damaged; what ONNX Runtime has verified is not."""

    def install(damage: Callable[[onnx.ModelProto], None]) -> None:
        def damaged(path: Path, library: TensorRt) -> ParsedNetwork:
            model = onnx.load(path)
            damage(model)
            onnx.save(model, tmp_path / "damaged.onnx")
            return read_network(tmp_path / "damaged.onnx", library)

        monkeypatch.setattr(network_evaluator, "read_network", damaged)

    return install


def test_damage_leaves_no_engine(
    parser_is_given: Callable[..., None],
    digits_checkpoint: Path,
    rtx: TensorRt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))
    parser_is_given(drop_the_mask)  # `verify` is given the others too, below
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["export", str(digits_checkpoint), "--rtx", "--out", str(out)], prog_name="ds2deploy"
    )
    assert result.exit_code == 1, result.output
    assert f"the network that TensorRT-RTX {rtx.version} parsed from it differs from" in (
        result.stderr
    )
    assert "no engine was built: " in result.stderr
    assert not out.exists()


def test_verify_finds_none_where_there_is_none(
    digits_onnx: Path, digits_checkpoint: Path, rtx: TensorRt, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))
    arguments = ["verify", str(digits_onnx), str(digits_checkpoint), "--network"]
    assert CliRunner().invoke(app, arguments).exit_code == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_finds_damage(
    damage: Callable[[onnx.ModelProto], None],
    parser_is_given: Callable[..., None],
    digits_onnx: Path,
    digits_checkpoint: Path,
    rtx: TensorRt,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))
    arguments = ["verify", str(digits_onnx), str(digits_checkpoint), "--network"]
    parser_is_given(damage)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert "OVER TOLERANCE" in result.stdout


# What the parser refuses, and what is not known ----------------------------------------------


def parse_error(model: onnx.ModelProto, rtx: TensorRt, tmp_path: Path) -> str:
    onnx.save(model, tmp_path / "refused.onnx")
    with pytest.raises(ModelFileError) as raised:
        read_network(tmp_path / "refused.onnx", rtx)
    assert "\n" not in str(raised.value)
    return str(raised.value).removeprefix(f"{tmp_path / 'refused.onnx'}: ")


@pytest.fixture
def graph_of(lively_network, describe) -> Callable[[ModelShape, Precision], onnx.ModelProto]:
    return lambda shape, precision: build_graph(
        lower(lively_network(shape)), describe(shape, precision)
    )


def test_a_gru_in_bf16_says_what_to_choose(graph_of, rtx: TensorRt, tmp_path: Path):
    shape = ModelShape(rnn="gru", hidden=8, layers=2)
    message = parse_error(graph_of(shape, "bf16"), rtx, tmp_path)
    assert message.startswith(f"TensorRT-RTX {rtx.version} cannot parse recurrent layer 1 (GRU): ")
    assert "BFloat16 and Float" in message
    assert message.endswith("choose --precision fp16 or fp32, or train an LSTM")


def test_sequence_lens_in_fp16(graph_of, rtx: TensorRt, tmp_path: Path):
    model = graph_of(ModelShape(hidden=8, layers=1), "fp16")
    (lstm,) = [node for node in model.graph.node if node.op_type == "LSTM"]
    lstm.input[4] = "lengths32"
    cast = onnx.helper.make_node("Cast", ["output_lengths"], ["lengths32"], "cast", to=6)
    model.graph.node.insert(list(model.graph.node).index(lstm), cast)
    message = parse_error(model, rtx, tmp_path)
    assert "LSTM in fp16" in message
    assert "Float and Half: choose --precision fp32" in message


def test_an_operator_that_the_parser_lacks(graph_of, rtx: TensorRt, tmp_path: Path):
    model = graph_of(ModelShape(hidden=8, layers=1), "fp32")
    model.graph.node.append(onnx.helper.make_node("NonZero", ["log_probs"], ["where"], "where"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("where", 7, None))
    assert "cannot parse where (NonZero): the operator NonZero is not supported" in (
        parse_error(model, rtx, tmp_path)
    )


def test_a_file_that_is_not_onnx(rtx: TensorRt, tmp_path: Path):
    (tmp_path / "x.onnx").write_bytes(b"not onnx at all" * 9)
    with pytest.raises(ModelFileError, match=r"x\.onnx: damaged, or not an ONNX model"):
        read_network(tmp_path / "x.onnx", rtx)


def test_a_layer_that_is_not_known_is_named(
    digits_onnx: Path, rtx: TensorRt, monkeypatch: pytest.MonkeyPatch
):
    from ds2deploy.export.parsed_network import reader as network_reader

    monkeypatch.delitem(network_reader.LAYERS, "SOFTMAX")
    with pytest.raises(ModelFileError, match="layer 'log_probs' of kind SOFTMAX"):
        read_network(digits_onnx, rtx)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("ACTIVATION", {"type": "SELU", "alpha": 0.0, "beta": 0.0}),
        ("ELEMENTWISE", {"op": "LOGICAL_SHIFT"}),
        ("UNARY", {"op": "ERF"}),
        ("REDUCE", {"op": "NORM", "axes": 1, "keep_dims": False}),
        ("SLICE", {"mode": "WRAP", "axes": None}),
        ("FILL", {"operation": "RANDOM_UNIFORM"}),
        ("MATRIX_MULTIPLY", {"op0": "VECTOR", "op1": "NONE"}),
    ],
)
def test_a_variant_that_is_not_known_is_named(kind: str, attributes: dict[str, object]):
    layer = Layer(kind, "odd one", ("x", "y"), ("z",), attributes)
    network = ParsedNetwork("TensorRT", ("x", "y"), ("z",), (layer,), {"z": "FLOAT"})
    name, value = next(iter(attributes.items()))
    with pytest.raises(ModelFileError, match=rf"'odd one' \({kind}\): .* {name} = {value}"):
        NetworkEvaluator(network)


def test_a_type_that_is_not_known_is_named():
    layer = Layer("UNARY", "odd one", ("x",), ("z",), {"op": "EXP"})
    network = ParsedNetwork("TensorRT", ("x",), ("z",), (layer,), {"z": "FP8"})
    with pytest.raises(ModelFileError, match=r"'odd one' .* FP8"):
        NetworkEvaluator(network)


# The operations, against torch --------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_convolution_is_torchs(data: st.DataObject):
    draw = data.draw
    flat = draw(st.booleans())
    axes = 1 if flat else 2
    groups, depth, per_group = draw(st.sampled_from([(1, 3, 4), (2, 2, 3), (4, 1, 1)]))
    kernel = tuple(draw(st.integers(1, 5)) for _ in range(axes))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    padding = tuple(draw(st.integers(0, 4)) for _ in range(axes))
    random = np.random.default_rng(0)
    x = random.standard_normal((2, groups * depth, *[12] * axes)).astype(np.float32)
    weight = random.standard_normal((groups * per_group, depth, *kernel)).astype(np.float32)
    bias = random.standard_normal(groups * per_group).astype(np.float32)
    expected = (torch.conv1d if flat else torch.conv2d)(
        torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(bias), stride, padding,
        dilation, groups,
    ).numpy()  # fmt: skip
    attributes = {
        "kernel": weight.ravel(), "bias": bias, "kernel_size_nd": kernel,
        "num_output_maps": len(weight), "num_groups": groups, "stride_nd": stride,
        "dilation_nd": dilation, "pre_padding": padding, "post_padding": padding,
    }  # fmt: skip
    np.testing.assert_allclose(convolve(x, attributes), expected, atol=2e-5)


@given(st.floats(width=32, allow_nan=True, allow_infinity=True))
def test_bfloat16_is_rounded_as_others_round_it(value: float):
    x = np.array([value], np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            round_bfloat16(x), x.astype(ml_dtypes.bfloat16).astype(np.float32)
        )


def test_integers_are_divided_towards_zero():
    x, y = np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])
    np.testing.assert_array_equal(divide(x, y), [3, -3, -3, 3])


@pytest.mark.slow
def test_the_files_of_an_export_parse(digits_checkpoint: Path, rtx: TensorRt, tmp_path: Path):
    """The description inside the file is no obstacle."""
    exported = export_onnx(digits_checkpoint, tmp_path, ["fp16"])
    assert len(read_network(exported[0].path, rtx).layers) > 250


def test_last_values_are_those_after_the_last_step(rtx: TensorRt, tmp_path: Path):
    """Y_h and Y_c of an LSTM, which a streaming graph hands on; against ONNX Runtime."""
    import onnxruntime

    random = np.random.default_rng(0)
    time, batch, inputs, hidden = 7, 3, 5, 4
    arrays = {
        "W": random.standard_normal((2, 4 * hidden, inputs)).astype(np.float32),
        "R": random.standard_normal((2, 4 * hidden, hidden)).astype(np.float32),
        "B": random.standard_normal((2, 8 * hidden)).astype(np.float32),
    }
    node = onnx.helper.make_node(
        "LSTM", ["x", *arrays], ["y", "y_h", "y_c"], "lstm", hidden_size=hidden,
        direction="bidirectional",
    )  # fmt: skip
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "states",
        [onnx.helper.make_tensor_value_info("x", kind, ["time", "batch", inputs])],
        [onnx.helper.make_tensor_value_info(name, kind, None) for name in node.output],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "states.onnx")
    x = random.standard_normal((time, batch, inputs)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(tmp_path / "states.onnx")).run(None, {"x": x})
    found = NetworkEvaluator(read_network(tmp_path / "states.onnx", rtx)).run({"x": x})
    for name, array in zip(node.output, expected, strict=True):
        np.testing.assert_allclose(found[name], array, atol=1e-6, err_msg=name)


def one_layer(kind: str, inputs: dict[str, np.ndarray], **attributes: object) -> np.ndarray:
    layer = Layer(kind, "one", tuple(inputs), ("z",), attributes)
    network = ParsedNetwork("TensorRT", tuple(inputs), ("z",), (layer,), {"z": "FLOAT"})
    return NetworkEvaluator(network).run(inputs)["z"]


@pytest.mark.parametrize(
    ("start", "size", "stride", "expected"),
    [
        (1, 3, 1, [1, 2, 3]),
        (4, 3, -1, [4, 3, 2]),
        (0, 3, 2, [0, 2, 4]),
        (2, 4, 0, [2, 2, 2, 2]),
        (0, 6, 1, [0, 1, 2, 3, 4, 5]),
        (3, 0, 2, []),
    ],
)
def test_slices(start: int, size: int, stride: int, expected: list[int]):
    x = np.arange(6, dtype=np.float32)
    given = {"start": (start,), "shape": (size,), "stride": (stride,), "axes": None}
    result = one_layer("SLICE", {"x": x}, mode="STRICT_BOUNDS", **given)
    np.testing.assert_array_equal(result, expected)


def test_a_slice_out_of_bounds_is_an_error():
    given = {"start": (4,), "shape": (3,), "stride": (1,), "axes": None, "mode": "STRICT_BOUNDS"}
    with pytest.raises(ModelFileError, match="bounds"):
        one_layer("SLICE", {"x": np.arange(6, dtype=np.float32)}, **given)


def test_an_iterator_goes_back_from_the_last_step():
    """Three steps over five frames, backwards: 2, 1, 0 (the bindings' text of add_iterator)."""
    loop = {"loop": "L"}
    layers = (
        Layer("TRIP_LIMIT", "limit", ("steps",), (), {"kind": "COUNT", **loop}),
        Layer("ITERATOR", "i", ("x",), ("item",), {"axis": 0, "reverse": True, **loop}),
        Layer("UNARY", "negative", ("item",), ("n",), {"op": "NEG"}),
        Layer("LOOP_OUTPUT", "o", ("n", "steps"), ("z",), {"axis": 0, "kind": "REVERSE", **loop}),
    )
    dtypes = {"item": "FLOAT", "n": "FLOAT", "z": "FLOAT"}
    network = ParsedNetwork("TensorRT", ("x", "steps"), ("z",), layers, dtypes)
    x = np.arange(5, dtype=np.float32)[:, None]
    result = NetworkEvaluator(network).run({"x": x, "steps": np.array(3)})["z"]
    np.testing.assert_array_equal(result, [[0], [-1], [-2]])
