"""`ds2deploy bench`: what it measures is consistent, and what it advises follows from that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ds2deploy.bench import plan as bench_plan
from ds2deploy.bench.machine import describe_machine
from ds2deploy.bench.measure import Benchmark, Skipped, runnable
from ds2deploy.bench.plan import Case, make_plan, open_case
from ds2deploy.bench.probe import run_probe
from ds2deploy.bench.report import advise
from ds2deploy.bench.stages import Measurement, StagedRun, compare
from ds2deploy.bench.timing import latency, ratio
from ds2deploy.cli.app import app
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.engine_description import Profile
from ds2deploy.runtimes.errors import ConfigError, DeviceError

PNG = b"\x89PNG\r\n\x1a\n"
RATE = 16_000


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def plots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "plots"


@pytest.fixture(scope="module")
def document(small_checkpoint: Path, small_onnx: Path, plots: Path) -> dict[str, Any]:
    """The checkpoint and its ONNX file, measured once for all tests."""
    options = ("--batch", "1,2", "--seconds", "1", "--rounds", "2", "--threads", "1")
    result = run(small_onnx, small_checkpoint, *options, "--plots", plots, "--json")
    measured: dict[str, Any] = json.loads(result.stdout)
    return measured


def test_every_model_runs_on_every_runtime_at_every_batch(document: dict[str, Any]):
    rows = {(row["runtime"], row["batch"], row["audio_s"]) for row in document["measurements"]}
    runtimes = ("torch packed", "torch", "onnxruntime")
    assert {(name, batch, 1.0) for name in runtimes for batch in (1, 2)} <= rows
    assert {start["runtime"] for start in document["starts"]} >= set(runtimes)
    assert document["reference"] == "small.ckpt on torch packed"


def test_stages_add_up_to_the_total(document: dict[str, Any]):
    for row in document["measurements"]:
        rounds = row["rounds_s"]
        stages = np.array([rounds[stage] for stage in ("features", "network", "decoding")])
        beside = np.array(rounds["total"]) - stages.sum(axis=0)
        assert (stages > 0).all()
        assert row["beam_search"]["p50"] == pytest.approx(np.median(rounds["beam_search"]))
        assert row["beam_search"]["p50"] > 0
        assert (beside >= 0).all()
        assert beside.min() < 0.002  # the other round may have been interrupted
        assert row["total"]["p50"] == pytest.approx(np.median(rounds["total"]))
        assert row["total"]["p50"] <= row["total"]["p95"] <= row["total"]["p99"]
        assert row["total"]["runs"] == document["rounds"] == len(rounds["total"]) == 2
        audio_s = row["batch"] * row["audio_s"]
        assert row["real_time_factor"] == pytest.approx(row["total"]["p50"] / audio_s)
        assert row["throughput"] * row["real_time_factor"] == pytest.approx(1)


def test_ratios_are_to_the_reference_round_by_round(document: dict[str, Any]):
    rows = {(row["runtime"], row["batch"]): row for row in document["measurements"]}
    for batch in (1, 2):
        reference = rows["torch packed", batch]
        assert reference["total_ratio"] == {"median": 1, "low": 1, "high": 1}
        assert reference["network_ratio"] == {"median": 1, "low": 1, "high": 1}
        own = rows["onnxruntime", batch]
        for stage, name in (("total", "total_ratio"), ("network", "network_ratio")):
            pairs = zip(reference["rounds_s"][stage], own["rounds_s"][stage], strict=True)
            assert own[name]["median"] == pytest.approx(np.median([a / b for a, b in pairs]))


def test_starts_are_those_of_fresh_processes(document: dict[str, Any]):
    starts = {start["runtime"]: start for start in document["starts"]}
    assert all(20 < start["peak_memory_mib"] < 8000 for start in starts.values())
    assert starts["onnxruntime"]["peak_memory_mib"] < starts["torch"]["peak_memory_mib"]
    for start in starts.values():
        parts = ("imports_s", "loading_s", "first_run_s", "warm_run_s")
        assert all(0 < start[part] < 120 for part in parts)
        assert (start["audio_s"], start["sample_rate"]) == (1.0, 8000)
    # Importing torch takes longer than opening a small checkpoint, and is not part of that.
    assert starts["torch"]["imports_s"] > 2 * starts["torch"]["loading_s"]


def test_plots_are_written(document: dict[str, Any], plots: Path):
    paths = [Path(path) for path in document["plots"]]
    assert [path.name for path in paths] == ["latency.png", "throughput.png"]
    assert sorted(plots.iterdir()) == sorted(paths)
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_a_table_for_people(small_onnx: Path):
    output = run(small_onnx, "--batch", "1", "--seconds", "0.5", "--rounds", "1").stdout
    for text in ("small.onnx", "onnxruntime", "p99", "RTF", "decoding", "memory MiB", "1.00x"):
        assert text in output
    assert "no checkpoint was given, so the reference is small.onnx on onnxruntime" in output


def test_help_has_an_example():
    assert "Example: ds2deploy bench" in run("--help").stdout


BAD = [
    (("nothing.onnx",), "nothing.onnx: no such file"),
    (("{model}", "--batch", "0"), "--batch 0: expected whole numbers"),
    (("{model}", "--batch", "1,x"), "--batch 1,x: expected whole numbers"),
    (("{model}", "--seconds", "nan"), "--seconds nan: expected seconds"),
    (("{model}", "--runtime", "gpu"), "--runtime gpu: expected one of onnxruntime"),
    (("{model}", "--runtime", "torch"), "--runtime torch: cannot run"),
    (("{model}", "--reference", "{model}"), "not a checkpoint; give a .ckpt"),
    (("{model}", "--plots", "{model}"), "is a file; expected a folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line(small_onnx: Path, arguments: tuple[str, ...], message: str):
    result = run(*(text.replace("{model}", str(small_onnx)) for text in arguments), code=2)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_without_matplotlib_the_extra_is_named(
    small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run(small_onnx, "--plots", tmp_path, code=2)
    assert "pip install 'ds2deploy[bench]'" in result.stderr


def test_a_damaged_model_is_refused(small_onnx: Path, tmp_path: Path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(small_onnx.read_bytes()[:1000])
    # Not skipped, as a runtime that is not there would be.
    message = run(small_onnx, path, code=2).stderr
    assert f"{path}: damaged" in message
    assert "export it again" in message


def test_the_plan(small_onnx: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    plan = make_plan([small_onnx, small_checkpoint, small_onnx], batch="8,1,8", seconds="2,0.5")
    optional = {backend.name for backend in bench_plan.BACKENDS if backend.module}
    unasked = [case.runtime for case in plan.cases if case.runtime not in optional]
    assert unasked == ["onnxruntime", "torch packed", "torch"]
    assert plan.reference[0].runtime == "torch packed"
    assert (plan.batches, plan.durations_s) == ((1, 8), (0.5, 2.0))
    only = make_plan([small_onnx], runtimes=["onnxruntime"], reference=small_checkpoint)
    assert [case.runtime for case in only.cases] == ["onnxruntime", "torch packed"]
    hyphens = make_plan([small_checkpoint], runtimes=["torch-packed,torch"])
    assert [case.runtime for case in hyphens.cases] == ["torch packed", "torch"]
    monkeypatch.setattr("ctypes.util.find_library", lambda name: "libcuda.so.1")
    on_gpu = make_plan([small_onnx, small_checkpoint])
    assert {"cuda", "tensorrt", "rtx", "torch cuda"} <= {case.runtime for case in on_gpu.cases}
    assert on_gpu.reference[0].runtime == "torch cuda"


@pytest.mark.parametrize("name", ["torch-packed", "Torch packed", "onnx-reference", "SomeRuntime"])
def test_names_with_hyphens_and_capitals_can_be_asked_for(
    name: str, small_onnx: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bench_plan, "NAMES", ("torch packed", "onnx-reference", "SomeRuntime"))
    [found] = bench_plan._runtimes([name])
    assert found in bench_plan.NAMES
    assert found.replace(" ", "-").lower() == name.replace(" ", "-").lower()
    with pytest.raises(ConfigError, match=r"onnx reference.*torch-packed, onnx-reference"):
        make_plan([small_onnx], runtimes=["onnx reference 2"])


def test_a_runtime_that_is_only_for_comparison_is_measured_when_it_is_asked_for(
    small_onnx: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bench_plan, "_is_installed", lambda module: True)
    assert "openvino" in {case.runtime for case in make_plan([small_onnx]).cases}
    table = [item._replace(asked_only=item.name == "openvino") for item in bench_plan.BACKENDS]
    monkeypatch.setattr(bench_plan, "BACKENDS", table)
    assert "openvino" not in {case.runtime for case in make_plan([small_onnx]).cases}
    plan = make_plan([small_onnx], runtimes=["openvino"])
    assert [case.runtime for case in plan.cases] == ["openvino"]


def test_a_process_that_dies_is_named(
    small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A runtime that kills its process costs its own row only."""
    monkeypatch.setattr("sys.executable", "/bin/false")
    case = Case(small_onnx, "small.onnx", "onnxruntime", "onnx")
    answer = run_probe(case, 1, tmp_path / "speech.npy", RATE)
    assert answer.start is None
    assert not answer.bad_file
    assert "exit code 1" in answer.reason


