"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ds2deploy.bench import machine
from ds2deploy.bench.machine import describe_machine
from ds2deploy.runtimes.session import usable_cores
from ds2deploy.training import memory
from ds2deploy.training.memory import peak_memory_mib

CPUINFO = """processor\t: 0
cpu family\t: 6
model\t\t: 143
model name\t: A Processor
flags\t\t: fpu avx2 avx512f amx_int8 sse

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


def test_this_machine():
    found = describe_machine()
    assert found.cores == usable_cores() >= 1
    assert 0.2 < found.memory_gib < 100_000
    assert found.python == platform.python_version()
    assert found.libraries["numpy"] == np.__version__
    assert "no-such-library" not in found.libraries
    assert f"{found.cores} cores" in str(found)
    assert f"numpy {np.__version__}" in str(found)


def test_the_first_core_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / Path(path).name)
    found = describe_machine()
    assert found.processor == "A Processor (family 6, model 143)"
    assert found.instructions == ("avx2", "avx512f", "amx_int8")


def test_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for bus, name in (("0000:01:00.0", "NVIDIA GeForce RTX 3060"), ("0000:02:00.0", "NVIDIA T4")):
        (tmp_path / "gpus" / bus).mkdir(parents=True)
        (tmp_path / "gpus" / bus / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t 1\n")
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / Path(path).name)
    found = describe_machine()
    assert found.gpus == ("NVIDIA GeForce RTX 3060", "NVIDIA T4")
    assert "GiB, NVIDIA GeForce RTX 3060, NVIDIA T4, " in str(found)


def test_a_jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano\0")
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / Path(path).name)
    found = describe_machine()
    assert (found.processor, found.instructions) == ("NVIDIA Jetson Orin Nano", ("asimddp",))
    assert found.gpus == ()


def test_machines_without_proc_are_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for module in (machine, memory):
        monkeypatch.setattr(module, "Path", lambda path: tmp_path / "nothing")
    assert describe_machine().processor
    assert peak_memory_mib() is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_cores_are_those_that_may_be_used():
    code = (
        "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); "
        "from ds2deploy.runtimes.session import usable_cores; print(usable_cores())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "1\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_peak_memory_stays_after_the_memory_is_given_back():
    code = (
        "import numpy as np; from ds2deploy.training.memory import peak_memory_mib as peak; "
        "a = peak(); b = np.ones(64 << 20, np.uint8); del b; print(peak() - a)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 60 < float(result.stdout) < 80


HOLES = """
import numpy as np
from ds2deploy.training.memory import give_back_freed_memory, keep_freed_memory
from ds2deploy.training.memory import resident_memory_mib as now
keep_freed_memory()
pairs = [(np.ones(4 << 20, np.uint8), np.ones(4096, np.uint8)) for _ in range(32)]
small, full = [pair[1] for pair in pairs], now()
del pairs
held = now()
give_back_freed_memory()
print(full - held, full - now())
"""
"""Large blocks that become free between small ones that stay."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_kept_until_it_is_given_back():
    result = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True)
    kept, given = map(float, result.stdout.split())
    assert kept < 16
    assert given > 100


@pytest.mark.parametrize("name", [None, "ONEDNN", "DNNL"])
def test_primitives_are_few_unless_the_environment_says_otherwise(
    name: str | None, monkeypatch: pytest.MonkeyPatch
):
    both = [f"{prefix}_PRIMITIVE_CACHE_CAPACITY" for prefix in ("ONEDNN", "DNNL")]
    for variable in both:
        monkeypatch.setenv(variable, "")  # so that it is as it was, after the test
        monkeypatch.delenv(variable)
    if name is not None:
        monkeypatch.setenv(f"{name}_PRIMITIVE_CACHE_CAPACITY", "7")
    memory.bound_primitive_cache()
    found = [os.environ[variable] for variable in both if variable in os.environ]
    assert found == ([str(memory.PRIMITIVES)] if name is None else ["7"])


PRIMITIVES = """
import torch
from ds2deploy.training.memory import bound_primitive_cache
bound_primitive_cache()
rnn = torch.nn.LSTM(4, 4)
def run(frames):
    with torch.backends.mkldnn.verbose(2):
        rnn(torch.zeros(frames, 1, 4))
for frames in range(1, 200):
    rnn(torch.zeros(frames, 1, 4))
run(199)
run(1)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's LSTM is for x86")
def test_onednn_forgets_the_shapes_of_long_ago():
    result = subprocess.run([sys.executable, "-c", PRIMITIVES], capture_output=True, text=True)
    made = [line for line in result.stdout.splitlines() if "create" in line and ",rnn," in line]
    assert ["cache_hit" in line for line in made] == [True, False], result.stdout
