"""Engines: built, described, refused; without a GPU, so never run here."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from ds2deploy.cli.app import app
from ds2deploy.config import Recipe
from ds2deploy.export.tensorrt import build_process
from ds2deploy.export.tensorrt import verified_engine as tensorrt
from ds2deploy.export.tensorrt.build import Event, Job, job_profile
from ds2deploy.export.tensorrt.options import EngineOptions, engine_options
from ds2deploy.export.tensorrt.profiles import engine_profile, grid, seconds_of
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.network import DeepSpeech2
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.engine_description import Profile, frames_of
from ds2deploy.runtimes.errors import ConfigError, ModelFileError
from ds2deploy.runtimes.features import FeatureConfig, FeatureExtractor
from ds2deploy.runtimes.onnx.metadata import read_onnx_description
from ds2deploy.runtimes.tensorrt.cuda import examine_device
from ds2deploy.runtimes.tensorrt.engine_file import read_engine, read_engine_description, sealed
from ds2deploy.runtimes.tensorrt.library import TensorRt

PATIENCE_S = 600
"""No machine needs as long."""
NO_GPU = "engine built, not run: no GPU; the parsed network was verified on the CPU"
SMALL = ["--batch", "1,1,2", "--seconds", "0.2,0.5,1"]


@pytest.fixture(autouse=True)
def _few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole grid is for test_network.py; here files and messages are looked at."""
    monkeypatch.setattr("ds2deploy.export.parity.check.FRAMES", (40,))


