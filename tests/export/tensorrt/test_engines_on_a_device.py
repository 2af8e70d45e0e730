"""What an export does where there is a GPU, with the stand-in for CUDA and TensorRT.

The network is parsed by the real TensorRT-RTX; the stand-in "builds" by wrapping the ONNX file, and
runs what it wraps.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner, Result

import ds2deploy
from ds2deploy.cli.app import app
from ds2deploy.export.parity.report import ParityReport
from ds2deploy.export.tensorrt import verified_engine as tensorrt
from ds2deploy.export.tensorrt.build import Job
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.runtimes.onnx.metadata import read_onnx_description
from ds2deploy.runtimes.tensorrt.engine_file import read_engine
from ds2deploy.runtimes.tensorrt.library import TensorRt

STAND_IN = Path(__file__).parents[2] / "runtimes" / "tensorrt" / "tensorrt_standin.py"
PROFILE = ["--batch", "1,2,3", "--seconds", "0.3,0.5,1"]


def load_standin() -> Any:
    spec = importlib.util.spec_from_file_location("tensorrt_standin", STAND_IN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


standin = load_standin()


@pytest.fixture(params=["tensorrt", "rtx"])
def machine(
    request: pytest.FixtureRequest, rtx: TensorRt, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A GPU, and a builder that takes the ONNX file as it is."""
    parse = tensorrt.check_network

    def check(path: Path, description: Any, library: TensorRt, *rest: Any) -> ParityReport:
        return parse(path, description, rtx, *rest)

    made = standin.Machine(flavor=request.param, version="10.3.0")
    if request.param == "rtx":
        made = standin.Machine(flavor="rtx", version="1.7.1")
    made.install(monkeypatch)
    monkeypatch.setattr(tensorrt, "check_network", check)
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))
    yield made
    assert made.violations == []


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    def install(change: Callable[[onnx.ModelProto], None]) -> None:
        def build(job: Job, progress: Any) -> tuple[float, float, float, int]:
            model = onnx.load(job.onnx)
            change(model)
            sound, shapes = next(iter(job.profile.items()))
            sizes = [shape[-1] for shape in shapes]
            frames = [size // 160 + 1 for size in sizes] if sound == "waveform" else sizes
            profile = {"batch": [shape[0] for shape in shapes], "frames": frames}
            Path(job.engine).write_bytes(standin.make_blob(model.SerializeToString(), profile))
            return 0.1, 0.2, 300.0, 99

        monkeypatch.setattr(tensorrt, "run_build", build)

    install(lambda model: None)
    return install


def export(machine: Any, source: Path, out: Path, *options: str) -> Result:
    flag = "--trt" if machine.flavor == "tensorrt" else "--rtx"
    if machine.flavor == "rtx" and "--targets" not in options:
        options = (*options, "--targets", machine.capability)
    arguments = ["export", str(source), flag, "--out", str(out), "--json", *PROFILE, *options]
    return CliRunner().invoke(app, arguments, prog_name="ds2deploy")


@pytest.mark.usefixtures("builder")
def test_the_engine_is_run_and_verified(machine: Any, digits_onnx: Path, tmp_path: Path):
    result = export(machine, digits_onnx, tmp_path / "out")
    assert result.exit_code == 0, (result.stderr, result.exception)
    (item,) = json.loads(result.stdout)["artifacts"]
    runtime = "tensorrt cuda" if machine.flavor == "tensorrt" else "tensorrt-rtx cuda"
    assert item["verification"] == (f"engine verified on {runtime}; the parsed network on the CPU")
    assert item["report"]["passed"]
    assert {(case["batch"], case["frames"]) for case in item["report"]["cases"]} == {
        (batch, frames) for batch in (1, 2, 3) for frames in (31, 51, 101)
    }
    assert item["build"]["engine_check_s"] > 0
    assert item["compute_capabilities"] == [machine.capability]
    path = Path(item["path"])
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}.json"}
    description, engine, _ = read_engine(path)
    assert description.parity is not None
    assert description.parity["passed"]
    assert engine.verification == item["verification"]
    assert engine.compared_with == f"onnxruntime cpu, {digits_onnx.name}"
    assert not any(machine.left().values()), machine.left()


