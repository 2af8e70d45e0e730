"""Streaming and waveform graphs of one lowering, in ONNX Runtime and as TensorRT parses them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

import ds2deploy
from ds2deploy.cli.app import app
from ds2deploy.config import Recipe
from ds2deploy.export import verified_onnx
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.format import ExportFormat
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.export.parity.check import check_parity
from ds2deploy.export.parity.reference import Reference
from ds2deploy.export.parity.report import TOLERANCES
from ds2deploy.export.parity.speech import speech_waveforms
from ds2deploy.export.parsed_network.evaluator import NetworkSession
from ds2deploy.export.tensorrt import build_process
from ds2deploy.export.tensorrt.build import Job, job_profile
from ds2deploy.export.tensorrt.profiles import engine_profile
from ds2deploy.export.verification import verify_artifact
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.streaming import torch_session
from ds2deploy.runtimes.artifact import ArtifactDescription, ModelShape, Precision
from ds2deploy.runtimes.errors import ConfigError, FeaturesError, ParityError
from ds2deploy.runtimes.features import (
    FeatureConfig,
    FeatureExtractor,
    pad_features,
    pad_waveforms,
)
from ds2deploy.runtimes.geometry import CONV1, CONV2_DELAY
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.runtimes.streaming.state import run_in_blocks
from ds2deploy.runtimes.tensorrt.library import TensorRt

GLOBAL = FeatureConfig(normalize="global", mean=(0.1,) * 161, deviation=(0.3,) * 161)
SAMPLES = (15_999, 1, 700, 8_000, 160 * 33, 320 * 16, 4_000, 159)
"""Lengths of a ragged batch: within a window, within a block, at edges of both, and longer."""

SPEECH = [
    sound[:count]
    for sound, count in zip(
        speech_waveforms(GLOBAL, len(SAMPLES), max(SAMPLES) // 160 + 2), SAMPLES, strict=True
    )
]


def written(network, description: ArtifactDescription, path: Path) -> Path:
    model = build_graph(lower(network), description)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    append_description(path, description)
    return path


def sound_for(description: ArtifactDescription) -> tuple[Any, Any]:
    """The ragged batch as an artifact takes it."""
    if description.input == "waveform":
        return pad_waveforms(SPEECH)
    extract = FeatureExtractor(description.features)
    return pad_features([extract(samples) for samples in SPEECH])


def alone(network, features: FeatureConfig) -> list[np.ndarray]:
    """The reference: every utterance whole, alone, in torch on the features of numpy."""
    import torch

    extract, answers = FeatureExtractor(features), []
    for samples in SPEECH:
        sound, lengths = pad_features([extract(samples)])
        with torch.inference_mode():
            log_probs, _ = network(torch.from_numpy(sound), torch.from_numpy(lengths))
        answers.append(log_probs[0].numpy())
    return answers


def assert_near(found: tuple[Any, Any], expected: list[np.ndarray], tolerance: float) -> None:
    assert found[1].tolist() == [len(rows) for rows in expected]
    for rows, wanted in zip(found[0], expected, strict=True):
        ours = rows[: len(wanted)]
        decisive = np.maximum(ours, wanted) > -10
        assert np.abs(ours - wanted)[decisive].max() <= tolerance


# Every kind, in ONNX Runtime --------------------------------------------------------------------

CORNERS = {
    ("lstm", 1, "features"), ("lstm", 7, "waveform"), ("gru", 1, "waveform"),
    ("gru", 7, "features"), ("rnn", 1, "features"), ("rnn", 7, "waveform"),
}  # fmt: skip
KINDS = [
    *(
        pytest.param(*kind, "fp32", marks=() if kind in CORNERS else pytest.mark.slow)
        for kind in itertools.product(("lstm", "gru", "rnn"), (1, 7), ("features", "waveform"))
    ),
    ("lstm", 7, "waveform", "fp16"),
    ("gru", 7, "features", "fp16"),
    ("rnn", 1, "waveform", "fp16"),
]


@pytest.mark.parametrize(("cell", "lookahead", "sound", "precision"), KINDS)
def test_every_kind_in_blocks(
    cell: str,
    lookahead: int,
    sound: str,
    precision: Precision,
    lively_network,
    describe,
    tmp_path: Path,
):
    """Streams that begin later than one another, in blocks shorter and longer than the delay."""
    shape = ModelShape(rnn=cell, hidden=24, layers=2, bidirectional=False, lookahead=lookahead)
    network = lively_network(shape)
    expected = alone(network, GLOBAL)
    for block_ms, stagger in ((20, 3), (320, 1)):
        description = describe(shape, precision, GLOBAL, sound, block_ms)
        session = OnnxSession(written(network, description, tmp_path / "x.onnx"), threads=1)
        found = run_in_blocks(session, *sound_for(description), stagger)
        assert_near(found, expected, 2e-5 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("normalize", ["utterance", "global", "none"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_waveform_in(normalize: str, bidirectional: bool, lively_network, describe, tmp_path: Path):
    """A ragged batch, utterances within one window among it, and garbage past their ends."""
    features = GLOBAL if normalize == "global" else FeatureConfig(normalize=normalize)
    features = msgspec.structs.replace(features, scale=3.0)
    shape = ModelShape(hidden=24, layers=2, bidirectional=bidirectional, lookahead=4)
    network = lively_network(shape)
    description = describe(shape, "fp32", features, "waveform")
    session = OnnxSession(written(network, description, tmp_path / "x.onnx"), threads=1)
    waveform, lengths = sound_for(description)
    waveform = np.pad(waveform, ((0, 0), (0, 777)))
    for row, length in zip(waveform, lengths, strict=True):
        row[length:] = np.nan
    assert_near(session.run(waveform, lengths), alone(network, features), 1e-4)


@pytest.mark.parametrize("window_ms", [25, 64, 10, 5])
def test_windows_that_are_not_two_strides(
    window_ms: float, lively_network, describe, tmp_path: Path
):
    """Their frames are complete after, or long before, the block that they begin in."""
    bins = FeatureConfig(window_ms=window_ms).bins
    features = FeatureConfig(
        window_ms=window_ms, normalize="global", mean=(0.1,) * bins, deviation=(0.3,) * bins
    )
    shape = ModelShape(rnn="gru", hidden=16, layers=1, bidirectional=False, lookahead=3)
    network = lively_network(shape, bins=bins)
    expected = alone(network, features)
    for block_ms in (None, 20, 140):
        description = describe(shape, "fp32", features, "waveform", block_ms)
        session = OnnxSession(written(network, description, tmp_path / "x.onnx"), threads=1)
        assert_near(session.run(*sound_for(description)), expected, 2e-5)
    description = describe(shape, "fp32", features, "features", 40)
    path = written(network, description, tmp_path / "x.onnx")
    recognizer = ds2deploy.load(path, threads=1)  # whose extractor is behind its samples
    whole = ds2deploy.Recognizer(OnnxSession(
        written(network, describe(shape, "fp32", features), tmp_path / "y.onnx"), threads=1
    ))  # fmt: skip
    audio = [samples for samples in SPEECH if len(samples) >= 160]
    for ours, theirs in zip(
        recognizer.transcribe(audio, 16_000), whole.transcribe(audio, 16_000), strict=True
    ):
        assert ours.chars == theirs.chars
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)


def test_tensors_of_a_streaming_artifact(lively_network, describe, tmp_path: Path):
    """What a server must know: names, batch first, fixed blocks."""
    shape = ModelShape(hidden=24, layers=3, bidirectional=False, lookahead=5)
    description = describe(shape, "fp16", GLOBAL, "waveform", 320)
    model = onnx.load(written(lively_network(shape), description, tmp_path / "x.onnx"))
    found = {
        value.name: (
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
        )
        for value in (*model.graph.input, *model.graph.output)
    }
    states = {
        "waveform": ["batch", 160],
        "features": ["batch", 1, 161, 9],
        "conv1": ["batch", 32, 81, 10],
        "rnn": ["batch", 3, 24],
        "cell": ["batch", 3, 24],
        "lookahead": ["batch", 24, 4],
    }
    assert found == {
        "waveform": (["batch", 5120], "FLOAT"),
        "lengths": (["batch"], "INT64"),
        "state.position": (["batch", 1], "INT64"),
        **{f"state.{name}": (dims, "FLOAT") for name, dims in states.items()},
        "log_probs": (["batch", 16, 29], "FLOAT"),
        "output_lengths": (["batch"], "INT64"),
        "next.position": (["batch", 1], "INT64"),
        **{f"next.{name}": (dims, "FLOAT") for name, dims in states.items()},
    }
    assert description.inputs == tuple(value.name for value in model.graph.input)
    assert description.outputs == tuple(value.name for value in model.graph.output)
    assert not {node.op_type for node in model.graph.node} & {"Loop", "Scan", "If"}


# As TensorRT parses it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "precision", "sound"),
    [
        pytest.param("lstm", "fp32", "features", marks=pytest.mark.slow),
        ("lstm", "fp16", "waveform"),
        pytest.param("gru", "fp32", "waveform", marks=pytest.mark.slow),
        ("gru", "fp16", "features"),
    ],
)
def test_tensorrt_parses_computes_and_builds(
    cell: str,
    precision: Precision,
    sound: str,
    lively_network,
    describe,
    rtx: TensorRt,
    tmp_path: Path,
):
    """The network as parsed, evaluated on the CPU against torch; and a real engine of it."""
    shape = ModelShape(rnn=cell, hidden=24, layers=2, bidirectional=False, lookahead=7)
    network = lively_network(shape)
    expected = alone(network, GLOBAL)
    for block_ms in (320, None):
        description = describe(shape, precision, GLOBAL, sound, block_ms)
        path = written(network, description, tmp_path / "x.onnx")
        session = NetworkSession(path, rtx, description)
        stagger = () if block_ms is None else (1,)
        run = session.run if block_ms is None else lambda *batch: run_in_blocks(session, *batch)  # noqa: B023
        found = run(*sound_for(description), *stagger)
        assert_near(found, expected, 2e-5 if precision == "fp32" else 2e-2)
        profile = engine_profile(GLOBAL, (1, 4, 16), (0.5, 5, 30), description.blocks)
        job = Job(
            flavor="rtx",
            onnx=str(path),
            engine=str(tmp_path / "x.engine"),
            profile=job_profile(profile, description),
        )
        *_, layers = build_process.run_build(job, lambda phase: None)
        assert layers > 200
        assert (tmp_path / "x.engine").stat().st_size > 500_000


# The trained model ------------------------------------------------------------------------------


def export_streaming(checkpoint: Path, out: Path, frames: tuple[int, ...]) -> None:
    """Artifacts of features and samples, in fp32 and fp16, of which each is verified."""
    for waveform in (False, True):
        export_format = ExportFormat(streaming=True, waveform=waveform)
        for item in export_onnx(checkpoint, out, ["fp32", "fp16"], export_format=export_format):
            assert item.report.passed
            assert {(case.batch, case.frames) for case in item.report.cases} == {
                (batch, number) for batch in (1, 3, 8) for number in frames
            }
            limit = 1e-4 if item.precision == "fp32" else 0.1
            assert item.report.max_difference <= limit
            if item.precision == "fp32":
                assert all(case.same_text for case in item.report.cases)
                assert all(case.argmax_share == 1 for case in item.report.cases)


@pytest.fixture(scope="session")
def exported(streaming_checkpoint: Path, made_once: Callable[..., Path]) -> Path:
    """The artifacts of the trained model, without the longest utterances of the grid."""

    def write(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 120))
            export_streaming(streaming_checkpoint, folder, (40, 120))

    return made_once("exported_streams", write)


@pytest.mark.slow
def test_the_export_is_verified_on_the_whole_grid(streaming_checkpoint: Path, tmp_path: Path):
    export_streaming(streaming_checkpoint, tmp_path, (40, 457, 2000))


def test_export_writes_artifact_and_description(exported: Path):
    assert sorted(path.name for path in exported.iterdir()) == [
        "model.streaming.fp16.onnx",
        "model.streaming.onnx",
        "model.streaming.waveform.fp16.onnx",
        "model.streaming.waveform.onnx",
    ]
    description = OnnxSession(exported / "model.streaming.waveform.onnx").description
    assert (description.kind, description.input) == ("streaming", "waveform")
    assert description.parity is not None
    # 20 ms windows, 15 frames of convolutions, a lookahead of 10, blocks of 320 ms.
    assert description.parity["latency_ms"] == {
        "window": 10.0, "convolutions": 150.0, "lookahead": 180.0, "waiting": 300.0, "total": 640.0,
    }  # fmt: skip
    shown = CliRunner().invoke(app, ["inspect", str(exported / "model.streaming.onnx")])
    assert "640 ms" in shown.stdout
    assert "streaming" in shown.stdout


@pytest.mark.parametrize("sound", ["", ".waveform"])
@pytest.mark.parametrize("precision", ["", ".fp16"])
def test_the_trained_model_as_tensorrt_parses_it(
    exported: Path, streaming_checkpoint: Path, sound: str, precision: str, rtx: TensorRt
):
    path = exported / f"model.streaming{sound}{precision}.onnx"
    description = OnnxSession(path).description
    trusted = torch_session(load_checkpoint(streaming_checkpoint))
    reference = Reference(trusted, sound=description.input)
    session = NetworkSession(path, rtx, description)
    report = check_parity(session, reference, shapes=[(1, 40), (3, 200)])
    assert report.passed, report.failure()
    assert report.max_difference <= TOLERANCES[description.precision].log_probs
    assert all(case.same_text for case in report.cases)


def test_an_engine_of_the_trained_model(
    exported: Path, rtx: TensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On the way that a device takes: from the ONNX file, without the checkpoint."""
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 100))
    source = exported / "model.streaming.waveform.fp16.onnx"
    arguments = ["export", str(source), "--rtx", "--out", str(tmp_path), "--batch", "1,4,64"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    (item,) = json.loads(result.stdout)["artifacts"]
    assert item["network"]["passed"]
    assert item["profile"] == {"batch": [1, 4, 64], "frames": [32, 32, 32]}
    assert item["network"]["latency_ms"]["total"] == 640
    document = json.loads(Path(item["path"] + ".json").read_text())
    assert document["engine"]["rebuild"].endswith("--rtx --batch 1,4,64")
    inspected = CliRunner().invoke(app, ["inspect", item["path"]])
    assert "1 to 64 streams" in inspected.stdout
    result = CliRunner().invoke(app, [*arguments, "--seconds", "1,2,3"])
    assert result.exit_code == 2
    assert "--seconds" in result.stderr
    assert "omit the option" in result.stderr


@pytest.mark.thorough
def test_waveform_graphs_on_trained_models(
    digits_checkpoint: Path,
    streaming_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Against numpy's extractor and the graph of features: 1e-3, the same text, ragged batches."""
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 457))
    for checkpoint in (digits_checkpoint, streaming_checkpoint):
        (ours,) = export_onnx(checkpoint, tmp_path, export_format=ExportFormat(waveform=True))
        (theirs,) = export_onnx(checkpoint, tmp_path)
        assert ours.report.max_difference <= 1e-3
        assert all(case.same_text for case in ours.report.cases)
        waveform, features = OnnxSession(ours.path), OnnxSession(theirs.path)
        config = features.description.features
        speech = [
            sound[: 7_919 * (i + 1)]
            for i, sound in enumerate(speech_waveforms(config, utterances=6, frames=400))
        ]
        extract = FeatureExtractor(config)
        expected, counts = features.run(*pad_features([extract(sound) for sound in speech]))
        found, lengths = waveform.run(*pad_waveforms(speech))
        assert lengths.tolist() == counts.tolist()
        for rows, wanted, count in zip(found, expected, counts, strict=True):
            decisive = wanted[:count] > -10
            assert np.abs(rows[:count] - wanted[:count])[decisive].max() <= 1e-3
        with pytest.raises(FeaturesError, match="takes samples"):
            ds2deploy.load(ours.path).log_probs(np.zeros((1, 1, 161, 9)), [9])
        texts = [
            r.transcribe(speech, 16_000) for r in map(ds2deploy.load, (ours.path, theirs.path))
        ]
        assert [t.text for t in texts[0]] == [t.text for t in texts[1]]


