"""The command line from a folder of recordings to text, with `--json` at every step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import soundfile
from typer.testing import CliRunner, Result

import ds2deploy
from ds2deploy.cli.app import app
from ds2deploy.runtimes.tensorrt.cuda import examine_device

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = [
    "prepare",
    "train",
    "evaluate",
    "export",
    "verify",
    "lm",
    "tune",
    "transcribe",
    "bench",
    "inspect",
    "doctor",
    "demo",
]


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result


def run_json(*arguments: str | Path, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds that are like speech, stereo, at another rate than the model's."""
    import numpy as np

    from ds2deploy.export.parity.speech import synthesize

    path = tmp_path_factory.mktemp("audio") / "speech.flac"
    soundfile.write(path, np.stack([synthesize(22050, 44100, seed=1)] * 2, axis=1), 22050)
    return path


def test_every_command_has_help_with_an_example():
    for command in COMMANDS:
        assert f"Example: ds2deploy {command}" in run(command, "--help").stdout


def test_version():
    assert re.fullmatch(r"ds2deploy \d+\.\d+\.\d+\n", run("--version").stdout)


def test_no_arguments_is_a_call_for_help():
    assert "Commands:" in CliRunner().invoke(app, []).output


def test_from_recordings_to_text(
    tone_corpus: Path, tone_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """prepare, train, evaluate, export, verify, transcribe, inspect on a corpus of tones."""
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 120))
    corpus = tone_corpus
    data, out = tmp_path / "data", tmp_path / "deploy"
    prepared = run_json("prepare", corpus, data, "--labels", "_ABCD ", "--valid", "0.2")
    assert sum(row["utterances"] for row in prepared["manifests"]) == 40

    settings = [f"data.{name}={data / name}.jsonl.gz" for name in ("train", "valid")]
    settings += [f"training.run={tmp_path / 'run'}", "training.epochs=2"]
    overrides = [part for setting in settings for part in ("--set", setting)]
    trained = run_json("train", tone_toml, *overrides)
    checkpoint = Path(trained["checkpoint"])
    assert checkpoint == tmp_path / "run" / "best.ckpt"

    exported = run_json("export", checkpoint, "--out", out, "--onnx", "--precision", "fp32,fp16")
    paths = [Path(item["path"]) for item in exported["artifacts"]]
    assert paths == [out / "model.onnx", out / "model.fp16.onnx"]
    assert all(path.is_file() for path in paths)
    assert sorted(path.name for path in out.iterdir()) == ["model.fp16.onnx", "model.onnx"]

    valid = data / "valid.jsonl.gz"
    report = run_json("verify", paths[0], checkpoint, "--audio", valid)
    assert report["passed"]
    assert report["speech"] == "valid.jsonl.gz"
    scores = [run_json("evaluate", model, valid) for model in (checkpoint, paths[0])]
    assert scores[0]["wer"] == scores[1]["wer"]
    assert [score["runtime"] for score in scores] == ["torch cpu", "onnxruntime cpu"]

    audio = sorted(corpus.glob("*.wav"))[:2]
    lines = run("transcribe", paths[0], *audio).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path) for path in audio]
    inspected = run_json("inspect", paths[1])
    assert "fp16" in inspected["is"]
    assert inspected["parity"].startswith("passed")
    assert inspected["details"]["parity"]["passed"]


@pytest.mark.slow
def test_verify_against_another_checkpoint_fails(
    digits_onnx: Path, digits_checkpoint: Path, tmp_path: Path
):
    import torch

    from ds2deploy.model.checkpoint import save_checkpoint
    from ds2deploy.model.load import load_checkpoint

    loaded = load_checkpoint(digits_checkpoint)
    with torch.no_grad():
        loaded.network.rnns[1].rnn.weight_hh_l0.mul_(1.01)
    other = tmp_path / "other.ckpt"
    save_checkpoint(other, loaded.network, loaded.recipe, {})
    result = run("verify", digits_onnx, other, code=1)
    assert "its results differ from" in result.stderr
    assert "another checkpoint file, export it again" in result.stderr
    assert "OVER TOLERANCE" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("ds2deploy: ")


def test_verify_refuses_a_checkpoint_of_another_model(
    digits_onnx: Path, digits_checkpoint: Path, tmp_path: Path
):
    import msgspec

    from ds2deploy.model.checkpoint import save_checkpoint
    from ds2deploy.model.load import load_checkpoint
    from ds2deploy.model.weights import build_network

    recipe = load_checkpoint(digits_checkpoint).recipe
    for name, value in {
        "labels": "_AB ",
        "model": msgspec.structs.replace(recipe.model, hidden=8),
    }.items():
        other = msgspec.structs.replace(recipe, **{name: value})
        save_checkpoint(tmp_path / "other.ckpt", build_network(other), other, {})
        result = run("verify", digits_onnx, tmp_path / "other.ckpt", code=2)
        assert f"other.ckpt (different {name}); " in result.stderr
        assert "give digits.ckpt with SHA-256 " in result.stderr


@pytest.mark.parametrize("kind", ["text", "json", "srt", "vtt"])
def test_formats_of_transcripts(digits_onnx: Path, recording: Path, kind: str):
    printed = run("transcribe", digits_onnx, recording, "--format", kind).stdout
    words = re.findall(r"[A-Z']+", run("transcribe", digits_onnx, recording).stdout)
    assert words
    assert set(words) <= set(re.findall(r"[A-Z']+", printed))
    if kind == "json":
        transcript = json.loads(printed)["transcripts"][0]
        assert transcript["audio"] == str(recording)
        assert transcript["duration"] == pytest.approx(2.0, abs=0.001)
        assert [word["text"] for word in transcript["words"]] == words
    if kind in ("srt", "vtt"):
        assert " --> " in printed


