"""`ds2deploy export --triton`: what it writes, and that it leaves nothing behind where it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ds2deploy.cli.app import app
from ds2deploy.export.triton import repository, verification
from ds2deploy.export.triton.check import check_config, onnx_graph
from ds2deploy.export.triton.repository import TritonOptions, write_model
from ds2deploy.runtimes.errors import ParityError
from ds2deploy.runtimes.files import WholeFiles
from ds2deploy.runtimes.onnx.metadata import read_onnx_description

pytest.importorskip("tritonclient", reason="the extra triton is not installed")


@pytest.fixture(autouse=True)
def _few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parity check has tests of its own."""
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="ds2deploy")


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_offline_artifacts_of_two_precisions(digits_checkpoint: Path, tmp_path: Path):
    models = tmp_path / "models"
    result = run("export", digits_checkpoint, "--out", tmp_path / "out", "--precision",
                 "fp32,fp16", "--triton", models, "--triton-device", "gpu", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    written = [one for one in json.loads(result.stdout)["artifacts"] if one["kind"] == "triton"]
    assert [Path(one["path"]).name for one in written] == ["model", "model_fp16"]
    for one, artifact in zip(written, ("model.onnx", "model.fp16.onnx"), strict=True):
        folder = Path(one["path"])
        assert files_in(folder) == {
            "config.pbtxt", "labels.txt", "ds2deploy.json", "warmup/lengths", "1/model.onnx",
        }  # fmt: skip
        assert (folder / "1/model.onnx").read_bytes() == (tmp_path / "out" / artifact).read_bytes()
        description = read_onnx_description(folder / "1/model.onnx")
        text = (folder / "config.pbtxt").read_text()
        check_config(text, description, onnx_graph(folder / "1/model.onnx"))
        assert "KIND_GPU" in text
        labels = (folder / "labels.txt").read_text().split("\n")
        assert "".join(labels) == description.labels
        assert len((folder / "warmup/lengths").read_bytes()) == 8
        assert json.loads((folder / "ds2deploy.json").read_text())["parity"]["passed"]
        assert one["simulation"]["passed"]
        assert "not run on Triton" in one["verification"]


def test_a_streaming_artifact(streaming_checkpoint: Path, tmp_path: Path):
    models = tmp_path / "models"
    result = run("export", streaming_checkpoint, "--out", tmp_path / "out", "--streaming",
                 "--waveform", "--triton", models)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert files_in(models) == {
        f"model_streaming_waveform/{name}"
        for name in ("config.pbtxt", "labels.txt", "ds2deploy.json", "1/model.onnx")
    }
    assert "8 of 8 texts equal" in result.stdout
    assert "KIND_CPU" in (models / "model_streaming_waveform/config.pbtxt").read_text()


@pytest.mark.slow
def test_the_speech_of_a_manifest_is_simulated(
    digits_checkpoint: Path, tone_manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    heard: list[Any] = []
    simulate = repository.simulate

    def listening(config: Any, run: Any, direct: Any, waveforms: Any, own: Any) -> Any:
        heard.extend(waveforms)
        return simulate(config, run, direct, waveforms, own)

    monkeypatch.setattr(repository, "simulate", listening)
    result = run("export", digits_checkpoint, "--out", tmp_path / "out", "--audio",
                 tone_manifests / "valid.jsonl.gz", "--triton", tmp_path / "models")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len(heard) == verification.CLIENTS


def test_another_text_fails_the_export_and_leaves_nothing(
    digits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_of = repository.onnx_run

    def wrong(path: Path) -> Any:
        right = run_of(path)
        return lambda tensors: {**right(tensors), "log_probs": np.roll(
            right(tensors)["log_probs"], 1, axis=2)}  # fmt: skip

    monkeypatch.setattr(repository, "onnx_run", wrong)
    result = run("export", digits_checkpoint, "--out", tmp_path / "out", "--triton",
                 tmp_path / "models")  # fmt: skip
    assert result.exit_code == 1
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("ds2deploy:"))
    assert "model.onnx" in line
    assert "nothing was written" in line
    assert [*tmp_path.iterdir()] == []


def test_another_configuration_fails_the_export_and_leaves_nothing(
    digits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make = repository.make_config
    monkeypatch.setattr(
        repository, "make_config", lambda *given: make(*given).replace("161", "160", 1)
    )
    result = run("export", digits_checkpoint, "--out", tmp_path / "out", "--triton",
                 tmp_path / "models")  # fmt: skip
    assert result.exit_code == 1
    assert "config.pbtxt" in result.stderr
    assert [*tmp_path.iterdir()] == []


def test_a_model_that_was_there_stays_where_the_export_fails(
    make_served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    served, options = make_served("offline"), TritonOptions(repository=str(tmp_path))

    def write() -> None:
        with WholeFiles() as files:
            write_model(served.path, "m.onnx", served.path, served.description, options, files)

    write()
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    monkeypatch.setattr(repository, "make_config", lambda *given: "max_batch_size: 3")
    with pytest.raises(ParityError):
        write()
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == before


@pytest.mark.parametrize(
    ("arguments", "named", "remedy"),
    [
        (["--triton-device", "gpu"], "--triton-device", "--triton REPOSITORY"),
        (["--triton", "{}/models", "--triton-device", "tpu"], "--triton-device tpu", "cpu or gpu"),
        (["--triton", "{}/file"], "file", "a folder"),
        (["--triton", "{}/models", "--rtx"], "--triton", "--trt"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    digits_checkpoint: Path, tmp_path: Path, arguments: list[str], named: str, remedy: str
):
    (tmp_path / "file").touch()
    given = [argument.format(tmp_path) for argument in arguments]
    result = run("export", digits_checkpoint, "--out", tmp_path / "out", *given)
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert named in line
    assert remedy in line
    assert files_in(tmp_path) == {"file"}


def test_without_the_extra_the_export_says_how_to_install_it(
    digits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    find = repository.load_schema.__globals__["require"].__globals__["importlib"].util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "tritonclient" else find(name)
    )
    result = run("export", digits_checkpoint, "--out", tmp_path / "out", "--triton",
                 tmp_path / "models")  # fmt: skip
    assert result.exit_code == 2
    assert "pip install 'ds2deploy[triton]'" in result.stderr
    assert files_in(tmp_path) == set()