@pytest.mark.thorough
def test_words_of_real_speech(
    streaming_checkpoint: Path, digit_strings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On the digit test strings: a good model, and the same words in blocks, in fp16 too."""
    from ds2deploy.data.manifest import read_manifest
    from ds2deploy.training.evaluation import evaluate

    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 457))
    export_format = ExportFormat(streaming=True)
    fp32, fp16 = export_onnx(
        streaming_checkpoint,
        tmp_path / "out",
        ["fp32", "fp16"],
        digit_strings,
        export_format=export_format,
    )
    assert fp32.report.words is not None
    assert fp32.report.words.words > 500
    assert fp32.report.words.different == 0
    assert fp32.report.max_difference <= 1e-4
    assert fp16.report.words is not None
    assert fp16.report.words.different <= 0.002 * fp16.report.words.words
    result = evaluate(ds2deploy.load(fp32.path), read_manifest(digit_strings), str(digit_strings))
    assert result.errors.words == 600
    assert result.wer <= 0.04


# A check that cannot fail is none ---------------------------------------------------------------


def rename_output(model: onnx.ModelProto, output: str, node: onnx.NodeProto) -> None:
    """Let another node give an output."""
    for old in model.graph.node:
        for place, name in enumerate(old.output):
            if name == output:
                old.output[place] = f"{output}/unused"
    model.graph.node.append(node)


def forget_the_state(model: onnx.ModelProto) -> None:
    zero = numpy_helper.from_array(np.float32(0), "damage/zero")
    model.graph.initializer.append(zero)
    node = onnx.helper.make_node("Mul", ["state.rnn", "damage/zero"], ["next.rnn"], "damage")
    rename_output(model, "next.rnn", node)


def keep_the_oldest_frames(model: onnx.ModelProto) -> None:
    """The convolution's context from the wrong end."""
    (node,) = [node for node in model.graph.node if node.name.endswith("features/kept")
               or node.output[0] == "features/kept"]  # fmt: skip
    for place, values in ((1, [0]), (2, [CONV1.history])):
        name = f"damage/{place}"
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
        node.input[place] = name


def begin_too_late(model: onnx.ModelProto) -> None:
    """Frames before the first count one output frame longer than they should."""
    found = [
        tensor
        for tensor in model.graph.initializer
        if tensor.name.startswith(f"range_-{CONV2_DELAY}_")
    ]
    assert found
    for tensor in found:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) - 1, tensor.name))