def test_inspect_says_what_a_file_is(digits_checkpoint: Path, recording: Path):
    assert run_json("inspect", digits_checkpoint)["is"].startswith("checkpoint of ds2deploy")
    assert run_json("inspect", recording)["audio"] == "2.000 s, 22050 Hz, 2 channels"


def test_inspect_skips_a_file_that_is_missing(recording: Path):
    missing = recording.with_name("missing.wav")
    result = run("inspect", recording, missing, recording, "--json", code=1)
    first, second, third = json.loads(result.stdout)["files"]
    assert first == third
    assert second["file"] == str(missing)
    assert str(missing) in second["error"]
    assert result.stderr == f"ds2deploy: {second['error']}\n"


def test_doctor_finds_what_the_tests_use():
    findings = {item["name"]: item for item in run_json("doctor")["findings"]}
    for name in ("run .onnx on onnxruntime cpu", "run .ckpt on torch cpu", "training", "export"):
        assert findings[name]["works"], findings[name]
    assert all(item["works"] or item["remedy"] for item in findings.values())


def test_doctor_looks_at_every_runtime():
    findings = {item["name"]: item for item in run_json("doctor")["findings"]}
    for provider in ("cpu", "cuda", "tensorrt", "rtx"):
        assert "ONNX Runtime " in findings[f"run .onnx on onnxruntime {provider}"]["detail"]
    assert findings["CUDA from Python"]["detail"].startswith("cuda-bindings ")
    for library in ("TensorRT", "TensorRT-RTX"):
        for verb in ("build", "run"):
            assert findings[f"{verb} {library} engines"]["detail"].startswith(library)


@pytest.mark.usefixtures("rtx")
def test_doctor_on_a_machine_without_a_gpu():
    if examine_device()[0]:
        pytest.skip("there is a GPU")
    findings = {item["name"]: item for item in run_json("doctor")["findings"]}
    assert findings["build TensorRT-RTX engines"]["works"]
    assert findings["build TensorRT-RTX engines"]["detail"].endswith(", without a GPU")
    assert not findings["run TensorRT-RTX engines"]["works"]
    assert "CUDA finds no GPU" in findings["run TensorRT-RTX engines"]["detail"]
    for name in ("cuda", "tensorrt", "rtx"):
        assert not findings[f"run .onnx on onnxruntime {name}"]["works"]


def test_a_driver_is_told_apart_from_a_package(monkeypatch: pytest.MonkeyPatch):
    """As if ONNX Runtime had every provider: what is missing then is the driver."""
    import onnxruntime

    from ds2deploy import doctor
    from ds2deploy.runtimes.onnx import obstacles as onnx_obstacles

    names = list(onnx_obstacles.PROVIDERS.values())
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnx_obstacles, "loads", lambda library: False)
    findings = {finding.name: finding for finding in doctor.examine()}
    for provider in ("cuda", "tensorrt"):
        finding = findings[f"run .onnx on onnxruntime {provider}"]
        assert (finding.works, finding.remedy) == (False, "install the NVIDIA driver")
        assert finding.detail.endswith("no NVIDIA driver")


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        ("cuda", "ONNX Runtime {version} has no CUDAExecutionProvider; pip uninstall -y onnx"),
        ("tensorrt", "ONNX Runtime {version} has no TensorrtExecutionProvider; pip uninstall"),
        ("rtx", "ONNX Runtime {version}: its TensorRT-RTX plugin "),
    ],
)
def test_a_provider_that_is_not_there_is_an_error(
    runtime: str, reason: str, digits_onnx: Path, recording: Path
):
    import onnxruntime

    if len(onnxruntime.get_available_providers()) > 2 or examine_device()[0]:
        pytest.skip("ONNX Runtime has providers for a GPU here")
    result = CliRunner().invoke(
        app, ["transcribe", str(digits_onnx), str(recording), "--runtime", runtime]
    )
    assert result.exit_code == 2
    expected = reason.format(version=onnxruntime.__version__)
    assert f"{digits_onnx}: --runtime {runtime}: {expected}" in result.stderr
    assert result.stdout == ""


def test_a_session_that_fell_back_is_refused(digits_onnx: Path, monkeypatch: pytest.MonkeyPatch):
    """ONNX Runtime claims the provider, and starts without it: with no more than a warning."""
    import onnxruntime

    from ds2deploy.runtimes.errors import RuntimeUnavailableError
    from ds2deploy.runtimes.onnx import obstacles as onnx_obstacles

    monkeypatch.setattr(onnx_obstacles, "loads", lambda library: True)
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    with (
        pytest.raises(RuntimeUnavailableError, match="would run on CPUExecutionProvider instead"),
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
    ):
        ds2deploy.load(digits_onnx, runtime="cuda")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "model.onnx",
            ["--runtime", "torch"],
            "this file only runs on onnxruntime",
        ),
        ("digits.ckpt", ["--runtime", "rtx"], "only runs on torch; export it first: ds2deploy"),
        ("model.onnx", ["--runtime", "gpu"], "--runtime gpu: expected one of onnxruntime, cuda"),
        (
            "model.onnx",
            ["--runtime", "cuda", "--device", "cpu"],
            "cuda needs a GPU; use --dev",
        ),
        (
            "model.onnx",
            ["--runtime", "openvino", "--device", "cuda"],
            "only runs on the CPU; omit",
        ),
    ],
)
def test_a_runtime_that_does_not_fit(
    name: str,
    options: list[str],
    message: str,
    digits_onnx: Path,
    digits_checkpoint: Path,
    recording: Path,
):
    model = digits_onnx if name == "model.onnx" else digits_checkpoint
    result = CliRunner().invoke(app, ["transcribe", str(model), str(recording), *options])
    assert result.exit_code == 2
    assert message in result.stderr
