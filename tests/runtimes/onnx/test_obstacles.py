"""Obstacles of a GPU's provider are found before ONNX Runtime names something else."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ds2deploy
from ds2deploy import doctor
from ds2deploy.runtimes.errors import RuntimeUnavailableError
from ds2deploy.runtimes.onnx import obstacles as onnx_obstacles
from ds2deploy.runtimes.onnx import providers as onnx_providers
from ds2deploy.runtimes.onnx import session as onnx_session
from ds2deploy.runtimes.onnx.obstacles import PROVIDERS, obstacle
from ds2deploy.runtimes.tensorrt.rtx_devices import tensorrt_command


def load_standin() -> Any:
    path = Path(__file__).parents[1] / "tensorrt" / "tensorrt_standin.py"
    spec = importlib.util.spec_from_file_location("tensorrt_standin", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakeSession:
    """Refuses every model, as ONNX Runtime does where a provider cannot start."""

    def __init__(self, path: str, options: Any, **given: Any) -> None:
        raise RuntimeError(f"the true reason; enable_fallback={given.get('enable_fallback')}")


class FakeOptions:
    """Keeps the entries of a session's configuration."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


@pytest.fixture
def onnxruntime() -> SimpleNamespace:
    """ONNX Runtime for CUDA and TensorRT, with a plugin for RTX that sees no device."""
    return SimpleNamespace(
        __version__="1.31.1",
        get_available_providers=lambda: list(PROVIDERS.values()),
        get_ep_devices=list,
        register_execution_provider_library=lambda *_: None,
        SessionOptions=FakeOptions,
        InferenceSession=FakeSession,
    )


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The shared libraries that load."""
    libraries = {"libcuda.so.1", "libnvinfer.so.10"}
    monkeypatch.setattr(onnx_obstacles, "loads", lambda library: library in libraries)
    return libraries


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes a GPU of a compute capability, for CUDA from Python and RTX's plugin."""
    machines = []

    def make(capability: str) -> None:
        machine = load_standin().Machine(flavor="rtx", version="1.7.1", capability=capability)
        machines.append(machine.install(monkeypatch))
        bindings = sys.modules["cuda.bindings"]  # whether it is there is asked by its spec
        bindings.__spec__ = importlib.machinery.ModuleSpec("cuda.bindings", None)
        plugin = SimpleNamespace(__file__=__file__, get_library_path=lambda: "none")
        monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)

    yield make
    assert all(machine.violations == [] for machine in machines)


def test_nothing_is_in_the_way_where_everything_is_there(onnxruntime: Any, there: set[str]):
    assert [obstacle(onnxruntime, name) for name in ("cpu", "cuda", "tensorrt")] == [None] * 3


@pytest.mark.parametrize(
    ("provider", "missing", "reason", "remedy"),
    [
        ("cuda", "libcuda.so.1", "no NVIDIA driver", "install the NVIDIA driver"),
        ("tensorrt", "libcuda.so.1", "no NVIDIA driver", "install the NVIDIA driver"),
        ("tensorrt", "libnvinfer.so.10", "no libnvinfer.so.10", "'tensorrt>=10,<11'"),
    ],
)
def test_a_library_that_does_not_load_is_named_by_all(
    provider: Any,
    missing: str,
    reason: str,
    remedy: str,
    onnxruntime: Any,
    there: set[str],
    small_onnx: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Doctor and the loading of a model say the same."""
    there.remove(missing)
    monkeypatch.setattr(onnx_session, "import_onnxruntime", lambda: onnxruntime)
    monkeypatch.setattr("ds2deploy.runtimes.onnx.library.import_onnxruntime", lambda: onnxruntime)
    with pytest.raises(RuntimeUnavailableError) as caught:
        ds2deploy.load(small_onnx, runtime=provider)
    (finding,) = (f for f in doctor.examine() if f.name == f"run .onnx on onnxruntime {provider}")
    for text in (str(caught.value), f"{finding.detail} {finding.remedy}"):
        assert reason in text
        assert remedy in text
    assert str(caught.value).startswith(f"{small_onnx}: --runtime {provider}: ")
    assert not finding.works


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_true_reason_is_told_where_a_session_does_not_start(
    provider: Any,
    onnxruntime: Any,
    there: set[str],
    small_onnx: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    """ONNX Runtime's own second attempt, on the CPU, prints to standard output and fails with
    another error where the CPU is forbidden."""
    monkeypatch.setattr(onnx_session, "import_onnxruntime", lambda: onnxruntime)
    with pytest.raises(RuntimeUnavailableError) as caught:
        ds2deploy.load(small_onnx, runtime=provider)
    assert "the true reason; enable_fallback=0" in str(caught.value)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("version", "expected"), [("1.17.3", None), ("1.18.0", "0"), ("1.31.1", "0"), ("2.0", "0")]
)
def test_cuda_computes_without_tf32(
    version: str, expected: str | None, onnxruntime: Any, there: set[str], tmp_path: Path
):
    """A release that does not know the option would refuse the session."""
    onnxruntime.__version__ = version
    ((_, settings),) = onnx_providers.configure(
        onnxruntime, FakeOptions(), "cuda", 1, tmp_path / "model.onnx", None
    )
    assert settings.get("use_tf32") == expected
    assert settings["device_id"] == "1"


def test_tensorrt_runs_the_whole_graph_or_none(onnxruntime: Any, there: set[str], tmp_path: Path):
    """Only that provider is named: ONNX Runtime refuses a CPU provider beside it."""
    options = FakeOptions()
    path = tmp_path / "model.onnx"
    providers = onnx_providers.configure(onnxruntime, options, "tensorrt", 0, path, None)
    assert options.entries["session.disable_cpu_ep_fallback"] == "1"
    assert [name for name, _ in providers] == [PROVIDERS["tensorrt"]]


@pytest.mark.parametrize(
    ("capability", "reason", "remedy"),
    [
        (
            "9.0",
            "TensorRT-RTX does not support Stand-in GPU, compute capability 9.0",
            "--runtime cuda",
        ),
        ("8.9", "does not find cuda:0 (GPUs found: 0)", "a newer NVIDIA driver"),
    ],
)
def test_a_gpu_that_the_rtx_plugin_does_not_see(
    capability: str,
    reason: str,
    remedy: str,
    onnxruntime: Any,
    gpu: Callable[[str], None],
):
    gpu(capability)
    found = obstacle(onnxruntime, "rtx")
    assert found is not None
    assert reason in found.reason
    assert remedy in found.remedy


@pytest.mark.parametrize(("capability", "works"), [("9.0", False), ("8.7", False), ("8.9", True)])
def test_doctor_says_whether_tensorrt_rtx_knows_the_gpu(
    capability: str, works: bool, gpu: Callable[[str], None]
):
    gpu(capability)
    (finding,) = (f for f in doctor.examine() if f.name == "run TensorRT-RTX engines")
    assert finding.works == works
    assert capability in finding.detail
    assert ("--trt" in finding.remedy) == (not works)


def test_the_command_for_the_other_library():
    given = "ds2deploy export 'my run/best.ckpt' --out d --rtx --batch 1,4,16 --targets 8.6,8.9"
    expected = "ds2deploy export 'my run/best.ckpt' --out d --trt --batch 1,4,16"
    assert tensorrt_command(given) == expected
