"""Weights that are not numbers are named in every command, and wrapped ones are found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

import ds2deploy
from ds2deploy.cli.app import app
from ds2deploy.config import Recipe
from ds2deploy.data.preparation import PrepareOptions, prepare
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.weights import build_network
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import DeviceError, ModelFileError, NotFiniteError, ParityError
from ds2deploy.runtimes.onnx.session import OnnxSession, describe_artifact
from ds2deploy.runtimes.onnx.weights import check_weights
from ds2deploy.training.resuming import begin
from ds2deploy.training.run_folder import RunFolder

RATE = 8000
SPEECH = np.random.default_rng(0).uniform(-0.3, 0.3, RATE // 2).astype(np.float32)
NAME = "rnns.0.rnn.weight_hh_l0"
HUGE = 3e38
"""A number in float32 whose sums are none."""


def edit(checkpoint: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    document = torch.load(checkpoint, weights_only=True)
    change(document)
    torch.save(document, path)
    return path


def break_weight(
    name: str = NAME, value: float = float("nan")
) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        document["state_dict"][name].view(-1)[-1] = value

    return change


@pytest.fixture
def broken(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with one weight that is NaN."""
    return edit(small_checkpoint, tmp_path / "broken.ckpt", break_weight())


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "speech"
    folder.mkdir()
    for i in range(4):
        soundfile.write(folder / f"{i}.wav", SPEECH, RATE)
        (folder / f"{i}.txt").write_text("GOOD\n")
    prepare(folder, tmp_path / "manifests", Alphabet(), PrepareOptions())
    return tmp_path / "manifests" / "train.jsonl.gz"


