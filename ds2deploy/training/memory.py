"""Memory of a process: measured, and kept bounded and fast during training."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import psutil

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Options of glibc's mallopt."""


PRIMITIVES = 64
"""Shapes for which oneDNN keeps the code that it makes, instead of its default of 1024. A training
step on utterances of random lengths brings ten to forty new shapes and seldom meets an old one. So
64 are enough for a step; more only hold memory and split the heap, see `bound_primitive_cache`."""


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
    """Return free memory to the system, where the C library is glibc.

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
    """Most memory that this process ever had resident, in bytes; None where it is not known.

    Read from Linux's own file: psutil has no peak there, and `getrusage` begins with the peak of
    the parent process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((1024 * int(kibibytes) for kibibytes in found), None)


def peak_memory_mib() -> float | None:
    """Result of `peak_memory_bytes`, in MiB."""
    peak = peak_memory_bytes()
    return None if peak is None else round(peak / 2**20, 1)


def resident_memory_mib() -> float:
    """Memory that this process has resident now, in MiB."""
    resident: int = psutil.Process().memory_info().rss
    return round(resident / 2**20, 1)