def do_not_mask_the_start(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.name == "conv2/inside":
            node.input[0] = node.input[1]


@pytest.mark.parametrize(
    "damage",
    [
        forget_the_state,
        begin_too_late,
        pytest.param(keep_the_oldest_frames, marks=pytest.mark.slow),
        pytest.param(do_not_mask_the_start, marks=pytest.mark.slow),
    ],
)
def test_damage_is_noticed_and_nothing_is_written(
    damage: Callable[[onnx.ModelProto], None],
    streaming_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def build(*arguments: Any) -> onnx.ModelProto:
        model = build_graph(*arguments)
        damage(model)
        return model

    monkeypatch.setattr(verified_onnx, "build_graph", build)
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))
    with pytest.raises(ParityError, match="fp32 artifact differ"):
        export_onnx(
            streaming_checkpoint, tmp_path / "out", export_format=ExportFormat(streaming=True)
        )
    assert not (tmp_path / "out").exists()


# What can stream, and what it is normalised by --------------------------------------------------


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_bidirectional_model_cannot_stream(digits_checkpoint: Path, tmp_path: Path):
    result = run("export", digits_checkpoint, "--out", tmp_path / "out", "--streaming")
    assert result.exit_code == 2
    assert "a bidirectional model needs the whole utterance" in result.stderr
    assert "digits-streaming" in result.stderr
    assert not (tmp_path / "out").exists()


