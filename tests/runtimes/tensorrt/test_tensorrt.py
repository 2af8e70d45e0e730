"""The session on TensorRT, on a machine with a GPU that `tensorrt_standin.py` stands in for."""

from __future__ import annotations

import gc
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import logging
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2deploy.runtimes.engine_description import BuildFacts, EngineDescription, Profile
from ds2deploy.runtimes.errors import (
    DeviceError,
    Ds2Error,
    FeaturesError,
    MissingFileError,
    ModelFileError,
    RuntimeUnavailableError,
)
from ds2deploy.runtimes.features import FeatureConfig, pad_features
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.runtimes.session import beyond_profile
from ds2deploy.runtimes.tensorrt import cuda, engine_file
from ds2deploy.runtimes.tensorrt.contexts import ExecutionContext
from ds2deploy.runtimes.tensorrt.library import TensorRt
from ds2deploy.runtimes.tensorrt.log import make_log
from ds2deploy.runtimes.tensorrt.session import TensorRtSession


def load_standin() -> Any:
    name = "tensorrt_standin"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


standin = load_standin()
PATIENCE_S = 600
"""No machine needs as long."""
ERRORS = standin.cudaError_t

REBUILD = "ds2deploy export run/best.ckpt --trt --out out"
PROFILE = Profile(batch=(1, 4, 8), frames=(20, 100, 400))
NARROW = Profile(batch=(2, 4, 16), frames=(60, 100, 400))
TOLERANCE = 1e-6
"""Both sides are ONNX Runtime; only padding and the order of sums in a batch differ."""


def write_engine(
    onnx: Path, folder: Path, machine: Any, profile: Profile = PROFILE, **changes: Any
) -> Path:
    """model.engine and its description; `changes` are of the description's engine part."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.engine"
    blob = changes.pop("blob", None) or standin.make_blob(
        onnx.read_bytes(), msgspec.to_builtins(profile), changes.pop("tensors", None)
    )
    engine = EngineDescription(
        **{
            "flavor": machine.flavor,
            "version": machine.version,
            "compute_capabilities": (machine.capability,),
            "profile": profile,
            "onnx_sha256": hashlib.sha256(onnx.read_bytes()).hexdigest(),
            "engine_sha256": hashlib.sha256(blob).hexdigest(),
            "size": len(blob),
            "network_parity": {},
            "compared_with": "torch cpu, best.ckpt",
            "verification": "none",
            "rebuild": REBUILD,
            "build": BuildFacts(
                parse_s=0,
                build_s=0,
                network_check_s=0,
                engine_check_s=None,
                peak_memory_mb=0,
                layers=0,
            ),
            **changes,
        }
    )
    description = msgspec.structs.replace(OnnxSession(onnx).description, engine=engine)
    path.write_bytes(blob)
    engine_file.description_path(path).write_text(engine_file.sealed(description).to_json())
    return path


@pytest.fixture
def machine(monkeypatch) -> Any:
    """A GPU with compute capability 8.9 and TensorRT 10.3.0; nothing undefined may be done."""
    made = standin.Machine().install(monkeypatch)
    yield made
    assert made.violations == []


@pytest.fixture
def rtx_machine(monkeypatch) -> Any:
    made = standin.Machine(flavor="rtx", version="1.7.1").install(monkeypatch)
    yield made
    assert made.violations == []


@pytest.fixture
def engine(small_onnx, tmp_path, machine) -> Path:
    return write_engine(small_onnx, tmp_path, machine)


@pytest.fixture
def reference(small_onnx) -> OnnxSession:
    return OnnxSession(small_onnx, threads=1)


def make_batch(lengths: list[int], seed: int = 0, bins: int = 17) -> tuple[Any, Any]:
    random = np.random.default_rng([seed, *lengths])
    return pad_features([random.standard_normal((bins, n)).astype(np.float32) for n in lengths])


def assert_same(found: tuple[Any, Any], expected: tuple[Any, Any], tolerance=TOLERANCE) -> None:
    assert found[0].dtype == np.float32
    assert found[1].dtype == np.int64
    assert found[0].shape == expected[0].shape
    assert found[1].tolist() == expected[1].tolist()
    for ours, theirs, length in zip(found[0], expected[0], found[1], strict=True):
        assert np.abs(ours[:length] - theirs[:length]).max() <= tolerance


def clean(machine: Any) -> bool:
    return machine.left() == {} and machine.violations == []


# ---- It computes what ONNX Runtime computes

RAGGED = [[100], [33, 100, 7], [400, 1, 399], [1], [19], [20, 3], [50] * 8, [61, 60, 59, 58]]


@pytest.mark.parametrize(
    ("profile", "lengths"),
    [*((PROFILE, lengths) for lengths in RAGGED), (NARROW, [1]), (NARROW, [400, 1, 399])],
    ids=str,
)
def test_results_are_those_of_onnx_runtime(
    profile, lengths, small_onnx, reference, tmp_path, machine
):
    path = write_engine(small_onnx, tmp_path, machine, profile)
    features, valid = make_batch(lengths)
    with TensorRtSession(path) as session:
        for _ in range(4):  # uncaptured, captured, and two replays
            assert_same(session.run(features, valid), reference.run(features, valid))
    assert clean(machine)


def test_an_engine_in_a_folder_whose_name_is_not_utf8(small_onnx, reference, tmp_path, rtx_machine):
    """Its description, the engine and what TensorRT-RTX compiled are beside one another there."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    path = write_engine(small_onnx, folder, rtx_machine)
    batch = make_batch([100])
    with TensorRtSession(path) as session:
        assert_same(session.run(*batch), reference.run(*batch))
    assert sorted(item.suffix for item in folder.iterdir()) == [".cache", ".engine", ".json"]


def test_a_trained_model_gives_the_same_as_onnx_runtime(digits_onnx, tmp_path, machine):
    profile = Profile(batch=(2, 4, 8), frames=(80, 200, 600))
    path = write_engine(digits_onnx, tmp_path, machine, profile)
    reference = OnnxSession(digits_onnx, threads=1)
    bins = reference.description.features.bins
    with TensorRtSession(path) as session:
        for lengths in ([150, 90], [40], [150, 90], [150, 90]):
            batch = make_batch(lengths, bins=bins)
            # Other batch and other padding than ONNX Runtime's: the order of float32 sums differs.
            assert_same(session.run(*batch), reference.run(*batch), 2e-5)


def test_values_past_a_length_change_nothing(engine, reference):
    features, valid = make_batch([50, 20])
    expected = reference.run(features, valid)
    features[1, ..., 20:] = 1e3
    with TensorRtSession(engine) as session:
        assert_same(session.run(features, valid), expected)