def refused(*arguments: object) -> str:
    """The line on stderr of a command that must fail because of its input."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def test_every_command_names_the_weight_of_a_checkpoint(
    broken: Path,
    small_onnx: Path,
    small_recipe: Recipe,
    manifest: Path,
    tmp_path: Path,
    recipe_file: Callable[[Recipe, Path], Path],
):
    audio = manifest.parent.parent / "speech" / "0.wav"
    recipe = recipe_file(small_recipe, tmp_path / "recipe.toml")
    train = ["train", recipe, "--set", f"training.run={tmp_path / 'run'}"]
    train += ["--set", f"data.train={manifest}", "--set", f"data.valid={manifest}"]
    out = tmp_path / "deploy"
    for call in (
        ["transcribe", broken, audio],
        ["evaluate", broken, manifest],
        ["export", broken, "--out", out],
        ["verify", small_onnx, broken],
        ["inspect", broken],
        ["bench", broken, "--rounds", "1"],
        [*train, "--set", f"training.start={broken}"],
    ):
        line = refused(*call)
        assert str(broken) in line, call
        assert repr(NAME) in line, call
    assert not out.exists()
    assert not (tmp_path / "run").exists()


def test_every_command_names_the_weight_of_an_artifact(
    small_onnx: Path, small_checkpoint: Path, manifest: Path, tmp_path: Path
):
    path = tmp_path / "broken.onnx"
    break_initializer(small_onnx, path, "rnn1/R", float("nan"))
    audio = manifest.parent.parent / "speech" / "0.wav"
    for call in (
        ["transcribe", path, audio],
        ["evaluate", path, manifest],
        ["export", path, "--out", tmp_path / "deploy", "--rtx"],
        ["verify", path, small_checkpoint],
        ["inspect", path],
        ["bench", path, "--rounds", "1"],
    ):
        line = refused(*call)
        assert str(path) in line, call
        assert "'rnn1/R'" in line, call


def test_resume_names_the_weight(small_checkpoint: Path, small_recipe: Recipe, tmp_path: Path):
    def change(document: dict[str, Any]) -> None:
        break_weight()(document)
        document.update(position={}, precision={}, optimizer_states=[], lr_schedulers=[])

    folder = tmp_path / "run"
    folder.mkdir()
    last = edit(small_checkpoint, folder / "last.ckpt", change)
    with pytest.raises(ModelFileError, match=NAME) as raised:
        begin(RunFolder(folder), small_recipe, resume=True)
    assert str(last) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (NAME, float("inf")),
        (NAME, float("-inf")),
        ("conv.layers.0.weight", float("nan")),
        ("conv.layers.1.running_mean", float("nan")),
        ("conv.layers.1.running_var", -0.1),
        ("output.weight", float("nan")),
    ],
)
def test_weights_that_no_network_can_have_are_named(
    name: str, value: float, small_checkpoint: Path, tmp_path: Path
):
    path = edit(small_checkpoint, tmp_path / "bad.ckpt", break_weight(name, value))
    with pytest.raises(ModelFileError, match="use an earlier checkpoint") as raised:
        load_checkpoint(path)
    assert repr(name) in str(raised.value)


def test_a_weight_of_float64_that_float32_cannot_hold(small_checkpoint: Path, tmp_path: Path):
    def change(document: dict[str, Any]) -> None:
        document["state_dict"][NAME] = document["state_dict"][NAME].double() + 1e300

    with pytest.raises(ModelFileError, match=NAME):
        load_checkpoint(edit(small_checkpoint, tmp_path / "bad.ckpt", change))


def fill_output(document: dict[str, Any]) -> None:
    document["state_dict"]["output.weight"].fill_(HUGE)


def test_large_weights_are_weights(small_checkpoint: Path, tmp_path: Path):
    """Their sum is infinite, they are not."""
    path = edit(small_checkpoint, tmp_path / "huge.ckpt", fill_output)
    assert load_checkpoint(path).network.output.weight.max() == np.float32(HUGE)


def test_log_probabilities_that_are_not_numbers_are_no_silence(
    small_checkpoint: Path, tmp_path: Path
):
    """Weights that are numbers, and sums that are none: what else overflows ends here too."""
    checkpoint = edit(small_checkpoint, tmp_path / "huge.ckpt", fill_output)
    loaded = load_checkpoint(checkpoint)
    path = tmp_path / "huge.onnx"
    onnx.save(build_graph(lower(loaded.network), loaded.description()), path)
    append_description(path, loaded.description())
    audio = tmp_path / "a.wav"
    soundfile.write(audio, SPEECH, RATE)
    for model in (checkpoint, path):
        line = refused("transcribe", model, audio)
        assert "huge.ckpt" in line
        assert "ds2deploy verify" in line
        with pytest.raises(NotFiniteError):
            ds2deploy.load(model).transcribe(np.tile(SPEECH, 10), RATE, window_s=4.0)
    with pytest.raises(DeviceError, match=r"huge\.ckpt"):
        export_onnx(checkpoint, tmp_path / "deploy")
    assert not (tmp_path / "deploy").exists()


def test_a_stream_that_is_not_numbers_is_no_silence(streaming_checkpoint: Path, tmp_path: Path):
    checkpoint = edit(streaming_checkpoint, tmp_path / "huge.ckpt", fill_output)
    with ds2deploy.load(checkpoint) as recognizer:
        stream = recognizer.stream(RATE)
        with pytest.raises(NotFiniteError, match=r"huge\.ckpt"):
            stream.accept(np.tile(SPEECH, 6))


def test_weights_that_fp16_cannot_hold_are_named(small_checkpoint: Path, tmp_path: Path):
    def change(document: dict[str, Any]) -> None:
        document["state_dict"][NAME][3] = 1e6

    checkpoint = edit(small_checkpoint, tmp_path / "large.ckpt", change)
    with pytest.raises(ParityError, match=r"large\.ckpt: .*'rnn1/R'.* 1e\+06.*fp32"):
        export_onnx(checkpoint, tmp_path / "deploy", ["fp16"])
    assert not (tmp_path / "deploy").exists()


# ONNX files -----------------------------------------------------------------------------------


def break_initializer(source: Path, path: Path, name: str, value: float) -> None:
    model = onnx.load(source)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[array.size // 2] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)


def initializers(path: Path) -> list[str]:
    return [
        tensor.name
        for tensor in onnx.load(path).graph.initializer
        if numpy_helper.to_array(tensor).dtype.name in ("float32", "float16", "bfloat16")
    ]


@pytest.mark.parametrize(
    ("precision", "value"),
    [
        *(("fp32", float(value)) for value in ("nan", "inf", "-inf")),
        ("fp16", float("nan")),
        ("fp16", float("inf")),
        ("bf16", float("nan")),
        ("bf16", float("-inf")),
    ],
)
def test_every_initializer_is_looked_at(
    precision: Any, value: float, small_checkpoint: Path, tmp_path: Path
):
    loaded = load_checkpoint(small_checkpoint)
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    description = msgspec.structs.replace(loaded.description(), precision=precision)
    onnx.save(build_graph(lower(loaded.network), description), good)
    append_description(good, description)
    check_weights(good)
    names = initializers(good)
    assert {"rnn1/W", "rnn1/R", "output/weight", "conv1/weight"} <= set(names)
    for name in names:
        break_initializer(good, bad, name, value)
        with pytest.raises(ModelFileError, match="export it again") as raised:
            check_weights(bad)
        assert f"{bad}: weights {name!r}" in str(raised.value)
    with pytest.raises(ModelFileError, match="NaN or infinity"):
        describe_artifact(bad)


def test_the_largest_numbers_are_numbers(small_onnx: Path, tmp_path: Path):
    path = tmp_path / "large.onnx"
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64):
        model = onnx.load(small_onnx)
        largest = ml_dtypes.finfo(dtype).max
        array = np.array([largest, largest, -largest, 0], dtype)
        model.graph.initializer.append(numpy_helper.from_array(array, "largest"))
        onnx.save(model, path)
        check_weights(path)


def test_values_in_a_list_are_looked_at(small_onnx: Path, tmp_path: Path):
    """Other tools write numbers as a list, and not as bytes."""
    model, path = onnx.load(small_onnx), tmp_path / "list.onnx"
    values = [1.0, float("nan")]
    model.graph.initializer.append(onnx.helper.make_tensor("listed", 1, [2], values))
    assert not model.graph.initializer[-1].raw_data
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="'listed'"):
        check_weights(path)


def test_damage_is_left_to_who_opens_the_file(small_onnx: Path, tmp_path: Path):
    content, path = small_onnx.read_bytes(), tmp_path / "damaged.onnx"
    for damaged in (content[:-1], content[: len(content) // 2], b"\xff" * 99, b"hello", b"\x3f"):
        path.write_bytes(damaged)
        check_weights(path)
        with pytest.raises(ModelFileError, match=r"damaged|no description"):
            OnnxSession(path)


# Names ----------------------------------------------------------------------------------------

PREFIXES = [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.",
    "network.",
    "model._orig_mod.module.",
    "network.model.",
]


def renamed(rename: Callable[[str], str]) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        weights = document["state_dict"]
        document["state_dict"] = {rename(name): weight for name, weight in weights.items()}

    return change


RENAMES: list[Callable[[str], str]] = [
    *(lambda name, prefix=prefix: prefix + name for prefix in PREFIXES),  # type: ignore[misc]
    lambda name: name.replace("rnns.0.", "rnns.0._orig_mod."),
    lambda name: name if name.startswith("conv") else f"module.{name}",
]


def same_weights(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


@pytest.mark.parametrize("rename", RENAMES)
def test_wrapped_weights_load(rename: Callable[[str], str], small_checkpoint: Path, tmp_path: Path):
    path = edit(small_checkpoint, tmp_path / "wrapped.ckpt", renamed(rename))
    good = load_checkpoint(small_checkpoint).network
    assert same_weights(load_checkpoint(path).network, good)


def test_the_weights_of_what_torch_wraps_load(small_recipe: Recipe, tmp_path: Path):
    """The names are those that the wrappers themselves give."""
    network = build_network(small_recipe)
    for i, wrapped in enumerate(
        (
            torch.nn.DataParallel(network),
            torch.compile(network),
            torch.nn.DataParallel(torch.compile(network)),  # type: ignore[arg-type]
        )
    ):
        path = tmp_path / f"{i}.ckpt"
        save_checkpoint(path, wrapped, small_recipe, {})  # type: ignore[arg-type]
        assert next(iter(torch.load(path)["state_dict"])) != "conv.layers.0.weight"
        assert same_weights(load_checkpoint(path).network, network)


def test_two_weights_for_one_parameter(small_checkpoint: Path, tmp_path: Path):
    def change(document: dict[str, Any]) -> None:
        document["state_dict"][f"module.{NAME}"] = document["state_dict"][NAME]

    with pytest.raises(ModelFileError, match=r"contains weights .* twice") as raised:
        load_checkpoint(edit(small_checkpoint, tmp_path / "twice.ckpt", change))
    assert NAME in str(raised.value)


# deepspeech.pytorch ---------------------------------------------------------------------------


def foreign_name(name: str) -> str:
    """Deepspeech.pytorch's name of one of our parameters."""
    for ours, theirs in (
        ("conv.layers.", "conv.seq_module."),
        ("lookahead.conv.", "lookahead.0.conv."),
        ("output_norm.", "fc.0.module.0."),
        ("output.", "fc.0.module.1."),
    ):
        name = name.replace(ours, theirs) if name.startswith(ours) else name
    return name.replace(".batch_norm.", ".batch_norm.module.")


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint that is laid out like deepspeech.pytorch's."""

    def write(rename: Callable[[str], str] = str, labels: Any = "_'AB ", **weights: Any) -> Path:
        model = {"rnn_type": "gru", "hidden_size": 8, "hidden_layers": 2}
        recipe = {
            "labels": "_'AB ",
            "model": {"rnn": "gru", "hidden": 8, "layers": 2},
            "features": {"sample_rate": 8000},
        }
        torch.manual_seed(0)
        network = build_network(msgspec.convert(recipe, Recipe))
        state = {rename(foreign_name(name)): w for name, w in network.state_dict().items()}
        spectrogram = {
            "sample_rate": 8000,
            "window_size": 0.02,
            "window_stride": 0.01,
            "window": "hamming",
        }
        hyper = {"model_cfg": model, "spect_cfg": spectrogram, "labels": labels}
        path = tmp_path / "foreign.ckpt"
        torch.save({"state_dict": state | weights, "hyper_parameters": hyper}, path)
        return path

    return write