def test_options_of_streams_alone(digits_checkpoint: Path, tone_manifests: Path, tmp_path: Path):
    for option, value in (("--block-ms", "40"), ("--statistics-from", tone_manifests / "x")):
        result = run("export", digits_checkpoint, "--out", tmp_path / "out", option, value)
        assert result.exit_code == 2
        assert f"{option}: only for streams; add --streaming" in result.stderr


@pytest.fixture
def per_utterance(lively_network, tmp_path: Path) -> Path:
    """A forward model that was trained on utterances normalised by themselves."""
    shape = ModelShape(hidden=16, layers=1, bidirectional=False, lookahead=3)
    recipe = Recipe(labels="_ABCD ", model=shape, features=FeatureConfig(sample_rate=8000))
    network = lively_network(shape, bins=81)
    network.output = type(network.output)(16, 6, bias=False)
    save_checkpoint(tmp_path / "forward.ckpt", network.eval(), recipe, {})
    return tmp_path / "forward.ckpt"


def test_statistics_replace_normalisation_per_utterance(
    per_utterance: Path, tone_manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 100))
    out, manifest = tmp_path / "out", tone_manifests / "train.jsonl.gz"
    refused = run("export", per_utterance, "--out", out, "--streaming")
    assert refused.exit_code == 2
    assert "normalised over the whole utterance" in refused.stderr
    assert "--statistics-from MANIFEST" in refused.stderr
    assert not out.exists()
    result = run("export", per_utterance, "--out", out, "--streaming", "--block-ms", "60",
                 "--statistics-from", manifest, "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    path = out / "model.streaming.onnx"
    description = OnnxSession(path).description
    assert description.statistics_from == "train.jsonl.gz"
    features = description.features
    assert features.normalize == "global"
    # One mean and one deviation: the spectrogram keeps the proportions that the network knows.
    assert len(set(features.mean)) == len(set(features.deviation)) == 1
    assert "train.jsonl.gz" in run("inspect", path).stdout
    # Compared with the same model so normalised; another model, or other statistics, are noticed.
    report = verify_artifact(path, per_utterance)
    assert report.passed
    assert report.same_checkpoint
    louder = msgspec.structs.replace(
        description,
        features=msgspec.structs.replace(features, mean=tuple(m + 1 for m in features.mean)),
    )
    append_description(path, louder)  # the last one counts
    assert not np.isclose(OnnxSession(path).description.features.mean[0], features.mean[0])


def test_statistics_are_not_asked_of_a_model_that_has_its_own(
    streaming_checkpoint: Path, tone_manifests: Path, tmp_path: Path
):
    manifest = tone_manifests / "train.jsonl.gz"
    result = run("export", streaming_checkpoint, "--out", tmp_path / "out", "--streaming",
                 "--statistics-from", manifest)  # fmt: skip
    assert result.exit_code == 2
    assert "its features are not normalised over whole utterances" in result.stderr


def test_an_export_format_on_the_command_line():
    export_format = ExportFormat(
        streaming=True, waveform=True, block_ms=40, statistics_from="a b.jsonl"
    )
    assert export_format.command() == [
        "--streaming", "--waveform", "--block-ms", "40", "--statistics-from", "a b.jsonl",
    ]  # fmt: skip
    assert ExportFormat().command() == []
    with pytest.raises(ConfigError, match="add --streaming"):
        ExportFormat(block_ms=20)