def test_packed_torch_packs_its_sequences(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """And computes the same."""
    from ds2deploy.model.network import RecurrentLayer

    packed_layers = []
    pack = RecurrentLayer._packed

    def spy(layer: Any, *arguments: Any) -> Any:
        packed_layers.append(layer)
        return pack(layer, *arguments)

    monkeypatch.setattr(RecurrentLayer, "_packed", spy)
    results = {}
    for runtime in ("torch", "torch packed"):
        with open_case(Case(small_checkpoint, "small", runtime, "torch"), 0) as recognizer:
            bins = recognizer.description.features.bins
            features = np.random.default_rng(0).standard_normal((2, 1, bins, 50))
            results[runtime] = recognizer.log_probs(features, np.array([50, 50]))[0]
        assert bool(packed_layers) == (runtime == "torch packed")
    np.testing.assert_allclose(results["torch"], results["torch packed"], atol=1e-5)


# With sessions of our own


class Clock:
    """Stands almost still but for what sessions take."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-9
        return self.now


class FakeSession:
    """Answers with blanks after a while, by a clock of its own."""

    runtime = "fake"
    clock = Clock()

    def __init__(self, description: Any, seconds: float, profile: Profile | None = None) -> None:
        self.description, self.seconds, self.profile = description, seconds, profile
        self.at_once = None

    def run(self, sound: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.clock.now += self.seconds
        frames = (lengths - 1) // 2 + 1
        labels = len(self.description.labels)
        return np.zeros((len(sound), frames.max(), labels), np.float32), frames


def fake_case(name: str, runtime: str = "onnxruntime") -> Case:
    return Case(Path(name), name, runtime, "onnx")


def test_a_session_that_takes_longer_is_measured_slower(
    describe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ds2deploy.bench.timing.time", FakeSession.clock)
    monkeypatch.setattr("ds2deploy.bench.stages.time", FakeSession.clock)
    description = describe(ModelShape(hidden=4, layers=1))
    waveforms = [synthesize(RATE, RATE // 2, seed=i) for i in range(2)]
    fast, slow = fake_case("fast.onnx"), fake_case("slow.onnx")
    runs = {
        fast: StagedRun(FakeSession(description, 0.005), waveforms),
        slow: StagedRun(FakeSession(description, 0.02), waveforms),
    }
    rows = {row.model: row for row in compare(runs, fast, rounds=5)}
    assert rows["slow.onnx"].network.p50 == pytest.approx(0.02)
    assert rows["slow.onnx"].network_ratio is not None
    assert rows["slow.onnx"].network_ratio.median == pytest.approx(0.25)
    assert rows["slow.onnx"].features.p50 < 1e-6
    assert (rows["fast.onnx"].batch, rows["fast.onnx"].audio_s) == (2, 0.5)


def test_cases_outside_an_engines_profile_are_skipped(describe: Callable[..., Any]):
    description = describe(ModelShape(hidden=4, layers=1))
    session = FakeSession(description, 0.0, Profile(batch=(1, 2, 4), frames=(1, 100, 201)))
    reasons = {}
    for batch, seconds in ((4, 2.0), (5, 2.0), (4, 2.5)):
        waveforms = [np.zeros(int(RATE * seconds), np.float32)] * batch
        runs = {fake_case("model.engine", "rtx"): StagedRun(session, waveforms)}
        taken, skipped = runnable(runs, batch, seconds)
        assert len(taken) + len(skipped) == 1
        reasons[batch, seconds] = [item.reason for item in skipped]
    assert reasons[4, 2.0] == []
    assert "takes 1 to 4" in reasons[5, 2.0][0]
    assert "2.5 s of audio; this engine accepts" in reasons[4, 2.5][0]


def test_a_device_that_fails_is_skipped(describe: Callable[..., Any]):
    class Failing(FakeSession):
        def run(self, sound: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            raise DeviceError("out of memory")

    description = describe(ModelShape(hidden=4, layers=1))
    waveforms = [np.zeros(RATE, np.float32)]
    good, bad = fake_case("good.onnx"), fake_case("bad.onnx", "cuda")
    runs = {
        good: StagedRun(FakeSession(description, 0.0), waveforms),
        bad: StagedRun(Failing(description, 0.0), waveforms),
    }
    taken, skipped = runnable(runs, 1, 1.0)
    assert list(taken) == [good]
    assert [(item.model, item.reason) for item in skipped] == [("bad.onnx", "out of memory")]
    assert compare({}, good, rounds=1) == []


def test_models_of_two_rates_are_refused(small_onnx: Path, tmp_path: Path):
    import onnx

    model = onnx.load(small_onnx)
    for entry in model.metadata_props:
        changed = json.loads(entry.value)
        # Half the rate and twice the milliseconds: the same tensors.
        changed["features"] |= {"sample_rate": 4000, "window_ms": 8.0, "stride_ms": 4.0}
        entry.value = json.dumps(changed)
    other = tmp_path / "other.onnx"
    onnx.save(model, other)
    message = run(small_onnx, other, "--batch", "1", "--seconds", "0.5", code=2).stderr
    assert f"{other} (4000 Hz)" in message
    assert "different sample rates" in message


# Advice, with numbers of our own


def row(model: str, runtime: str, rounds: list[float], batch: int = 1) -> Measurement:
    flat = latency(rounds)
    return Measurement(
        model=model,
        runtime=runtime,
        batch=batch,
        audio_s=10.0,
        total=flat,
        features=flat,
        network=flat,
        decoding=flat,
        beam_search=flat,
        rounds_s={"total": rounds},
        real_time_factor=flat.p50 / 10 / batch,
        throughput=10 * batch / flat.p50,
        total_ratio=ratio([1.0, 1.1, 1.2], rounds),
        network_ratio=None,
    )


def advice(*rows: Measurement) -> list[str]:
    return advise(
        Benchmark(
            machine=describe_machine(),
            threads=1,
            rounds=3,
            reference="m.ckpt on torch packed",
            remarks=(),
            starts=(),
            measurements=rows,
            skipped=(Skipped(model="m.onnx", runtime="cuda", reason="no GPU"),),
        )
    )


PACKED = row("m.ckpt", "torch packed", [1.0, 1.1, 1.2])


def test_the_fastest_is_advised():
    lines = advice(PACKED, row("m.onnx", "onnxruntime", [0.5, 0.55, 0.6]))
    assert lines == [
        "batch 1: use m.onnx on onnxruntime: the fastest, "
        "2.00x (2.00 to 2.00) the speed of m.ckpt on torch packed at 10 s"
    ]


def test_torch_is_advised_where_it_is_faster():
    lines = advice(PACKED, row("m.onnx", "onnxruntime", [2.0, 2.2, 2.4]))
    assert lines == [
        "batch 1: use m.ckpt on torch packed: the fastest at 10 s",
        "m.onnx on onnxruntime is slower than m.ckpt on torch packed: "
        "batch 1, 10 s (0.50x (0.50 to 0.50) its speed)",
    ]


def test_the_slower_of_two_exported_ways_is_named():
    lines = advice(
        PACKED,
        row("m.onnx", "cuda", [0.1, 0.11, 0.12]),
        row("m.engine", "tensorrt", [0.2, 0.22, 0.24]),
    )
    assert lines[0].startswith("batch 1: use m.onnx on cuda")
    assert lines[1].startswith(
        "TensorRT (m.engine on tensorrt) is slower than ONNX Runtime (m.onnx on cuda): batch 1"
    )
    swapped = advice(
        row("m.onnx", "cuda", [0.2, 0.22, 0.24]), row("m.engine", "tensorrt", [0.1, 0.11, 0.12])
    )
    assert swapped[1].startswith("ONNX Runtime (m.onnx on cuda) is slower than TensorRT")


def test_noise_decides_nothing():
    lines = advice(PACKED, row("m.onnx", "onnxruntime", [1.3, 1.0, 1.1]))
    assert len(lines) == 1
    assert "within the noise" in lines[0]


def test_small_and_large_batches_are_advised_apart():
    lines = advice(
        PACKED,
        row("m.onnx", "onnxruntime", [0.5, 0.55, 0.6]),
        row("m.ckpt", "torch packed", [2.0, 2.2, 2.4], batch=8),
        row("m.onnx", "onnxruntime", [4.0, 4.4, 4.8], batch=8),
    )
    assert lines[0].startswith("batch 1: use m.onnx on onnxruntime")
    assert lines[1].startswith("batch 8: use m.ckpt on torch packed")
    assert "is slower than m.ckpt on torch packed: batch 8" in lines[2]