@pytest.mark.usefixtures("builder")
@pytest.mark.parametrize("machine", ["tensorrt"], indirect=True)  # Triton runs no others
@pytest.mark.parametrize("kind", ["digits_onnx", "streaming_onnx"])
def test_an_engine_for_triton(
    machine: Any, kind: str, tmp_path: Path, request: pytest.FixtureRequest
):
    pytest.importorskip("tritonclient", reason="the extra triton is not installed")
    source = passed(request.getfixturevalue(kind), tmp_path / "in")
    profile = ["--batch", "1,2,3"] + (PROFILE[2:] if kind == "digits_onnx" else [])
    models = tmp_path / "models"
    arguments = ["export", str(source), "--trt", "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, [*arguments, *profile, "--triton", str(models)])
    assert result.exit_code == 0, (result.stderr, result.exception)
    engine, model = json.loads(result.stdout)["artifacts"]
    assert model["device"] == "gpu"
    assert model["max_batch_size"] == 3
    assert model["simulation"]["passed"]
    assert "its ONNX file" in model["verification"]  # the engine itself has a check of its own
    folder = Path(model["path"])
    assert folder == models / f"{source.stem.replace('.', '_')}_trt"
    assert (folder / "1" / "model.plan").read_bytes() == Path(engine["path"]).read_bytes()
    text = (folder / "config.pbtxt").read_text()
    assert "tensorrt_plan" in text
    assert "KIND_GPU" in text
    assert json.loads((folder / "ds2deploy.json").read_text())["engine"]["version"] == "10.3.0"


@pytest.mark.usefixtures("builder")
@pytest.mark.parametrize("machine", ["tensorrt"], indirect=True)
def test_an_engine_that_takes_no_single_request_is_not_for_triton(
    machine: Any, digits_onnx: Path, tmp_path: Path
):
    pytest.importorskip("tritonclient", reason="the extra triton is not installed")
    options = ["--batch", "2,2,3", "--triton", str(tmp_path / "models")]
    result = export(machine, digits_onnx, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert "--batch 1,2,3" in result.stderr
    assert not [*tmp_path.iterdir()]


def passed(onnx_file: Path, folder: Path) -> Path:
    """A copy of an artifact, as if it had been verified."""
    folder.mkdir()
    copy = folder / onnx_file.name
    shutil.copy(onnx_file, copy)
    description = read_onnx_description(copy)
    append_description(copy, msgspec.structs.replace(description, parity={"passed": True}))
    return copy


def nudge(model: onnx.ModelProto) -> None:
    (bias,) = [item for item in model.graph.initializer if item.name == "output/bias"]
    array = numpy_helper.to_array(bias).copy()
    array[3] += 0.01
    bias.CopyFrom(numpy_helper.from_array(array, bias.name))


def test_an_engine_over_tolerance_leaves_nothing(
    machine: Any, builder: Any, digits_onnx: Path, tmp_path: Path
):
    builder(nudge)
    result = export(machine, digits_onnx, tmp_path / "out")
    assert result.exit_code == 1, result.stderr
    assert f"the engine differ from those of {digits_onnx.name}, nothing was written" in (
        result.stderr
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("builder")
@pytest.mark.parametrize("machine", ["rtx"], indirect=True)  # TensorRT builds for what is there
def test_a_gpu_that_the_engine_is_not_for(machine: Any, digits_onnx: Path, tmp_path: Path):
    machine.capability = "8.6"
    result = export(machine, digits_onnx, tmp_path / "out", "--targets", "8.9,12.0")
    (item,) = json.loads(result.stdout)["artifacts"]
    assert item["report"] is None
    assert item["verification"] == (
        "engine built, not run: it is for compute capability 8.9, 12.0, this GPU is 8.6; the "
        "parsed network was verified on the CPU"
    )


@pytest.mark.usefixtures("builder")
def test_the_interface_is_the_same(
    machine: Any, digits_onnx: Path, digits_checkpoint: Path, tmp_path: Path
):
    assert export(machine, digits_onnx, tmp_path).exit_code == 0
    (path,) = tmp_path.glob("*.engine")
    from ds2deploy.export.parity.speech import synthesize

    sound = synthesize(16_000, 15_000, seed=2)
    trusted = ds2deploy.load(digits_onnx).transcribe([sound] * 5, 16_000)
    with ds2deploy.load(path) as recognizer:
        assert recognizer.transcribe([sound] * 5, 16_000) == trusted
        assert recognizer.session.profile is not None
    result = CliRunner().invoke(app, ["verify", str(path), str(digits_checkpoint)])
    assert result.exit_code == 0, result.output