def test_shapes_in_any_order_leave_nothing_of_one_another(engine, reference):
    random = np.random.default_rng(3)
    with TensorRtSession(engine) as session:
        for seed in range(40):
            count = random.integers(1, 5)
            batch = make_batch(list(random.choice([10, 35, 36, 90, 200], size=count)), seed)
            assert_same(session.run(*batch), reference.run(*batch))


def test_results_own_their_memory(engine, reference):
    first, second = make_batch([50, 40], 1), make_batch([50, 40], 2)
    with TensorRtSession(engine) as session:
        results = [session.run(*batch) for batch in (first, second, first, second)]
    for (log_probs, lengths), batch in zip(results, (first, second) * 2, strict=True):
        assert log_probs.flags.owndata
        assert lengths.flags.owndata
        assert_same((log_probs, lengths), reference.run(*batch))


def test_its_attributes(engine, machine):
    with TensorRtSession(engine, "cuda:0") as session:
        assert session.runtime == "tensorrt cuda:0"
        assert session.profile == PROFILE
        assert session.description.engine.rebuild == REBUILD
        assert session.cuda_graphs == "on"
    with TensorRtSession(engine, cuda_graphs=False) as session:
        assert session.cuda_graphs == "off"


def test_another_gpu_by_its_index(small_onnx, tmp_path, monkeypatch, reference):
    machine = standin.Machine(devices=3).install(monkeypatch)
    path = write_engine(small_onnx, tmp_path, machine)
    with TensorRtSession(path, "cuda:2") as session:
        batch = make_batch([30])
        assert_same(session.run(*batch), reference.run(*batch))
        thread = threading.Thread(target=session.run, args=batch)
        thread.start()
        thread.join()
    assert machine.used_devices == {2}
    assert clean(machine)


# ---- What it refuses


def refused(path: Path, error: type[Exception], device: str = "cuda") -> str:
    with pytest.raises(error) as caught:
        TensorRtSession(path, device)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("capability", ["9.0", "8.7"])
def test_a_gpu_that_tensorrt_rtx_does_not_know(capability, small_onnx, tmp_path, rtx_machine):
    """Building it again with TensorRT-RTX would not help."""
    rebuild = "ds2deploy export best.ckpt --out d --rtx --targets 8.6"
    path = write_engine(small_onnx, tmp_path, rtx_machine, rebuild=rebuild)
    rtx_machine.capability = capability
    with pytest.raises(RuntimeUnavailableError) as caught:
        TensorRtSession(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: TensorRT-RTX does not support ")
    assert f"compute capability {capability} (supported: 7.5, 8.0, " in message
    assert message.endswith("ds2deploy export best.ckpt --out d --trt")


def test_an_engine_of_the_other_library(small_onnx, tmp_path, machine):
    path = write_engine(small_onnx, tmp_path, machine, flavor="rtx", version="1.7.1")
    message = refused(path, RuntimeUnavailableError)
    assert message.startswith(
        f"{path} was built by TensorRT-RTX 1.7.1, which cannot be used here: "
    )
    assert "TensorRT-RTX cannot be imported" in message
    assert "pip install 'ds2deploy[rtx]'" in message
    assert message.endswith(f"; or build it again: {REBUILD}")


def test_an_engine_of_another_version(small_onnx, tmp_path, machine):
    path = write_engine(small_onnx, tmp_path, machine, version="10.4.0")
    message = refused(path, RuntimeUnavailableError)
    assert message.startswith(f"{path} was built by TensorRT 10.4.0, but this machine has 10.3.0, ")
    assert message.endswith(f"; build it again: {REBUILD}")


def test_an_engine_of_another_gpu(small_onnx, tmp_path, machine):
    path = write_engine(small_onnx, tmp_path, machine)
    machine.capability = "8.7"
    assert refused(path, RuntimeUnavailableError) == (
        f"{path} was built for compute capability 8.9, this GPU is 8.7; build it again: {REBUILD}"
    )


@pytest.mark.parametrize(
    ("has", "built", "compatibility", "runs"),
    [
        ("8.7", ("8.6", "8.7"), "none", True),
        ("8.7", ("8.6", "8.9"), "none", False),
        ("8.7", ("8.9",), "ampere_plus", True),
        ("10.0", ("8.9",), "ampere_plus", True),
        ("7.5", ("8.9",), "ampere_plus", False),
        ("8.6", ("8.6",), "same_compute_capability", True),
        ("8.7", ("8.6",), "same_compute_capability", False),
    ],
)
def test_an_engine_runs_on_the_gpus_that_it_was_built_for(
    has, built, compatibility, runs, small_onnx, tmp_path, machine
):
    path = write_engine(
        small_onnx,
        tmp_path,
        machine,
        compute_capabilities=built,
        hardware_compatibility=compatibility,
    )
    machine.capability = has
    if runs:
        TensorRtSession(path).close()
        return
    message = refused(path, RuntimeUnavailableError)
    assert (
        f"compute capability {', '.join(built)}, this GPU is {has}; build it again: {REBUILD}"
        in message
    )


def test_an_engine_that_the_library_does_not_load(small_onnx, tmp_path, machine):
    path = write_engine(small_onnx, tmp_path, machine, blob=b"another kind of engine")
    assert refused(path, ModelFileError) == (
        f"{path}: TensorRT 10.3.0 cannot load it "
        f"(Serialization assertion magicTag failed); build it again: {REBUILD}"
    )
    assert clean(machine)


@pytest.mark.parametrize(
    ("tensor", "replacement"),
    [
        ("lengths", ("lengths", "INPUT", "INT32")),
        ("log_probs", ("logits", "OUTPUT", "FLOAT")),
        ("features", ("features", "OUTPUT", "FLOAT")),
        ("output_lengths", ("output_lengths", "OUTPUT", "FLOAT")),
    ],
)
def test_an_engine_with_other_tensors(tensor, replacement, small_onnx, tmp_path, machine):
    tensors = {
        "features": ("INPUT", "FLOAT"),
        "lengths": ("INPUT", "INT64"),
        "log_probs": ("OUTPUT", "FLOAT"),
        "output_lengths": ("OUTPUT", "INT64"),
    }
    del tensors[tensor]
    tensors[replacement[0]] = replacement[1:]
    path = write_engine(small_onnx, tmp_path, machine, tensors=tensors)
    message = refused(path, ModelFileError)
    name, mode, kind = replacement
    assert f"{name} ({mode.lower()}, {kind.lower()})" in message
    assert "description (features, lengths, log_probs, output_lengths)" in message
    assert message.endswith(REBUILD)
    assert clean(machine)


def test_no_engine_and_no_description(engine, tmp_path):
    assert "no such file" in refused(tmp_path / "other.engine", MissingFileError)
    engine_file.description_path(engine).unlink()
    assert "needs the description" in refused(engine, MissingFileError)


def test_an_edited_description(engine):
    beside = engine_file.description_path(engine)
    document = json.loads(beside.read_text())
    document["engine"]["compute_capabilities"] = ["8.7"]
    beside.write_text(json.dumps(document))
    assert refused(engine, ModelFileError).endswith(REBUILD)


def test_the_description_of_another_engine(engine, small_onnx, tmp_path, machine):
    other = write_engine(small_onnx, tmp_path / "other", machine, NARROW)
    engine.write_bytes(other.read_bytes())
    message = refused(engine, ModelFileError)
    assert "from another export than its description" in message
    assert message.endswith(REBUILD)


def test_a_truncated_engine(engine):
    blob = engine.read_bytes()
    engine.write_bytes(blob[:1000])
    message = refused(engine, ModelFileError)
    assert "truncated, damaged, or from another export" in message
    assert f"(1000 bytes, expected {len(blob)})" in message


def test_cheap_checks_come_first(small_onnx, tmp_path, machine):
    path = write_engine(small_onnx, tmp_path, machine, version="10.4.0")
    refused(path, RuntimeUnavailableError)
    assert machine.calls == []  # no GPU is asked for an engine of another version
    path = write_engine(small_onnx, tmp_path, machine, compute_capabilities=("8.7",))
    refused(path, RuntimeUnavailableError)
    assert not any("deserialize" in call for call in machine.calls)
    machine.calls.clear()
    path.write_bytes(b"damaged as well")
    assert "truncated, damaged" in refused(path, ModelFileError)
    assert machine.calls == []  # and none for a file of another size


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({"driver": 0}, "cuda", "there is no NVIDIA driver; install one"),
        (
            {"driver": 12060, "bindings": 13000},
            "cuda",
            "needs CUDA 13; pip install 'cuda-bindings==12.*'",
        ),
        ({"devices": 0}, "cuda", "cudaErrorNoDevice: nodevice): check the output of nvidia-smi"),
        ({"devices": 2}, "cuda:2", "cuda:2 does not exist, CUDA finds cuda:0, cuda:1: check"),
        ({}, "cpu", "'cpu' cannot run TensorRT engines: use cuda"),
        ({}, "cuda:", "'cuda:' cannot run TensorRT engines: use cuda"),
        ({}, "cuda:-1", "'cuda:-1' cannot run TensorRT engines: use cuda"),
    ],
)
def test_no_gpu(changes, device, reason, engine, machine):
    for name, value in changes.items():
        setattr(machine, name, value)
    assert reason in refused(engine, RuntimeUnavailableError, device)
    works, detail, remedy = cuda.examine_device(device)
    assert not works
    assert reason in f"{detail}: {remedy}"