@pytest.mark.parametrize("rename", [RENAMES[0], RENAMES[2], *RENAMES[-2:]])
def test_wrapped_weights_of_deepspeech_pytorch_load(
    rename: Callable[[str], str], foreign: Callable[..., Path], tmp_path: Path
):
    good = load_checkpoint(shutil.copy(foreign(), tmp_path / "good.ckpt"))
    assert good.source.kind == "deepspeech.pytorch"
    assert same_weights(load_checkpoint(foreign(rename)).network, good.network)


def test_nan_weights_of_deepspeech_pytorch(foreign: Callable[..., Path]):
    bad = {"fc.0.module.1.weight": torch.full((5, 8), float("nan"))}
    with pytest.raises(ModelFileError, match="40 of 40") as raised:
        load_checkpoint(foreign(**bad))
    assert "foreign.ckpt" in str(raised.value)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["_", "'", "A", "SH", " "], "'SH'"),
        (["_", "'", "A", "", " "], "''"),
        (["_", "'", "A", "E\u0301", " "], "'E\u0301'"),
        (["_", "'", "A", "A", " "], "duplicate labels 'A'"),
        (["'", "_", "A", "B", " "], "blank '_' is label 1"),
        (["_", "'", "A", 7, " "], "not text"),
    ],
)
def test_labels_that_are_not_ours_are_named(
    labels: list[Any], words: str, foreign: Callable[..., Path]
):
    path = foreign(labels=labels)
    with pytest.raises(ModelFileError, match="label") as raised:
        load_checkpoint(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert words in str(raised.value)
    assert words in refused("inspect", path)


def test_labels_in_a_list_are_those_of_a_text(foreign: Callable[..., Path]):
    assert load_checkpoint(foreign(labels=list("_'AB "))).recipe.labels == "_'AB "


def test_a_weight_whose_name_is_no_text(foreign: Callable[..., Path], tmp_path: Path):
    document = torch.load(foreign(), weights_only=True)
    document["state_dict"][5] = torch.zeros(1)
    torch.save(document, tmp_path / "odd.ckpt")
    with pytest.raises(ModelFileError, match="'5' is not a parameter"):
        load_checkpoint(tmp_path / "odd.ckpt")


@pytest.mark.parametrize("width", [9, 13])
@pytest.mark.parametrize("number", [0, 3])
def test_a_checkpoint_of_another_kernel_says_so(
    number: int, width: int, small_checkpoint: Path, tmp_path: Path
):
    name = f"conv.layers.{number}.weight"

    def widen(document: dict[str, Any]) -> None:
        weights = document["state_dict"]
        weights[name] = torch.zeros(*weights[name].shape[:3], width)

    path = edit(small_checkpoint, tmp_path / "kernel.ckpt", widen)
    with pytest.raises(ModelFileError, match="another convolution kernel") as raised:
        load_checkpoint(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert f"x {width} " in message
    assert "x 11; " in message
    assert "train again" in message
    assert "restore" not in message
    assert "another convolution kernel" in refused("inspect", path)


def test_a_checkpoint_of_deepspeech_pytorch_with_another_kernel_says_so(
    foreign: Callable[..., Path],
):
    path = foreign(**{"conv.seq_module.0.weight": torch.zeros(32, 1, 41, 13)})
    with pytest.raises(ModelFileError, match=r"another convolution kernel.*train again") as raised:
        load_checkpoint(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_kernel_of_no_size_is_damage(small_checkpoint: Path, tmp_path: Path):
    def empty(document: dict[str, Any]) -> None:
        document["state_dict"]["conv.layers.0.weight"] = torch.zeros(32, 1, 41, 0)

    path = edit(small_checkpoint, tmp_path / "kernel.ckpt", empty)
    with pytest.raises(ModelFileError, match=r"needs.*restore the original"):
        load_checkpoint(path)


# Files that ask for all memory --------------------------------------------------------------------


def test_a_recipe_of_a_larger_network_takes_no_memory_for_it(
    small_checkpoint: Path, tmp_path: Path
):
    """The recurrent layers alone would take terabytes."""

    def enlarge(document: dict[str, Any]) -> None:
        document["ds2deploy"]["recipe"]["model"].update(hidden=65_536, layers=100)

    path = edit(small_checkpoint, tmp_path / "large.ckpt", enlarge)
    with pytest.raises(ModelFileError, match="but its recipe") as raised:
        load_checkpoint(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_one_number_that_pretends_to_be_many(foreign: Callable[..., Path]):
    wide = torch.zeros(1).expand(1 << 20, 1 << 20)
    path = foreign(**{"fc.0.module.1.weight": wide})
    with pytest.raises(ModelFileError, match=r"fc\.0\.module\.1\.weight") as raised:
        load_checkpoint(path)
    assert str(raised.value).startswith(f"{path}: ")


class Disguised(torch.Tensor):
    """Pickled as a tensor whose method is a number."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        tensor = self.as_subclass(torch.Tensor)
        rebuild, args = tensor.__reduce_ex__(protocol)
        return torch._tensor._rebuild_from_type_v2, (rebuild, torch.Tensor, args, {"is_complex": 1})


ODD_WEIGHTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sparse": torch.Tensor.to_sparse,
    "complex64": lambda ones: ones.to(torch.complex64),
    "not in the file": lambda ones: ones.to("meta"),
    "qint8": lambda ones: torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("kind", ODD_WEIGHTS)
@pytest.mark.filterwarnings("ignore")
def test_weights_of_another_kind_are_refused(
    kind: str, foreign: Callable[..., Path], small_checkpoint: Path, tmp_path: Path
):
    odd = ODD_WEIGHTS[kind](torch.ones(5, 8))
    ours = edit(
        small_checkpoint,
        tmp_path / "ours.ckpt",
        lambda document: document["state_dict"].update({"output.weight": odd}),
    )
    for path in (foreign(**{"fc.0.module.1.weight": odd}), ours):
        with pytest.raises(ModelFileError, match=kind) as raised:
            load_checkpoint(path)
        assert str(raised.value).startswith(f"{path}: ")


def test_attributes_that_a_pickle_sets_on_weights_are_dropped(foreign: Callable[..., Path]):
    disguised = torch.ones(5, 8).as_subclass(Disguised)
    checkpoint = load_checkpoint(foreign(**{"fc.0.module.1.weight": disguised}))
    assert checkpoint.network.output.weight.eq(1).all()
