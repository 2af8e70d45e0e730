"""Every benchmark runs at the sizes of a test, and what it prints is what it measured."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from ds2deploy.model.convolution import FourierConv2d

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def goals(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert result["quick"]
    assert result["machine"]["cores"] >= 1
    return {goal["name"]: goal for goal in result["goals"]}


@pytest.mark.thorough
def test_latency(run_script, tmp_path: Path):
    result = run_script("latency.py", "--quick", "--out", str(tmp_path))
    found, seconds = goals(result), result["data"]["seconds"]
    for name in ("fp32", "int8"):
        for batch in (1, 8):
            goal = found[f"ONNX Runtime {name} against packed torch, batch {batch} x 0.2 s"]
            packed = seconds[f"torch, packed sequences x {batch}"]
            ours = seconds[f"ONNX Runtime {name} x {batch}"]
            ratios = [p / o for p, o in zip(packed, ours, strict=True)]
            assert goal["measured"] == pytest.approx(statistics.median(ratios))
            assert goal["floor"] > 0
    sizes = result["data"]["file_bytes"]
    share = 100 * sizes["ONNX Runtime int8"] / sizes["ONNX Runtime fp32"]
    assert found["int8 file against fp32's"]["measured"] == pytest.approx(share)
    growth = result["data"]["growth"]["duration"]["ONNX Runtime fp32"]
    assert [x for x, _ in growth] == [0.2, 0.4, 0.8]
    assert json.loads((tmp_path / "latency.json").read_text()) == result
    for name in ("growth-duration.png", "growth-batch.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in (tmp_path / "latency.md").read_text()


@pytest.mark.thorough
def test_limits(run_script):
    result = run_script("limits.py", "--quick")
    data = result["data"]
    assert {"fp32", "bf16", "int8"} <= data["multiply"].keys()
    assert all(1e8 < rate < 1e14 for rate in data["multiply"].values())
    assert all(1e8 < rate < 1e13 for rate in data["read"].values())
    case = "ONNX Runtime fp32, batch 8"
    share = goals(result)[f"{case}: share of the floor's speed"]["measured"]
    floors, seconds = data["floors_s"][case], data["seconds"][case]
    pairs = [100 * floor / took for floor, took in zip(floors, seconds, strict=True)]
    assert share == pytest.approx(statistics.median(pairs))
    assert min(floors) >= data["least_s"][case] > 0  # by the best rates of all rounds
    assert data["operations"][case] == pytest.approx(
        8 * data["operations"]["ONNX Runtime fp32, batch 1"]
    )
    assert any(note.startswith(f"{case}: the least time is") for note in result["notes"])
    assert any("int8" in note for note in result["notes"])


@pytest.mark.thorough
def test_throughput(run_script):
    result = run_script("throughput.py", "--quick")
    found, passes = goals(result), result["data"]["passes"]
    assert found["the same text, in both"]["measured"] == 12
    assert found["the same text, in both"]["status"] == "met"
    assert passes["digits, fp32"]["same"] == 12
    fp32 = passes["2 x BiLSTM-32, fp32"]
    assert fp32["distinct"] > 3  # random weights, yet they answer with labels
    command = passes["the first, through the command"]
    assert command["distinct"] == fp32["distinct"]
    assert command["alone_s"] > 2 * fp32["alone_s"]  # a process starts for each
    for words, way in (("for each", command), ("one by one", fp32)):
        goal = next(goal for name, goal in found.items() if words in name)
        assert goal["measured"] == pytest.approx(way["alone_s"] / way["together_s"])
    assert goal["floor"] == pytest.approx(fp32["alone_s"] / result["data"]["least_together_s"])


@pytest.mark.thorough
def test_startup(run_script):
    result = run_script("startup.py", "--quick")
    texts = result["data"]["texts"]
    assert len(set(texts.values())) == 1
    assert next(iter(texts.values())).strip()
    onnx, torch = result["data"]["peak_mb"].values()
    assert 30 < onnx < torch
    found = goals(result)
    assert found["its resident memory at most"]["measured"] == onnx


def test_startup_time_is_split_by_imports(benchmark_module):
    startup = benchmark_module("startup")
    medians = (0.03, 0.09, 0.15, 0.2, 9.0, 0.43)
    took = {name: [s] for name, s in zip([*startup.IMPORTS, startup.ONNX], medians, strict=True)}
    assert startup.split(took) == (
        "Of 430 ms: 30 ms Python, 60 ms the command line, 60 ms numpy, 50 ms ONNX Runtime, "
        "230 ms model, audio and recognition."
    )


@pytest.mark.thorough
def test_training(run_script):
    result = run_script("training.py", "--quick")
    found, data = goals(result), result["data"]
    difference = found["largest difference of gradients, relative"]
    assert 0 < difference["measured"] < 1e-3
    step = found["training step against packed sequences"]
    ours, _, peers = data["seconds"].values()
    assert step["measured"] == pytest.approx(peers[0] / ours[0])
    assert data["least_s"] > 0
    busy, waited = sum(data["busy_s"]), sum(data["waited_s"][1:])
    share = found["the network's share of the training's time"]["measured"]
    assert share == pytest.approx(100 * busy / (busy + waited))
    assert len(data["busy_s"]) == len(data["waited_s"]) == 3
    memory = found["a training's memory, growth from step 4 to 12"]
    resident = data["resident_mib"]
    assert len(resident) == 12
    assert min(resident) > 100
    assert memory["measured"] == pytest.approx(100 * (resident[-1] / resident[4] - 1))


def test_growth_of_a_training(benchmark_module):
    """Between medians: one step of long utterances is no growth, and the first steps are not."""
    growth = benchmark_module("training").growth
    flat = [100.0, 500.0, *[1000.0] * 10]
    assert growth(flat, warm_up=2) == 0
    assert growth([*flat[:5], 3000.0, *flat[6:]], warm_up=2) == 0
    assert growth([1000.0 + 5 * step for step in range(200)], warm_up=100) > 10


def test_operations_of_a_step_are_those_that_torch_counts(benchmark_module):
    """Of utterances that are all as long: torch counts padding too."""
    from torch.utils.flop_counter import FlopCounterMode

    training = benchmark_module("training")
    recipe = training.recipe_of(training.TINY)
    batch = training.make_batch(recipe, 2, (0.5, 0.5))
    packed = training.make_networks(recipe)[training.PEERS]
    with FlopCounterMode(display=False) as counter:
        training.backward(packed, batch)
    flops = counter.get_flop_counts()["Global"]
    convolutions = sum(n for op, n in flops.items() if "convolution" in str(op))
    stages = training.network_stages(recipe.model, 161, 29, 2, int(batch.lengths[0]))
    expected = sum((2 if s.name == "conv1" else 3) * s.operations for s in stages)
    of_rnns = sum(3 * s.operations for s in stages if s.name.startswith("rnn"))
    output = sum(n for op, n in flops.items() if str(op) == "aten.mm")
    assert convolutions + output == expected - of_rnns > 0
    assert training.least_step(recipe, batch, 1e9) == pytest.approx(expected / 1e9)


def test_unequal_gradients_are_seen(benchmark_module):
    training = benchmark_module("training")
    recipe = training.recipe_of(training.TINY)
    batch = training.make_batch(recipe, 2, (0.5, 1.0))
    ours, packed, peers = training.make_networks(recipe).values()
    for network in (packed, peers):
        assert [layer.packed for layer in network.rnns] == [True, True]
        assert training.gradient_difference(ours, network, batch) < 1e-3
    assert not any(layer.packed for layer in ours.rnns)
    kinds = [
        {type(m) for m in network.conv.modules() if isinstance(m, nn.Conv2d)}
        for network in (ours, peers)
    ]
    assert kinds == [{FourierConv2d}, {nn.Conv2d}]
    ours.rnns[1].rnn.weight_hh_l0.data[0, 0] += 0.5
    assert training.gradient_difference(ours, packed, batch) > 1e-3


def test_features_with_and_without_librosa(benchmark_module, monkeypatch: pytest.MonkeyPatch):
    features = benchmark_module("features")
    monkeypatch.setitem(sys.modules, "librosa", None)
    without = features.measure(0.5, 3, quick=True)
    assert [goal.status for goal in without.goals] == ["not measured"] * 2
    assert "pip install 'ds2deploy[peers]'" in without.notes[0]
    assert without.data["differences"][features.TORCH] < 1e-5
    monkeypatch.undo()
    pytest.importorskip("librosa")
    monkeypatch.syspath_prepend(str(FOLDER))
    speed, difference = features.measure(0.5, 3, quick=True).goals
    assert speed.measured > 0
    assert difference.status == "met"


def test_language_model(run_script):
    result = run_script("language_model.py", "--quick")
    found, data = goals(result), result["data"]
    grams = sum(data["counts"])
    size = found["size per n-gram, with the vocabulary"]["measured"]
    assert size == pytest.approx(data["size"] / grams)
    assert found["ds2deploy lm: peak memory"]["measured"] == data["peak_mb"] > 20
    opening = found["opening, per million n-grams"]["measured"]
    assert opening == pytest.approx(1e9 * data["open_s"] / grams)


@pytest.mark.slow
def test_decoding(run_script):
    result = run_script("decoding.py", "--quick")
    per_second = result["data"]["ms_per_s"]
    for goal, case in (
        ("beam 64 with words, one utterance, for a second of audio", "alone beam 64, words"),
        ("beam 16 with words, each of 4 streams, for a second of audio", "streams beam 16, words"),
    ):
        assert goals(result)[goal]["measured"] == per_second[case] > 0
    assert per_second["alone greedy"] < per_second["alone beam 64"]


def test_gpu_without_one():
    done = subprocess.run(
        [sys.executable, str(FOLDER / "gpu.py"), "--device", "cuda:7"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpu.py: no usable GPU: ")


@pytest.fixture
def gpu(benchmark_module, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With the stand-in for a GPU and TensorRT, whose builder takes the ONNX file as it is."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "runtimes" / "tensorrt"))
    standin = __import__("tensorrt_standin")
    module = benchmark_module("gpu")
    standin.Machine(flavor="tensorrt", version="10.3.0").install(monkeypatch)

    def build(job: Any, _: Any) -> tuple[float, float, float, int]:
        shapes = job.profile["features"]
        profile = {"batch": [s[0] for s in shapes], "frames": [s[-1] for s in shapes]}
        blob = standin.make_blob(Path(job.onnx).read_bytes(), profile)
        Path(job.engine).write_bytes(blob)
        return 0.5, 7.25, 300.0, 99

    monkeypatch.setattr(module, "run_build", build)
    return module


def test_gpu(gpu: ModuleType):
    """One table with every way, and the reason of what is not there."""
    result = gpu.measure("cpu", gpu.QUICK, ["fp32"], quick=True)
    turns, engines, missing = result.tables
    assert {(row[0], row[1]) for row in turns.rows} == {
        (name, batch)
        for name in (
            "torch cpu fp32",
            "ONNX Runtime cpu fp32",
            "TensorRT fp32, CUDA graphs on",
            "TensorRT fp32, CUDA graphs off",
        )
        for batch in ("1", "2")
    }
    assert engines.rows == [["TensorRT fp32", "0.5", "7.2", "300", "99"]]
    (row,) = missing.rows
    assert row[0] == "TensorRT-RTX fp32"
    assert "pip install" in row[1]
    assert result.data["cuda_graphs"] == {
        "TensorRT fp32, CUDA graphs on": "on",
        "TensorRT fp32, CUDA graphs off": "off",
    }
    speed = {row[0]: (float(row[2]), float(row[5])) for row in turns.rows if row[1] == "2"}
    for p50_ms, audio_s in speed.values():
        assert audio_s == pytest.approx(2 * 0.5 / (p50_ms / 1000), abs=1, rel=0.02)
    assert "On a GPU" in result.markdown()


def test_goals(benchmark_module):
    report = benchmark_module("report")

    def status(measured: float | None, floor: float | None = None, least: bool = True) -> str:
        goal = report.Goal("a", 2.0, measured, least=least, floor=floor)
        return goal.status

    assert status(2.0) == "met"
    assert status(1.9) == status(1.9, floor=2.1) == "not met"
    assert status(1.9, floor=1.99) == "beyond the floor of this machine"
    assert status(2.1, floor=1.9) == "met"
    assert status(2.1, least=False) == "not met"
    assert status(1.9, least=False) == "met"
    assert status(None) == "not measured"


def test_the_report_of_all(benchmark_module, tmp_path: Path, monkeypatch, capsys):
    report = benchmark_module("report")
    from ds2deploy.bench.machine import describe_machine

    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    assert report.main() == 2
    goal = report.Goal("a | b", 2.0, 2.5, floor=3.0)
    plot = report.Plot(
        file="p.png", title="P", x_label="x", y_label="y", series={"s": [(1.0, 2.0)]}
    )
    made = report.Result(
        name="limits", title="Limits", machine=describe_machine(), goals=[goal], plots=[plot]
    )
    report.write(made, tmp_path)
    assert report.read_results(tmp_path) == [made]
    assert report.main() == 0
    page = (tmp_path / "README.md").read_text()
    assert "| a \\| b | at least 2x | 2.5x | 3x | met |" in page
    assert "![P](p.png)" in page
    assert str(describe_machine()) in page
    assert "Not measured: latency, throughput, startup, training, features." in page