def test_cuda_bindings_that_are_not_there_or_do_not_load(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    message = refused(engine, RuntimeUnavailableError)
    assert "cuda-bindings is not installed" in message
    assert message.endswith("pip install cuda-bindings")
    assert cuda.examine_device()[2] == "pip install cuda-bindings"

    def broken(name: str) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(cuda.importlib, "import_module", broken)
    works, detail, _ = cuda.examine_device()
    assert not works
    assert detail == (
        "cuda-bindings cannot be imported (libcudart.so.12: cannot open shared object file)"
    )


def test_a_driver_library_that_is_missing_when_it_is_called(engine, machine):
    def missing() -> None:
        raise RuntimeError('Failure finding "libcuda.so"\nmore')

    sys.modules["cuda.bindings.runtime"].cudaGetDeviceCount = missing
    assert 'Failure finding "libcuda.so"' in refused(engine, RuntimeUnavailableError)


def test_a_gpu_that_works(machine):
    assert cuda.examine_device() == (True, "Stand-in GPU, compute capability 8.9", "")


def test_batches_that_the_profile_does_not_take(small_onnx, tmp_path, machine):
    profile = Profile(batch=(1, 4, 16), frames=(20, 100, 400))
    with TensorRtSession(write_engine(small_onnx, tmp_path, machine, profile)) as session:
        with pytest.raises(FeaturesError) as caught:
            session.run(*make_batch([30] * 17))
        assert str(caught.value) == (
            "17 utterances; this engine accepts 1 to 16 at a time: "
            "split them, or rebuild the engine with --batch 1,4,17"
        )
        with pytest.raises(FeaturesError) as caught:
            session.run(*make_batch([30, 501]))
        # 2 ms from frame to frame: 500 of them.
        assert "1.0 s of audio; this engine accepts 0.038 to 0.798 s" in str(caught.value)
        assert "rebuild the engine with --seconds" in str(caught.value)
        assert "cudaStreamCreateWithFlags" not in machine.calls
        session.run(*make_batch([400] * 16))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500_000), st.sampled_from([8000, 11025, 16000]), st.integers(1, 100_000))
def test_every_frame_too_many_is_said_in_seconds(most, rate, more):
    features = FeatureConfig(sample_rate=rate)
    profile = Profile(batch=(1, 1, 1), frames=(1, 1, most))
    duration_s = (most + more - 1) * features.stride / rate
    assert beyond_profile(duration_s, profile, features) is not None


@pytest.mark.parametrize(
    ("features", "lengths"),
    [
        (np.zeros((1, 1, 16, 30), np.float32), [30]),
        (np.zeros((1, 17, 30), np.float32), [30]),
        (np.zeros((2, 1, 17, 30), np.float32), [30]),
        (np.zeros((1, 1, 17, 30), np.float32), [31]),
        (np.zeros((1, 1, 17, 30), np.float32), [0]),
        (np.zeros((0, 1, 17, 30), np.float32), []),
    ],
)
def test_features_that_no_session_takes(features, lengths, engine):
    with TensorRtSession(engine) as session, pytest.raises(FeaturesError):
        session.run(features, np.array(lengths, np.int64))


