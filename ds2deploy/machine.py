"""What a measurement was made on, in words and numbers."""

from __future__ import annotations

import ctypes
import os
import platform
from importlib import metadata
from pathlib import Path

import msgspec

from ds2deploy.runtimes.cores import usable_cores

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Of a processor's flags, those that decide how fast float32 and int8 are multiplied."""

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Options of glibc's mallopt."""

PRIMITIVES = 64
"""Shapes for which oneDNN keeps the code that it makes, instead of its default of 1024. A training
step on utterances of random lengths brings ten to forty new shapes and seldom meets an old one. So
64 are enough for a step; more only hold memory and split the heap, see `bound_primitive_cache`."""

LIBRARIES = ("numpy", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine of a measurement.

    Attributes:
        processor: its name.
        cores: that this process may use.
        memory_gib: of the machine.
        instructions: for matrix products, of those in `INSTRUCTIONS`.
        system: of which kind.
        python: version.
        libraries: versions of those that are installed.
        gpus: names of NVIDIA's, as their driver has them; none on a Jetson, whose module is the
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
    """The machine that this process runs on."""
    about = _cpuinfo()
    flags = about.get("flags", about.get("Features", "")).split()
    family = about.get("cpu family"), about.get("model")
    name = about.get("model name") or _board() or platform.processor() or platform.machine()
    if None not in family:
        name += f" (family {family[0]}, model {family[1]})"
    return Machine(
        processor=name,
        cores=usable_cores(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        instructions=tuple(flag for flag in INSTRUCTIONS if flag in flags),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        libraries={name: version for name in LIBRARIES if (version := _version(name))},
        gpus=_gpus(),
    )


def keep_freed_memory() -> None:
    """Keep what a tensor leaves free for the next, where the C library is glibc.

    It would give every large block back to the system and have it filled with zeros again: 5 % of
    a training step of 3 x BiLSTM-512 on two cores.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, another system
        return
    set_option(MMAP_THRESHOLD, 1 << 30)
    set_option(TRIM_THRESHOLD, (1 << 31) - 1)


def give_back_freed_memory() -> None:
    """Give the system what is free at the moment, where the C library is glibc.

    `keep_freed_memory` keeps every block that was ever free. Among batches of random shapes few
    blocks fit the next tensor exactly, so the heap would grow for thousands of steps.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library, another system
        return
    trim(ctypes.c_size_t(0))


def bound_primitive_cache() -> None:
    """Make oneDNN keep the code of few shapes; call it before the first computation with torch.

    Each small piece of that code stands somewhere in the heap for as long as it is kept, and the
    large blocks on either side of it cannot become one again. A capacity that the environment
    names already is left alone.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))


def peak_memory_bytes() -> int | None:
    """Most memory that this process ever had resident, in bytes; None where nothing tells.

    Of this process alone: `getrusage` begins with what its parent had.
    """
    return _status_bytes("VmHWM")


def peak_memory_mib() -> float | None:
    """Result of `peak_memory_bytes`, in MiB."""
    return _mebibytes(peak_memory_bytes())


def resident_memory_mib() -> float | None:
    """Memory that this process has resident now, in MiB; None where it is not known."""
    return _mebibytes(_status_bytes("VmRSS"))


def _status_bytes(name: str) -> int | None:
    """Read a size from Linux's status of this process, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return next((1024 * int(kibibytes) for kibibytes in found), None)


def _mebibytes(count: int | None) -> float | None:
    return None if count is None else round(count / 2**20, 1)


def _cpuinfo() -> dict[str, str]:
    """Of the first core, what Linux says."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _board() -> str:
    """What an embedded machine says that it is, such as `NVIDIA Jetson Orin Nano`."""
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8").strip("\0\n ")
    except (OSError, UnicodeDecodeError):
        return ""


def _gpus() -> tuple[str, ...]:
    """From NVIDIA's driver, without its libraries."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        pairs = (line.partition(":") for line in lines)
        found += [value.strip() for key, _, value in pairs if key.strip() == "Model"]
    return tuple(found)


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