@pytest.fixture
def small_onnx(small_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As if it had been verified, which takes seconds."""
    model = onnx.load(small_onnx)
    del model.metadata_props[:]
    path = tmp_path_factory.mktemp("verified") / "small.onnx"
    onnx.save(model, path)
    append_description(
        path, msgspec.structs.replace(read_onnx_description(small_onnx), parity={"passed": True})
    )
    return path


@pytest.fixture
def no_gpu() -> None:
    if examine_device()[0]:
        pytest.skip("there is a GPU: tests/gpu has the same checks with it")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="ds2deploy")


def refused(*arguments: object) -> str:
    """The one line of a call that ends with exit code 2."""
    result = run(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = result.stderr.splitlines()
    return line.removeprefix("ds2deploy: ")


@pytest.mark.usefixtures("rtx", "no_gpu")
def test_two_precisions_of_the_trained_model(
    digits_checkpoint: Path, rtx: TensorRt, tmp_path: Path
):
    result = run(
        "export",
        digits_checkpoint,
        "--rtx",
        "--precision",
        "fp32,fp16",
        "--out",
        tmp_path,
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    artifacts = json.loads(result.stdout)["artifacts"]
    assert [Path(item["path"]).name for item in artifacts] == [
        "model.onnx", "model.rtx.engine", "model.fp16.onnx", "model.fp16.rtx.engine"
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {
        *(Path(item["path"]).name for item in artifacts),
        "model.rtx.engine.json",
        "model.fp16.rtx.engine.json",
    }
    for source, item in zip(artifacts[::2], artifacts[1::2], strict=True):
        assert item["kind"] == "engine"
        assert item["verification"] == NO_GPU
        assert item["report"] is None
        assert item["network"]["passed"]
        description, engine, blob = read_engine(Path(item["path"]))
        assert len(blob) == engine.size == item["size"] > 1e6
        assert engine.onnx_sha256 == source["sha256"]
        assert engine.flavor == "rtx"
        assert engine.version == rtx.version
        assert engine.verification == NO_GPU
        assert engine.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
        assert engine.profile == Profile(batch=(1, 4, 16), frames=(51, 501, 3001))
        assert engine.network_parity["passed"]
        assert engine.build.layers > 250
        assert engine.build.build_s > 0
        assert 100 < engine.build.peak_memory_mb < 2000
        assert description.precision == item["precision"]
        assert description.parity is None
        assert engine.rebuild == shlex.join(
            ["ds2deploy", "export", str(digits_checkpoint), "--out", str(tmp_path),
             "--precision", item["precision"], "--rtx", "--batch", "1,4,16",
             "--seconds", "0.5,5,30"]
        )  # fmt: skip
    assert artifacts[1]["size"] > 1.3 * artifacts[3]["size"]


BUILDS = [
    (rnn, bidirectional, precision)
    for rnn in ("lstm", "gru", "rnn")
    for bidirectional in (True, False)
    for precision in ("fp32,fp16" if rnn == "gru" else "fp32,fp16,bf16",)
]


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(("rnn", "bidirectional", "precision"), BUILDS)
def test_every_kind_builds(
    rnn: Any, bidirectional: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Random weights: what is asked here is whether it builds; test_network.py compares."""
    monkeypatch.setattr("ds2deploy.export.parity.check.BATCHES", (1,))
    shape = ModelShape(rnn=rnn, hidden=16, layers=2, bidirectional=bidirectional)
    save_checkpoint(tmp_path / "x.ckpt", DeepSpeech2(shape), Recipe(model=shape), {})
    out = tmp_path / "out"
    result = run(
        "export", tmp_path / "x.ckpt", "--rtx", "--precision", precision, "--out", out, *SMALL,
        "--no-onnx",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    names = ["model" if name == "fp32" else f"model.{name}" for name in precision.split(",")]
    assert {path.name for path in out.iterdir()} == {
        f"{name}.rtx.engine{end}" for name in names for end in ("", ".json")
    }


@pytest.mark.usefixtures("rtx")
def test_all_options_reach_the_description(small_onnx: Path, tmp_path: Path):
    result = run(
        "export", small_onnx, "--rtx", "--out", tmp_path, *SMALL, "--targets", "8.6,12.0",
        "--workspace", 512, "--optimization-level", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    _, engine = read_engine_description(tmp_path / "small.rtx.engine")
    assert engine.compute_capabilities == ("8.6", "12.0")
    assert engine.workspace_mb == 512
    assert engine.optimization_level == 1
    assert engine.profile.batch == (1, 1, 2)
    assert engine.rebuild.endswith(
        "--rtx --batch 1,1,2 --seconds 0.2,0.5,1 --workspace 512 --optimization-level 1 "
        "--targets 8.6,12.0"
    )


def test_the_builder_is_told_so(rtx: TensorRt, small_onnx: Path, tmp_path: Path):
    """What Polygraphy makes of the job, read off TensorRT's own configuration.

    In a process of its own, as the product does it.
    """
    job = Job(
        flavor="rtx",
        onnx=str(small_onnx),
        engine=str(tmp_path / "x.engine"),
        profile=job_profile(
            Profile(batch=(1, 2, 3), frames=(10, 20, 30)), read_onnx_description(small_onnx)
        ),
        workspace_mb=64,
        optimization_level=2,
        targets=((8, 6), (8, 9)),
    )
    code = """
import sys, msgspec
from ds2deploy.export.tensorrt import build
job = msgspec.json.decode(sys.argv[1], type=build.Job)
library = build._prepare_polygraphy(job.flavor)
from polygraphy.backend.trt import Profile, network_from_onnx_path
builder, network, _ = network_from_onnx_path(job.onnx, strongly_typed=True)
trt = library.module
profile = Profile()
for name, shapes in job.profile.items():
    profile.add(name, *shapes)
config = build._config(job, library, profile, lambda phase: None)(builder, network)
print(msgspec.json.encode(dict(
    strong=network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
    tf32=config.get_flag(trt.BuilderFlag.TF32),
    level=config.builder_optimization_level,
    workspace=config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
    targets=[config.get_compute_capability(i).name for i in range(config.num_compute_capabilities)],
    profiles=config.num_optimization_profiles,
    monitor=config.progress_monitor is not None,
)).decode(), file=sys.stderr)
"""
    document = msgspec.json.encode(job).decode()
    done = subprocess.run([sys.executable, "-c", code, document], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == {
        "strong": True,
        "tf32": False,
        "level": 2,
        "workspace": 64 << 20,
        "targets": ["SM86", "SM89"],
        "profiles": 1,
        "monitor": True,
    }
    assert hasattr(rtx.module, "IProgressMonitor")


@pytest.mark.usefixtures("rtx")
def test_progress_comes_from_tensorrt(small_onnx: Path, tmp_path: Path):
    described = read_onnx_description(small_onnx)
    profile = engine_profile(described.features, (1, 1, 2), (0.2, 0.5, 1))
    job = Job(
        flavor="rtx",
        onnx=str(small_onnx),
        engine=str(tmp_path / "x.engine"),
        profile=job_profile(profile, described),
    )
    phases: list[str] = []
    parse_s, build_s, memory_mb, layers = build_process.run_build(job, phases.append)
    assert phases[0] == "building the engine: parsing"
    assert any("Optimizing graph" in phase for phase in phases), phases
    assert parse_s > 0
    assert build_s > 0
    assert 50 < memory_mb < 2000
    assert layers > 50


# What goes wrong while it builds --------------------------------------------------------------


def a_job(tmp_path: Path, **changes: Any) -> Job:
    job = Job(flavor="rtx", onnx=str(tmp_path / "x.onnx"), engine=str(tmp_path / "e"), profile={})
    return msgspec.structs.replace(job, **changes)


@pytest.mark.usefixtures("rtx")
def test_a_builder_that_refuses(tmp_path: Path):
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match=r"^x\.onnx: building the engine failed \(.+\); try"):
        build_process.run_build(a_job(tmp_path), lambda phase: None)
    assert not (tmp_path / "e").exists()


def test_a_builder_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nread job\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    with pytest.raises(ModelFileError, match=r"exit code -11\)"):
        build_process.run_build(a_job(tmp_path), lambda phase: None)


def test_a_builder_that_has_too_little_memory(tmp_path: Path):
    message = build_process.build_failure(
        a_job(tmp_path), Event(error="x"), 1, "[I] so\n[E] Cuda Runtime (x)\n[E] out of memory\n"
    )
    assert message == (
        "x.onnx: building the engine failed ([E] out of memory); choose a smaller --batch or "
        "--seconds"
    )


def test_a_disk_that_is_full(tmp_path: Path):
    event = Event(error="[Errno 28] No space left on device: 'e'", os_error=True)
    assert build_process.build_failure(a_job(tmp_path), event, 1, "").endswith(
        "([Errno 28] No space left on device: 'e'); free disk space, or make the folder writable"
    )


@pytest.mark.usefixtures("rtx")
def test_too_small_a_workspace_is_told_apart(small_onnx: Path, tmp_path: Path):
    message = build_process.build_failure(
        a_job(tmp_path), Event(), 1, "[E] no tactics available within workspace limit\n"
    )
    assert message.endswith("; increase --workspace, or omit it")


@pytest.mark.usefixtures("rtx")
def test_a_folder_for_the_engine_that_cannot_be_written_to(small_onnx: Path, tmp_path: Path):
    described = read_onnx_description(small_onnx)
    profile = engine_profile(described.features, (1, 1, 2), (0.2, 0.5, 1))
    job = a_job(
        tmp_path,
        onnx=str(small_onnx),
        engine=str(tmp_path / "no such folder" / "e"),
        profile=job_profile(profile, described),
    )
    with pytest.raises(ModelFileError, match="free disk space, or make the folder writable"):
        build_process.run_build(job, lambda phase: None)


def test_a_timing_cache_in_a_folder_that_is_not_there(
    small_onnx: Path, rtx: TensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stand_in = rtx._replace(flavor="tensorrt", version="10.3.0")
    monkeypatch.setattr(build_process, "import_tensorrt", lambda flavor: stand_in)
    cache = tmp_path / "none" / "cache"
    line = refused("export", small_onnx, "--trt", "--timing-cache", cache, "--out", tmp_path / "o")
    assert line.startswith(f"--timing-cache {cache}: its folder does not exist; create it")


def test_the_builder_ends_with_the_process_that_started_it(tmp_path: Path):
    """Its standard input ends; a build may take many minutes, so the library is held up here."""
    slow = (
        "import time, ds2deploy.export.tensorrt.build as b; b.build = lambda *_: time.sleep(3600)"
    )
    command = [sys.executable, "-c", f"{slow}; b.main()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(a_job(tmp_path)) + b"\n")
        process.stdin.close()
        try:
            assert process.wait(PATIENCE_S) == 1
        finally:
            process.kill()


def test_a_build_that_is_interrupted_takes_its_process_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    child = tmp_path / "python"
    child.write_text(
        f'#!/bin/sh\nread job\necho $$ > {tmp_path}/pid\necho \'{{"phase": "a"}}\'\nexec sleep 99\n'
    )
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))

    def interrupt(phase: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_process.run_build(a_job(tmp_path), interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.usefixtures("rtx")
def test_a_build_that_fails_leaves_nothing(
    small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> Any:
        raise ModelFileError("x: building the engine failed")

    monkeypatch.setattr(tensorrt, "run_build", fail)
    line = refused("export", small_onnx, "--rtx", "--out", tmp_path / "out")
    assert line == "x: building the engine failed"
    assert not (tmp_path / "out").exists()


# Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seconds 1,2,3", "--seconds: only for engines; add --trt or --rtx"),
        ("--batch 1,2,3", "--batch: only for engines; add --trt or --rtx"),
        ("--profile-from m", "--profile-from: only for engines; add --trt or --rtx"),
        ("--hardware-compatibility none", "--hardware-compatibility: only for engines; add --trt"),
        ("--no-onnx", "--no-onnx: nothing would be written; add --trt or --rtx"),
        ("--rtx --batch 1,2,100000", "above 0 and at most 4096"),
        ("--rtx --seconds 1,2,1e300", "above 0 and at most 3600"),
        ("--targets 8.6", "--targets: only for engines; add --trt or --rtx"),
        ("--rtx --batch 4,1,2", "--batch 4,1,2: expected MIN <= OPT <= MAX"),
        ("--rtx --batch 0,1,2", "--batch 0,1,2: expected MIN <= OPT <= MAX"),
        ("--rtx --batch 1,2", "--batch 1,2: expected three numbers, MIN,OPT,MAX"),
        ("--rtx --batch a,b,c", "--batch a,b,c: expected three numbers"),
        ("--rtx --seconds 5", "--seconds 5: expected three numbers"),
        ("--rtx --seconds 1,nan,2", "--seconds 1,nan,2: expected MIN <= OPT <= MAX"),
        ("--rtx --seconds 1,2,inf", "--seconds 1,2,inf: expected MIN <= OPT <= MAX"),
        ("--rtx --targets 8", "--targets 8: expected compute capabilities, such as 8.6,8.9"),
        ("--rtx --targets 9.0", "--targets 9.0: TensorRT-RTX supports the compute capabilities 7"),
        ("--rtx --targets 8.7", "for a Jetson, use --trt on it"),
        ("--rtx --timing-cache c", "--timing-cache: not available with --rtx; omit it"),
        (
            "--rtx --hardware-compatibility ampere_plus",
            "compute capabilities of the GPUs instead: --targets 8.6,8.9",
        ),
        ("--rtx --hardware-compatibility x", "expected none, ampere_plus, same_compute_capability"),
        ("--trt --targets 8.6", "--targets: TensorRT builds only for the GPU of this machine"),
        ("--rtx --optimization-level 6", "--optimization-level 6: expected 0 to 5"),
        ("--rtx --workspace 0", "--workspace 0: expected at least 1 MiB"),
        ("--rtx --precision fp8", "--precision 'fp8': expected one or more of fp32, fp16, bf16"),
        ("--precision bf16", "only for engines, because ONNX Runtime cannot verify bf16"),
        ("--rtx --seconds 1,2,3 --profile-from m", "--seconds, --profile-from: both set the"),
    ],
)
def test_options_that_are_refused(
    options: str, message: str, small_checkpoint: Path, tmp_path: Path
):
    line = refused("export", small_checkpoint, "--out", tmp_path / "out", *options.split())
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("rtx")
def test_a_gru_in_bf16_is_refused_beforehand(tmp_path: Path):
    shape = ModelShape(rnn="gru", hidden=8, layers=1)
    path = tmp_path / "gru.ckpt"
    save_checkpoint(path, DeepSpeech2(shape), Recipe(model=shape), {})
    line = refused("export", path, "--rtx", "--precision", "bf16", "--out", tmp_path / "out")
    assert line == (
        f"{path}: TensorRT cannot parse a GRU in bf16; choose --precision fp16 or fp32, or train "
        "an LSTM"
    )
    assert not (tmp_path / "out").exists()


def test_tensorrt_that_is_not_installed(small_checkpoint: Path, tmp_path: Path):
    if "tensorrt" in sys.modules:
        pytest.skip("TensorRT is installed")
    line = refused("export", small_checkpoint, "--trt", "--out", tmp_path / "out")
    assert line.startswith("TensorRT cannot be imported (no module tensorrt): ")
    assert line.endswith(("pip install 'ds2deploy[tensorrt]'", "--system-site-packages"))


@pytest.mark.usefixtures("no_gpu")
def test_tensorrt_without_a_gpu(
    small_checkpoint: Path, rtx: TensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """TensorRT proper, were it installed: RTX's bindings stand in, which are never called."""
    stand_in = rtx._replace(flavor="tensorrt", version="10.3.0")
    monkeypatch.setattr(build_process, "import_tensorrt", lambda flavor: stand_in)
    line = refused("export", small_checkpoint, "--trt", "--out", tmp_path / "out")
    assert line.startswith("--trt: TensorRT needs the GPU that the engine is for")
    assert "ds2deploy export model.onnx --trt --out FOLDER; or use --rtx" in line


def test_options_of_one_flavor_go_to_it_alone():
    trt, rtx = engine_options(
        trt=True, rtx=True, batch=(1, 1, 1), seconds=None, profile_from=None, workspace_mb=None,
        optimization_level=None, timing_cache=Path("c"), hardware_compatibility="ampere_plus",
        targets="8.6",
    )  # fmt: skip
    assert (trt.flavor, trt.timing_cache, trt.targets) == ("tensorrt", "c", ())
    assert trt.hardware_compatibility == "ampere_plus"
    assert (rtx.flavor, rtx.timing_cache, rtx.targets) == ("rtx", None, ("8.6",))
    assert rtx.hardware_compatibility == "none"


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("name", ["small.rtx.engine", "small.rtx.engine.json"])
def test_a_folder_in_the_way_is_found_before_the_work(
    name: str, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tensorrt, "check_network", None)  # which would be called
    (tmp_path / name).mkdir()
    assert refused("export", small_onnx, "--rtx", "--out", tmp_path) == (
        f"{tmp_path / name}: Is a directory"
    )
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.usefixtures("rtx")
def test_a_folder_whose_name_is_not_utf8(small_checkpoint: Path, tmp_path: Path):
    """Checkpoint, ONNX file and engine, exported, built from the ONNX file, and described."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    checkpoint = folder / os.fsdecode(b"mod\xe8le.ckpt")
    checkpoint.write_bytes(small_checkpoint.read_bytes())
    out = folder / "out"
    result = run(
        "export", checkpoint, "--rtx", "--precision", "fp32,bf16", "--out", out, *SMALL, "--json"
    )
    assert result.exit_code == 0, result.stderr
    result = run("export", out / "model.onnx", "--rtx", "--out", folder / "again", *SMALL, "--json")
    assert result.exit_code == 0, result.stderr
    for path in (out / "model.rtx.engine", folder / "again" / "model.rtx.engine"):
        _, engine, blob = read_engine(path)
        assert len(blob) == engine.size
        assert "caf\\xe9" in engine.rebuild
    assert run("inspect", out / "model.rtx.engine", "--json").exit_code == 0


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("parity", [None, {"passed": False}, {}])
def test_an_onnx_file_that_was_not_verified(parity: Any, small_onnx: Path, tmp_path: Path):
    """What an engine is compared with must have been compared with its checkpoint."""
    description = msgspec.structs.replace(read_onnx_description(small_onnx), parity=parity)
    append_description(small_onnx, description)
    line = refused("export", small_onnx, "--rtx", "--out", tmp_path / "out")
    assert line == f"{small_onnx}: contains no parity report that passed; export it again"


@pytest.mark.usefixtures("rtx")
def test_an_onnx_file_needs_a_flavor_and_keeps_its_precision(small_onnx: Path, tmp_path: Path):
    assert refused("export", small_onnx, "--out", tmp_path / "out").endswith(
        "add --trt or --rtx to build an engine from it, or give a checkpoint"
    )
    line = refused("export", small_onnx, "--rtx", "--precision", "fp16", "--out", tmp_path / "out")
    assert "an engine has the precision" in line


# Profiles -------------------------------------------------------------------------------------


def test_frames_are_those_of_the_features():
    for config in (FeatureConfig(), FeatureConfig(sample_rate=22_050, stride_ms=12.5)):
        for samples in (1, 159, 160, 161, 16_000, 31_999):
            sound = np.zeros(samples, np.float32)
            frames = FeatureExtractor(config)(sound).shape[1]
            assert frames_of(samples / config.sample_rate, config) == frames


def test_a_profile_in_seconds():
    profile = engine_profile(FeatureConfig(), (1, 4, 16), (0.5, 5, 30))
    assert profile == Profile(batch=(1, 4, 16), frames=(51, 501, 3001))
    assert profile.seconds(FeatureConfig()) == (0.5, 5.0, 30.0)
    assert grid(profile) == [(b, f) for f in (51, 501, 3001) for b in (1, 4, 16)]
    assert grid(Profile(batch=(1, 1, 1), frames=(9, 9, 9))) == [(1, 9)]


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([0.42, 3.01, 29.95], (0.4, 3.1, 30.0)),
        ([2.0], (2.0, 2.0, 2.0)),
        ([0.03, 0.04], (0.1, 0.1, 0.1)),
        ([1.0, 2.0, 3.0, 4.0], (1.0, 2.5, 4.0)),
    ],
)
def test_durations_are_rounded_outwards(durations: list[float], expected: tuple[float, ...]):
    assert seconds_of(durations) == pytest.approx(expected)


def test_a_profile_from_real_data(tone_manifests: Path):
    from ds2deploy.data.manifest import read_manifest

    manifest = tone_manifests / "train.jsonl.gz"
    (options,) = engine_options(
        trt=False, rtx=True, batch=(1, 4, 16), seconds=None, profile_from=manifest,
        workspace_mb=None, optimization_level=None, timing_cache=None,
        hardware_compatibility="none", targets=None,
    )  # fmt: skip
    durations = [cut.duration for cut in read_manifest(manifest)]
    low, usual, high = options.seconds
    assert low <= min(durations) < low + 0.1
    assert high - 0.1 < max(durations) <= high
    assert low < usual < high


def test_options_are_checked_where_they_are_made():
    with pytest.raises(ConfigError, match="--seconds 3,2,1"):
        EngineOptions(flavor="rtx", seconds=(3, 2, 1))


# The seal, and the reader of ONNX's metadata ----------------------------------------------------


@pytest.mark.usefixtures("rtx")
def test_a_description_survives_its_seal(small_onnx: Path, tmp_path: Path):
    assert run("export", small_onnx, "--rtx", "--out", tmp_path, *SMALL).exit_code == 0
    engine = tmp_path / "small.rtx.engine"
    description, facts = read_engine_description(engine)
    assert sealed(description) == description
    assert len(facts.seal) == 64
    beside = engine.with_name("small.rtx.engine.json")
    beside.write_text(beside.read_text().replace('"sample_rate": 8000', '"sample_rate": 16000'))
    line = refused("inspect", engine)
    assert line == (
        f"{beside}: was edited after the export; build the engine again: {facts.rebuild}"
    )


def test_inspect_tells_all_of_an_engine(
    small_onnx: Path, rtx: TensorRt, tmp_path: Path, no_gpu: None
):
    assert run("export", small_onnx, "--rtx", "--out", tmp_path, *SMALL).exit_code == 0
    result = run("inspect", tmp_path / "small.rtx.engine")
    assert result.exit_code == 0
    for text in (
        "TensorRT-RTX engine, offline, fp32, features in",
        f"TensorRT-RTX {rtx.version}, compute capability 8.0, 8.6, 8.9, 12.0, 12.1",
        "1 to 2 utterances of 0.2 to 1 s, tuned for 1 of 0.5 s",
        NO_GPU,
        f"ds2deploy export {small_onnx} --out {tmp_path} --rtx --batch 1,1,2 --seconds 0.2,0.5,1",
    ):
        assert text in result.stdout, text
    details = json.loads(run("inspect", tmp_path / "small.rtx.engine", "--json").stdout)["details"]
    assert details["kind"] == "engine"
    assert details["engine"]["profile"]["batch"] == [1, 1, 2]


def test_the_reader_of_descriptions_agrees_with_onnx(small_onnx: Path):
    import onnx

    (entry,) = onnx.load(small_onnx).metadata_props
    assert read_onnx_description(small_onnx).to_json() == entry.value


@pytest.mark.parametrize("kept", [1, 2, 10, 1000, -1, -40])
def test_a_truncated_file_is_refused(kept: int, small_onnx: Path, tmp_path: Path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(small_onnx.read_bytes()[:kept])
    with pytest.raises(ModelFileError, match=r"cut\.onnx: "):
        read_onnx_description(path)


def test_bf16_is_refused_by_onnxruntime_with_the_way_out(
    small_checkpoint: Path, rtx: TensorRt, tmp_path: Path
):
    result = run(
        "export", small_checkpoint, "--rtx", "--precision", "bf16", "--out", tmp_path, *SMALL
    )
    assert result.exit_code == 0, result.stderr
    path = tmp_path / "model.bf16.onnx"
    assert refused("transcribe", path, "a.wav") == (
        f"{path}: ONNX Runtime cannot run bf16 on cpu; export the checkpoint as an engine (--trt "
        "or --rtx), or with --precision fp16"
    )
    assert "export the checkpoint with --precision bf16 and --trt or --rtx" in refused(
        "export", path, "--rtx", "--out", tmp_path / "out"
    )
    assert run("inspect", path).exit_code == 0
    assert run("verify", path, small_checkpoint, "--network").exit_code == 0