def test_features_of_another_layout_are_copied(engine, reference):
    features, valid = make_batch([50, 40])
    transposed = np.ascontiguousarray(features.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    with TensorRtSession(engine) as session:
        assert_same(
            session.run(transposed.astype(np.float64), valid.astype(np.int32)),
            reference.run(features, valid),
        )


# ---- Memory

ALLOCATIONS = ("cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags")


def allocations(machine: Any) -> int:
    return sum(map(machine.calls.count, ALLOCATIONS))


def test_nothing_is_allocated_after_the_largest_request(engine, reference, machine):
    with TensorRtSession(engine, cuda_graphs=False) as session:
        seen = []
        for lengths in ([30], [60], [200, 200], [400] * 8):
            session.run(*make_batch(lengths))
            seen.append(allocations(machine))
        assert seen == sorted(set(seen))  # each was larger than the one before
        size = machine.allocated()
        for seed, lengths in enumerate([[400] * 8, [30], [60] * 5, [399] * 8, [1], [400] * 8]):
            batch = make_batch(lengths, seed)
            assert_same(session.run(*batch), reference.run(*batch))
        assert allocations(machine) == seen[-1]
        assert machine.allocated() == size
    assert clean(machine)


def test_buffers_take_what_the_largest_request_takes(engine, machine):
    with TensorRtSession(engine) as session:
        session.run(*make_batch([400] * 8))
        exact = 8 * (17 * 400 * 4 + 8 + 200 * 29 * 4 + 8)
        assert machine.allocated() == 2 * exact  # on the device, and pinned on the host
    assert machine.left() == {}


def test_growing_frees_before_it_allocates(engine, machine):
    with TensorRtSession(engine) as session:
        session.run(*make_batch([390] * 8))
        session.run(*make_batch([400] * 8))
        assert machine.peak == machine.allocated()


def test_memory_that_runs_out_says_how_much_was_wanted(engine, reference, machine):
    with TensorRtSession(engine) as session:
        session.run(*make_batch([30]))
        machine.memory = 100_000
        with pytest.raises(DeviceError) as caught:
            session.run(*make_batch([400] * 8))
        assert str(caught.value) == (
            f"{engine}: cudaMalloc: cudaErrorMemoryAllocation: out of memory "
            f"({8 * 17 * 400 * 4} bytes requested)"
        )
        assert machine.last_error == ERRORS.cudaSuccess  # nobody takes it for an error of theirs
        assert machine.left() == {"engine": 1, "runtime": 1}  # that context is gone
        batch = make_batch([40])
        assert_same(session.run(*batch), reference.run(*batch))
    assert clean(machine)


@pytest.mark.parametrize("contexts", [1, 2])
def test_close_frees_everything_in_order(engine, contexts, machine):
    gc.disable()
    try:
        session = TensorRtSession(engine, contexts=contexts)
        for _ in range(3):
            session.run(*make_batch([30]))
        assert machine.left() == {
            "memory": 8,
            "streams": 1,
            "executables": 1,
            "context": 1,
            "engine": 1,
            "runtime": 1,
        }
        machine.events.clear()
        session.close()
        assert machine.events == [
            "graph",
            "context",
            *["buffer"] * 8,
            "stream",
            "engine",
            "runtime",
        ]
        assert clean(machine)
        calls = len(machine.calls)
        session.close()
        assert len(machine.calls) == calls
    finally:
        gc.enable()


def test_a_session_that_is_forgotten_frees_too(engine, machine):
    session = TensorRtSession(engine)
    session.run(*make_batch([30]))
    del session
    gc.collect()
    assert clean(machine)


def test_run_after_close(engine):
    session = TensorRtSession(engine)
    session.close()
    with pytest.raises(DeviceError) as caught:
        session.run(*make_batch([30]))
    assert str(caught.value) == f"{engine}: the session is closed; open another"


def test_close_from_another_thread(engine, machine):
    session = TensorRtSession(engine)
    session.run(*make_batch([30]))
    thread = threading.Thread(target=session.close)
    thread.start()
    thread.join()
    assert clean(machine)


# ---- Faults


def cycle(path: Path, expected: list[Any], machine: Any) -> int:
    """Open, run all kinds of requests, close; gives how many of the runs were right."""
    right = 0
    with TensorRtSession(path) as session:
        try:
            for batch, results in expected:
                assert_same(session.run(*batch), results)
                right += 1
        except Ds2Error as error:
            message = str(error)
        else:
            message = str(path)
        assert "\n" not in message
        assert str(path) in message
        # Whatever happened, the session answers, with another context if need be.
        batch, results = expected[-1]
        assert_same(session.run(*batch), results)
    return right


FAULTS = [
    pytest.param({}, ERRORS.cudaErrorUnknown, id="tensorrt"),
    pytest.param({}, "raise", id="tensorrt raises"),
    pytest.param({"integrated": True}, ERRORS.cudaErrorUnknown, id="integrated"),
    pytest.param({"flavor": "rtx", "version": "1.7.1"}, ERRORS.cudaErrorUnknown, id="rtx"),
    pytest.param({"flavor": "rtx", "version": "1.7.1"}, "raise", id="rtx raises"),
]


@pytest.mark.parametrize(("kind", "fault"), FAULTS)
def test_a_fault_at_every_call(kind, fault, small_onnx, reference, tmp_path, monkeypatch, caplog):
    lengths = ([30], [30], [30], [60, 50], [60, 50], [60, 50])
    expected = [(batch, reference.run(*batch)) for batch in map(make_batch, lengths)]
    machine = standin.Machine(**kind)
    path = write_engine(small_onnx, tmp_path, machine)
    outcomes = {"not opened": 0, "run failed": 0, "no harm": 0}
    gc.disable()
    try:
        for index in itertools.count():
            caplog.clear()
            machine = standin.Machine(**kind).install(monkeypatch)
            machine.fail_call(index, fault)
            try:
                right = cycle(path, expected, machine)
                outcomes["no harm" if right == len(lengths) else "run failed"] += 1
                message = str(path)
            except Ds2Error as error:
                message = str(error)
                outcomes["not opened"] += 1
            assert "\n" not in message
            assert str(path) in message
            at = f"call {index}, {machine.calls[index : index + 1]}"
            assert machine.left() == {}, at
            assert machine.violations == [], at
            if index >= len(machine.calls):
                break
    finally:
        gc.enable()
    assert index > 80
    assert min(outcomes.values()) > 5, outcomes


def test_a_fault_of_two_calls_in_a_row(small_onnx, reference, tmp_path, monkeypatch):
    """While one context is freed after an error, the next call fails as well."""
    batch = make_batch([30])
    machine = standin.Machine()
    path = write_engine(small_onnx, tmp_path, machine)
    for index in range(20, 60):
        machine = standin.Machine().install(monkeypatch)
        for i in range(4):
            machine.fail_call(index + i, ERRORS.cudaErrorLaunchFailure)
        try:
            with TensorRtSession(path) as session:
                for _ in range(3):
                    session.run(*batch)
        except Ds2Error:
            pass
        assert machine.left() == {}, index
        # A stream that could not be waited for is freed with its work in it.
        assert set(machine.violations) <= {
            "freed while queued work uses it",
            "context freed while it is queued",
            "stream destroyed with work in it",
        }


def test_an_execution_that_fails_costs_one_lane(engine, reference, machine):
    batch = make_batch([30])
    with TensorRtSession(engine) as session:
        session.run(*batch)
        machine.fail("IExecutionContext.execute_async_v3")
        with pytest.raises(DeviceError) as caught:
            session.run(*batch)
        assert str(caught.value) == f"{engine}: the engine could not be executed"
        assert machine.left() == {"engine": 1, "runtime": 1}
        assert_same(session.run(*batch), reference.run(*batch))
    assert clean(machine)


def test_an_error_quotes_what_tensorrt_logged(engine, machine):
    with TensorRtSession(engine) as session:
        session._log.log(standin.Severity.WARNING, "not this")
        session._log.log(standin.Severity.ERROR, "Cask\n  convolution failed")
        machine.fail("IExecutionContext.execute_async_v3")
        with pytest.raises(DeviceError) as caught:
            session.run(*make_batch([30]))
        assert str(caught.value).endswith(" (Cask convolution failed)")
        machine.fail("IExecutionContext.execute_async_v3")
        with pytest.raises(DeviceError) as caught:
            session.run(*make_batch([30]))
        assert str(caught.value).endswith("the engine could not be executed")  # it is said once


def test_nothing_goes_to_standard_output(engine, machine, capfd):
    with TensorRtSession(engine) as session:
        session._log.log(standin.Severity.ERROR, "loud")
        session.run(*make_batch([30]))
    assert capfd.readouterr() == ("", "")


# ---- Several threads


@pytest.mark.parametrize("contexts", [1, 3])
def test_threads_get_what_one_gets(contexts, engine, machine):
    requests = [make_batch(lengths, seed) for seed in range(4) for lengths in RAGGED]
    with TensorRtSession(engine, contexts=contexts) as session:
        alone = [session.run(*batch) for batch in requests]
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def work(session: TensorRtSession, seed: int) -> None:
        try:
            start.wait()
            for i in np.random.default_rng(seed).permutation(len(requests)):
                for _ in range(1 + i % 3):
                    found = session.run(*requests[i])
                    np.testing.assert_array_equal(found[0], alone[i][0])
                    np.testing.assert_array_equal(found[1], alone[i][1])
        except BaseException as error:
            failures.append(error)

    with TensorRtSession(engine, contexts=contexts) as session:
        threads = [threading.Thread(target=work, args=(session, n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert machine.live["context"] == contexts
    assert clean(machine)


class Blockade:
    """Holds every synchronisation until it is opened."""

    def __init__(self, monkeypatch: Any) -> None:
        self.open = threading.Event()
        self.waiting = threading.Semaphore(0)
        wait = cuda.CudaStream.synchronize

        def synchronize(stream: Any) -> None:
            self.waiting.release()
            assert self.open.wait(PATIENCE_S)
            wait(stream)

        monkeypatch.setattr(cuda.CudaStream, "synchronize", synchronize)


def test_concurrent_runs_equal_the_number_of_contexts(engine, machine, monkeypatch):
    blockade = Blockade(monkeypatch)
    with TensorRtSession(engine, contexts=2) as session:
        threads = [
            threading.Thread(target=session.run, args=make_batch([30 + i])) for i in range(3)
        ]
        for thread in threads:
            thread.start()
        assert blockade.waiting.acquire(timeout=PATIENCE_S)
        assert blockade.waiting.acquire(timeout=PATIENCE_S)
        assert not blockade.waiting.acquire(timeout=0.2)  # the third waits for a context
        assert machine.live["context"] == 2
        blockade.open.set()
        for thread in threads:
            thread.join()
    assert clean(machine)


def test_one_thread_needs_one_context(engine, machine):
    with TensorRtSession(engine, contexts=4) as session:
        for lengths in RAGGED:
            session.run(*make_batch(lengths))
        assert machine.live["context"] == 1


def test_close_waits_for_the_runs_under_way(engine, reference, machine, monkeypatch):
    blockade = Blockade(monkeypatch)
    session = TensorRtSession(engine, contexts=1)
    batch, results, errors = make_batch([30]), [], []

    def run() -> None:
        try:
            results.append(session.run(*batch))
        except DeviceError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert blockade.waiting.acquire(timeout=PATIENCE_S)
    closing = threading.Thread(target=session.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    blockade.open.set()
    for thread in (*threads, closing):
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert len(results) + len(errors) == 3
    assert results
    for found in results:
        assert_same(found, reference.run(*batch))
    assert set(errors) <= {f"{engine}: the session is closed; open another"}
    assert clean(machine)


# ---- CUDA graphs


def test_a_shape_that_comes_again_is_captured_and_then_replayed(engine, reference, machine):
    counts = []
    with TensorRtSession(engine) as session:
        for seed in range(5):
            batch = make_batch([30, 20], seed)
            assert_same(session.run(*batch), reference.run(*batch))
            counts.append(
                (machine.executes, machine.calls.count("cudaGraphLaunch"), machine.executions)
            )
        assert session.cuda_graphs == "on"
    # Calls of execute_async_v3, launches, executions. The second executes, and is then recorded.
    assert counts == [(1, 0, 1), (3, 0, 2), (3, 1, 3), (3, 2, 4), (3, 3, 5)]
    assert machine.calls.count("cudaMemcpyAsync") == 4 * 3
    assert clean(machine)


def test_without_graphs_everything_is_queued_every_time(engine, reference, machine):
    with TensorRtSession(engine, cuda_graphs=False) as session:
        for seed in range(4):
            batch = make_batch([30, 20], seed)
            assert_same(session.run(*batch), reference.run(*batch))
    assert machine.executes == 4
    assert "cudaStreamBeginCapture" not in machine.calls


def test_another_shape_drops_the_graph_and_may_have_its_own(engine, reference, machine):
    with TensorRtSession(engine) as session:
        for seed, lengths in enumerate([[30]] * 3 + [[25]] * 4 + [[30]] * 4):
            batch = make_batch(lengths, seed)
            assert_same(session.run(*batch), reference.run(*batch))
            assert len(machine.executables) <= 1
        assert machine.calls.count("cudaGraphInstantiate") == 3
        assert machine.calls.count("cudaGraphLaunch") == 1 + 2 + 2
    assert clean(machine)


def test_the_staged_length_is_not_part_of_the_graph(engine, reference, machine):
    with TensorRtSession(engine) as session:
        for seed, lengths in enumerate([[30, 10], [30, 10], [30, 30], [9, 30], [30, 1]]):
            batch = make_batch(lengths, seed)
            assert_same(session.run(*batch), reference.run(*batch))
        assert machine.calls.count("cudaGraphLaunch") == 3


def test_growing_drops_the_graph(engine, reference, machine):
    with TensorRtSession(engine) as session:
        for seed, lengths in enumerate([[30]] * 3 + [[400] * 8] + [[30]] * 3):
            batch = make_batch(lengths, seed)
            assert_same(session.run(*batch), reference.run(*batch))
            # What may be replayed was captured with the buffers as they are.
            assert all(
                machine.block_at(at).live
                for work in machine.executables.values()
                for item in work
                for at, _ in item.spans
            )
    assert clean(machine)


def test_a_lane_that_has_the_shape_is_preferred(engine, machine, monkeypatch):
    with TensorRtSession(engine, contexts=2) as session:
        with monkeypatch.context() as patch:
            blockade = Blockade(patch)
            threads = [threading.Thread(target=session.run, args=make_batch([n])) for n in (30, 50)]
            for thread in threads:
                thread.start()
            for _ in threads:
                assert blockade.waiting.acquire(timeout=PATIENCE_S)
            blockade.open.set()
            for thread in threads:
                thread.join()
        for length in (30, 30, 50, 50) * 2:
            session.run(*make_batch([length]))
        assert machine.calls.count("cudaGraphInstantiate") == 2
        assert machine.calls.count("cudaGraphLaunch") == 6


CAPTURE_FAULTS = [
    ("cudaStreamBeginCapture", "cudaStreamBeginCapture: cudaErrorUnknown"),
    ("cudaStreamEndCapture", "cudaStreamEndCapture: cudaErrorUnknown"),
    ("cudaGraphInstantiate", "cudaGraphInstantiate: cudaErrorUnknown"),
    ("execute", "the engine could not be executed"),
]


@pytest.mark.parametrize(("function", "reason"), CAPTURE_FAULTS)
def test_a_capture_that_fails_is_said_once(function, reason, engine, reference, machine, caplog):
    if function == "execute":
        machine.capturable = False
    else:
        machine.fail(function)
    with TensorRtSession(engine) as session, caplog.at_level(logging.WARNING, "ds2deploy"):
        for seed in range(6):
            batch = make_batch([30], seed)
            assert_same(session.run(*batch), reference.run(*batch))
        assert session.cuda_graphs.startswith(f"off: capture failed: {reason}")
    assert machine.calls.count("cudaStreamBeginCapture") == 1
    assert machine.calls.count("cudaGraphLaunch") == 0
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{engine}: runs without CUDA graphs: capture failed: {reason}")
    assert clean(machine)


def test_after_a_failed_capture_graphs_that_are_there_are_not_replayed(engine, reference, machine):
    with TensorRtSession(engine, contexts=1) as session:
        for _ in range(3):
            session.run(*make_batch([30]))
        session._graphs.give_up("in another context")
        batch = make_batch([30])
        assert_same(session.run(*batch), reference.run(*batch))
        assert machine.calls.count("cudaGraphLaunch") == 1


def test_rtx_says_beforehand_that_it_cannot_capture(
    small_onnx, tmp_path, rtx_machine, reference, caplog
):
    path = write_engine(small_onnx, tmp_path, rtx_machine)
    rtx_machine.says_capturable = False
    with TensorRtSession(path) as session:
        for _ in range(4):
            session.run(*make_batch([30]))
        assert session.cuda_graphs == (
            "off: capture failed: TensorRT reports that this engine does not support CUDA graphs"
        )
    assert "cudaStreamBeginCapture" not in rtx_machine.calls
    assert clean(rtx_machine)


def test_another_lane_allocates_while_one_captures(engine, reference, machine, monkeypatch):
    with TensorRtSession(engine, contexts=2) as session:
        session.run(*make_batch([30]))
        record, done = ExecutionContext._queue, []

        def queue_with_a_neighbour(context: Any) -> None:
            record(context)
            if any(stream.captured is not None for stream in machine.streams.values()) and not done:
                done.append(True)
                thread = threading.Thread(target=session.run, args=make_batch([200] * 4))
                thread.start()
                thread.join(PATIENCE_S)

        monkeypatch.setattr(ExecutionContext, "_queue", queue_with_a_neighbour)
        for seed in range(3):
            batch = make_batch([30], seed)
            assert_same(session.run(*batch), reference.run(*batch))
        assert done
        assert session.cuda_graphs == "on"
    assert clean(machine)


# ---- Memory that host and device share


def test_on_shared_memory_nothing_is_copied(small_onnx, reference, tmp_path, monkeypatch):
    machine = standin.Machine(integrated=True).install(monkeypatch)
    path = write_engine(small_onnx, tmp_path, machine)
    with TensorRtSession(path) as session:
        for seed, lengths in enumerate([[30], [30], [30], [200, 70], [200, 70], [200, 70], [9]]):
            batch = make_batch(lengths, seed)
            assert_same(session.run(*batch), reference.run(*batch))
        assert machine.calls.count("cudaGraphLaunch") == 2
    assert "cudaMemcpyAsync" not in machine.calls
    assert "cudaMalloc" not in machine.calls
    assert clean(machine)


def test_an_integrated_gpu_that_cannot_map_copies(small_onnx, reference, tmp_path, monkeypatch):
    machine = standin.Machine(integrated=True).install(monkeypatch)
    machine.can_map = False
    with TensorRtSession(write_engine(small_onnx, tmp_path, machine)) as session:
        batch = make_batch([30])
        assert_same(session.run(*batch), reference.run(*batch))
    assert machine.calls.count("cudaMemcpyAsync") == 4
    assert clean(machine)


# ---- TensorRT-RTX


@pytest.fixture
def rtx_engine(small_onnx, tmp_path, rtx_machine) -> Path:
    return write_engine(small_onnx, tmp_path, rtx_machine)


def run_rtx(path: Path, machine: Any, lengths: list[int] = [30]) -> int:  # noqa: B006
    """How many kernels a session compiled for one request."""
    before = machine.compiled
    with TensorRtSession(path) as session:
        session.run(*make_batch(lengths))
    assert clean(machine)
    return machine.compiled - before


def test_rtx_gives_the_same(rtx_engine, rtx_machine, reference):
    with TensorRtSession(rtx_engine) as session:
        assert session.runtime == "tensorrt-rtx cuda"
        for seed in range(4):
            batch = make_batch([30, 12], seed)
            assert_same(session.run(*batch), reference.run(*batch))
        assert rtx_machine.calls.count("cudaGraphLaunch") == 2
    assert clean(rtx_machine)


def test_kernels_compiled_by_rtx_are_kept(rtx_engine, rtx_machine):
    cache = rtx_engine.with_name("model.engine.cache")
    assert run_rtx(rtx_engine, rtx_machine) == 1
    first = cache.read_bytes()
    written = cache.stat().st_mtime_ns
    assert run_rtx(rtx_engine, rtx_machine) == 0
    assert cache.stat().st_mtime_ns == written  # unchanged, hence not written
    assert run_rtx(rtx_engine, rtx_machine, [50]) == 1
    assert len(cache.read_bytes()) > len(first)
    assert run_rtx(rtx_engine, rtx_machine, [50]) == 0
    assert sorted(p.name for p in cache.parent.iterdir()) == [
        "model.engine",
        "model.engine.cache",
        "model.engine.json",
    ]


def test_a_session_that_ran_nothing_writes_no_cache(rtx_engine, rtx_machine):
    TensorRtSession(rtx_engine).close()
    assert not rtx_engine.with_name("model.engine.cache").exists()


@pytest.mark.parametrize("content", [b"", b"damaged"])
def test_a_damaged_cache_is_ignored_and_replaced(content, rtx_engine, rtx_machine, caplog):
    cache = rtx_engine.with_name("model.engine.cache")
    cache.write_bytes(content)
    assert run_rtx(rtx_engine, rtx_machine) == 1
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        f"{cache}: ignored (not a cache of this library version and GPU); TensorRT-RTX compiles "
        "the engine again"
    ]
    assert run_rtx(rtx_engine, rtx_machine) == 0


def test_a_cache_that_cannot_be_written_is_no_error(rtx_engine, rtx_machine, caplog, monkeypatch):
    def refuse(path: Path, content: bytes) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert run_rtx(rtx_engine, rtx_machine) == 1
    (message,) = [record.getMessage() for record in caplog.records]
    cache = rtx_engine.with_name("model.engine.cache")
    assert message.startswith(f"{cache}: cannot be written ([Errno 13] Permission denied")
    assert not cache.exists()


def test_a_cache_that_cannot_be_replaced_leaves_nothing_behind(rtx_engine, rtx_machine, caplog):
    cache = rtx_engine.with_name("model.engine.cache")
    cache.mkdir()
    assert run_rtx(rtx_engine, rtx_machine) == 1
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{cache}: cannot be written" in message
    assert sorted(p.name for p in cache.parent.iterdir()) == [
        "model.engine",
        "model.engine.cache",
        "model.engine.json",
    ]


def test_tensorrt_proper_keeps_no_cache(engine, machine):
    with TensorRtSession(engine) as session:
        session.run(*make_batch([30]))
    assert not engine.with_name("model.engine.cache").exists()


# ---- The stand-in is like what it stands in for


def public(kind: type) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_")]


def overloads(function: Any) -> list[list[str]]:
    """Names of the parameters, of each form that pybind11's docstring tells."""
    signatures = re.findall(rf"^(?:\d+\. )?{function.__name__}\((.*)\) ->", function.__doc__, re.M)
    return [re.findall(r"(?:^|, )(\w+)(?=:|,|$)", re.sub(r"<[^>]*>", "", s)) for s in signatures]


@pytest.fixture(scope="module")
def real_tensorrt() -> Any:
    pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx", reason="brings TensorRT-RTX's libraries")
    return pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")


TENSORRT_CLASSES = {
    "ILogger": standin.ILogger,
    "Runtime": standin.Runtime,
    "ICudaEngine": standin.RtxCudaEngine,
    "IExecutionContext": standin.RtxExecutionContext,
    "IRuntimeConfig": standin.IRuntimeConfig,
    "IRuntimeCache": standin.IRuntimeCache,
    "IHostMemory": standin.IHostMemory,
}


@pytest.mark.parametrize("name", TENSORRT_CLASSES)
def test_the_stand_in_has_tensorrts_names_and_parameters(name, real_tensorrt):
    ours, real = TENSORRT_CLASSES[name], getattr(real_tensorrt, name)
    names = {n for kind in ours.__mro__ if kind.__module__ == ours.__module__ for n in public(kind)}
    assert names
    for member in names:
        assert hasattr(real, member), member
        mine, theirs = inspect.getattr_static(ours, member), getattr(real, member)
        if isinstance(mine, property):
            assert isinstance(theirs, property), member
        elif inspect.isfunction(mine):
            assert list(inspect.signature(mine).parameters) in overloads(theirs), member


def test_the_runtime_is_made_with_a_logger(real_tensorrt):
    assert overloads(real_tensorrt.Runtime.__init__) == [["self", "logger"]]
    assert ["self", "strategy"] in overloads(real_tensorrt.ICudaEngine.create_execution_context)


@pytest.mark.parametrize("name", ["DataType", "TensorIOMode", "Severity"])
def test_the_stand_in_has_tensorrts_enumerations(name, real_tensorrt):
    real = real_tensorrt.ILogger.Severity if name == "Severity" else getattr(real_tensorrt, name)
    for member in getattr(standin, name):
        assert int(getattr(real, member.name)) == member.value
        assert getattr(real, member.name).name == member.name


def test_the_real_logger_is_made_and_keeps_the_last_error(real_tensorrt, capfd):
    library = TensorRt("rtx", real_tensorrt.__version__, real_tensorrt)
    log = make_log(library)
    engine = real_tensorrt.Runtime(log).deserialize_cuda_engine(b"not an engine" * 100)
    assert engine is None
    said = log.take()
    assert re.fullmatch(r" \(.+\)", said)
    assert log.take() == ""
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def real_cudart() -> Any:
    return pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")


@pytest.mark.parametrize("name", [n for n in vars(standin.Cudart) if n.startswith("cuda")])
def test_the_stand_in_has_cudas_functions_and_parameters(name, real_cudart):
    ours = list(inspect.signature(getattr(standin.Cudart, name)).parameters)[1:]
    assert ours == list(inspect.signature(getattr(real_cudart, name)).parameters)


@pytest.mark.parametrize(
    "name", ["cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"]
)
def test_the_stand_in_has_cudas_enumerations(name, real_cudart):
    for member in getattr(standin, name):
        assert int(getattr(getattr(real_cudart, name), member.name)) == member.value


def test_the_stand_in_has_cudas_constants(real_cudart):
    for name, value in standin.CONSTANTS.items():
        assert getattr(real_cudart, name) == value


def test_the_real_cuda_answers_errors_as_the_stand_in_does(real_cudart):
    """Without a driver every call fails; with one this proves less, and still holds."""
    made = standin.Machine(driver=0)
    count = made.cudart().cudaGetDeviceCount()
    real = real_cudart.cudaGetDeviceCount()
    assert len(real) == len(count) == 2
    works, detail, remedy = cuda.examine_device()
    assert works == (real[0] == real_cudart.cudaError_t.cudaSuccess)
    assert works or (detail.startswith("CUDA finds no GPU") and remedy)


# ---- The stand-in sees what must not be done


def test_the_stand_in_sees_every_misuse():
    machine = standin.Machine()
    cudart = machine.cudart()
    cudart.cudaSetDevice(0)
    _, stream = cudart.cudaStreamCreateWithFlags(1)
    _, device = cudart.cudaMalloc(64)
    _, host = cudart.cudaHostAlloc(64, 0)
    kinds = standin.cudaMemcpyKind

    def noted(*found: str) -> None:
        assert machine.violations == list(found)
        machine.violations.clear()

    view = np.frombuffer((np.ctypeslib.ctypes.c_ubyte * 64).from_address(host), np.uint8)
    view[:] = 7
    down = (host, device, 64, kinds.cudaMemcpyDeviceToHost, stream)
    cudart.cudaMemcpyAsync(device, host, 64, kinds.cudaMemcpyHostToDevice, stream)
    cudart.cudaMemcpyAsync(*down)
    view[:] = 9
    assert view[0] == 9  # nothing is done before the stream is synchronised
    cudart.cudaStreamSynchronize(stream)
    assert view[0] == 9
    noted()
    cudart.cudaMemcpyAsync(host, device, 64, kinds.cudaMemcpyHostToDevice, stream)
    noted(f"cudaMemcpyHostToDevice, but from {device:#x} to {host:#x}")
    cudart.cudaMemcpyAsync(device, np.zeros(64).ctypes.data, 64, kinds(1), stream)
    cudart.cudaMemcpyAsync(device, host, 65, kinds.cudaMemcpyHostToDevice, stream)
    noted(*["copy beyond an allocation, or of memory that is not pinned"] * 2)
    cudart.cudaMemcpyAsync(*down)
    cudart.cudaFree(device)
    noted("freed while queued work uses it")
    assert cudart.cudaStreamSynchronize(stream) == (ERRORS.cudaErrorIllegalAddress,)
    noted("queued work used memory that is not there")
    assert cudart.cudaFree(device) == (ERRORS.cudaErrorInvalidValue,)
    noted("freed twice, or never allocated")
    assert machine.left() == {"memory": 1, "streams": 1}


# ---- Streams, and samples in


@pytest.fixture
def streaming_engine(streaming_onnx, tmp_path, machine) -> Path:
    profile = Profile(batch=(2, 4, 12), frames=(32, 32, 32))
    return write_engine(streaming_onnx, tmp_path, machine, profile)


def speak(count: int) -> list[np.ndarray]:
    from ds2deploy.export.parity.speech import synthesize

    return [synthesize(16_000, 9_000 + 1_501 * i, seed=i) for i in range(count)]


def test_streams_say_what_they_say_on_onnx_runtime(streaming_engine, streaming_onnx, machine):
    """Fewer streams than the profile's least, more than its most, and numbers in between."""
    from ds2deploy.runtimes.features import pad_waveforms

    reference = OnnxSession(streaming_onnx, threads=1)
    with TensorRtSession(streaming_engine) as session:
        assert session.streaming() is session
        for count in (1, 3, 12, 13):
            sound = pad_waveforms(speak(count))
            assert_same(session.run(*sound), reference.run(*sound), 1e-5)
    assert clean(machine)


def test_the_same_few_shapes_are_replayed(streaming_engine, machine):
    """With a power of two in a batch, streams that come and go repeat what was captured."""
    from ds2deploy.runtimes.recognizer import Recognizer

    audio = speak(1)[0]
    with TensorRtSession(streaming_engine, contexts=1) as session:
        with Recognizer(session).pool() as pool:
            streams = [pool.open() for _ in range(4)]
            for count in (3, 4, 3, 4, 3):  # all of them run as four
                for stream in streams[:count]:
                    stream.accept(audio[:5120])
                assert len(pool.tick()) == count
            assert machine.executes <= 3  # once, once more with the capture; then it is replayed
        assert session.cuda_graphs == "on"
    assert clean(machine)


def test_a_pool_of_streams_on_an_engine(streaming_engine, streaming_onnx, machine):
    from ds2deploy.runtimes.recognizer import Recognizer

    expected = Recognizer(OnnxSession(streaming_onnx, threads=1)).transcribe(speak(20), 16_000)
    with TensorRtSession(streaming_engine) as session, Recognizer(session).pool() as pool:
        streams = [pool.open() for _ in range(20)]
        for stream, samples in zip(streams, speak(20), strict=True):
            stream.accept(samples)
            stream.finish()
        while pool.tick():
            pass
        for stream, transcript in zip(streams, expected, strict=True):
            assert stream.transcript.chars == transcript.chars
        assert Recognizer(session).transcribe(speak(20), 16_000)[7].chars == expected[7].chars
    assert clean(machine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"state.rnn": t["state.rnn"][:, :1]}, r"state\.rnn \(2, 1, 160\): expected"),
        (lambda t: t | {"waveform": t["waveform"][:, :99]}, r"waveform \(2, 99\): expected"),
        (
            lambda t: t | {"lengths": np.array([0, 1])},
            "lengths: the smallest is 0; expected 1 or more",
        ),
    ],
    ids=["state", "block", "length"],
)
def test_tensors_that_a_streaming_engine_refuses(streaming_engine, change, message):
    from ds2deploy.runtimes.streaming.state import StreamState

    with TensorRtSession(streaming_engine) as session:
        memory = StreamState(session.description).memory
        tensors = {
            "waveform": np.zeros((2, 5120), np.float32),
            "lengths": np.array([5120, 5120]),
            "state.position": np.zeros((2, 1), np.int64),
            **{f"state.{name}": np.stack([array] * 2) for name, array in memory.items()},
        }
        assert session.compute(tensors)["log_probs"].shape == (2, 16, 29)
        with pytest.raises(FeaturesError, match=message):
            session.compute(change(tensors))
        many = {name: np.concatenate([array] * 7) for name, array in tensors.items()}
        with pytest.raises(
            FeaturesError, match="14 streams; this engine accepts 2 to 12 at a time"
        ):
            session.compute(many)


def test_an_engine_that_takes_samples(
    streaming_checkpoint: Path, tmp_path: Path, machine, describe
):
    """Of whole utterances: what is shorter than the profile, or longer than it, in samples."""
    import onnx

    from ds2deploy.export.format import ExportFormat
    from ds2deploy.export.onnx.graph import build_graph
    from ds2deploy.export.onnx.lowering import lower
    from ds2deploy.export.verified_onnx import append_description
    from ds2deploy.model.load import load_checkpoint
    from ds2deploy.runtimes.features import pad_waveforms

    loaded = load_checkpoint(streaming_checkpoint)
    description = ExportFormat(waveform=True).describe(loaded, "fp32")
    onnx.save(build_graph(lower(loaded.network), description), tmp_path / "x.onnx")
    append_description(tmp_path / "x.onnx", description)
    reference = OnnxSession(tmp_path / "x.onnx", threads=1)
    engine = write_engine(tmp_path / "x.onnx", tmp_path, machine, NARROW)
    with TensorRtSession(engine) as session:
        for counts in ([1], [8000, 159, 161], [63_999, 64_000 - 1]):
            sound = pad_waveforms([speak(6)[5][:1].repeat(count) for count in counts])
            assert_same(session.run(*sound), reference.run(*sound), 1e-5)
        with pytest.raises(FeaturesError, match=r"4\.0 s of audio|4 s of audio"):
            session.run(np.zeros((1, 64_000), np.float32), np.array([64_000]))
    assert clean(machine)
