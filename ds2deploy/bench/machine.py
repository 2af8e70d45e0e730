"""Description of the machine on which a benchmark runs."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import msgspec
import psutil

from ds2deploy.runtimes.backends import BACKENDS
from ds2deploy.runtimes.session import usable_cores

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Processor flags that determine the speed of float32 and int8 products."""

LIBRARIES = (
    "numpy",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    *(backend.module for backend in BACKENDS if backend.module),
)
"""Packages whose versions are part of a result: those of the runtimes, and numpy."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Machine on which a benchmark runs.

    Attributes:
        processor: name of the processor.
        cores: number of cores that this process may use.
        memory_gib: memory of the machine, in GiB.
        instructions: elements of `INSTRUCTIONS` that the processor supports.
        system: operating system and architecture, such as `Linux x86_64`.
        python: version of Python.
        libraries: versions of the installed `LIBRARIES`, by name.
        gpus: names of NVIDIA GPUs from their driver; empty on a Jetson, whose module name is the
            processor.
    """

    processor: str
    cores: int
    memory_gib: float
    instructions: tuple[str, ...]
    system: str
    python: str
    libraries: dict[str, str]
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        libraries = ", ".join(f"{name} {version}" for name, version in self.libraries.items())
        with_ = f" with {', '.join(self.instructions)}" if self.instructions else ""
        gpus = "".join(f"{name}, " for name in self.gpus)
        return (
            f"{self.processor}{with_}, {self.cores} cores, {self.memory_gib:.0f} GiB, "
            f"{gpus}{self.system}, Python {self.python}; {libraries}"
        )


def describe_machine() -> Machine:
    """Describe the machine that this process runs on."""
    about = _cpuinfo()
    flags = about.get("flags", about.get("Features", "")).split()
    family = about.get("cpu family"), about.get("model")
    name = about.get("model name") or _device_tree_model()
    name = name or platform.processor() or platform.machine()
    if None not in family:
        name += f" (family {family[0]}, model {family[1]})"
    return Machine(
        processor=name,
        cores=usable_cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        instructions=tuple(flag for flag in INSTRUCTIONS if flag in flags),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        libraries={name: version for name in LIBRARIES if (version := installed_version(name))},
        gpus=_gpus(),
    )


def _cpuinfo() -> dict[str, str]:
    """Read /proc/cpuinfo for the first core."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _device_tree_model() -> str:
    """Read the name of an embedded machine, such as `NVIDIA Jetson Orin Nano`; empty on others."""
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8").strip("\0\n ")
    except (OSError, UnicodeDecodeError):
        return ""


def _gpus() -> tuple[str, ...]:
    """List GPUs from the files of NVIDIA's driver, without its libraries."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        pairs = (line.partition(":") for line in lines)
        found += [value.strip() for key, _, value in pairs if key.strip() == "Model"]
    return tuple(found)


def installed_version(name: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
