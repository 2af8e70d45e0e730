"""Memory of a process: measurement, and settings that keep it bounded and fast in training."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import psutil

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Options of glibc's mallopt."""


PRIMITIVES = 64
"""Number of shapes for which oneDNN caches generated code; its default is 1024. A training step on
utterances of random lengths has ten to forty new shapes and rarely repeats an old one. 64 suffice
for a step; more would occupy memory and fragment the heap, see `bound_primitive_cache`."""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next tensor.

    By default it returns every large block to the system, which then zeroes it again. This takes
    5 % of a training step of 3 x BiLSTM-512 on two cores. Other C libraries are not changed.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, another system
        return
    set_option(MMAP_THRESHOLD, 1 << 30)
    set_option(TRIM_THRESHOLD, (1 << 31) - 1)


def give_back_freed_memory() -> None:
    """Make glibc return free memory to the system.

    `keep_freed_memory` keeps all freed blocks. With batches of random shapes, few of them fit the
    next tensor exactly, so that the heap would grow for thousands of steps.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library, another system
        return
    trim(ctypes.c_size_t(0))


def bound_primitive_cache() -> None:
    """Limit oneDNN's cache of generated code; call it before the first computation with torch.

    Each small cached piece of code lies somewhere in the heap, and prevents the merging of the
    large blocks on either side. A capacity that the environment sets is not changed.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))


def peak_memory_bytes() -> int | None:
    """Read the peak resident memory of this process, in bytes; None if it is not known.

    The value comes from Linux's /proc, because psutil has no peak and `getrusage` starts with the
    peak of the parent process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((1024 * int(kibibytes) for kibibytes in found), None)


def peak_memory_mib() -> float | None:
    """Read the peak resident memory of this process, in MiB; see `peak_memory_bytes`."""
    peak = peak_memory_bytes()
    return None if peak is None else round(peak / 2**20, 1)


def resident_memory_mib() -> float:
    """Read the current resident memory of this process, in MiB."""
    resident: int = psutil.Process().memory_info().rss
    return round(resident / 2**20, 1)
