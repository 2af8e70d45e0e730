"""Threads that wait for one another: how long they spin before they sleep."""

from __future__ import annotations

import os

SPINS = "1000"
"""Rounds of a waiting thread of libgomp, which torch computes with; some 10 microseconds.

libgomp's own 300,000 are 3 ms, in which a thread that waits for one that another process has
pushed aside keeps the core that this one needs.
"""


def shorten_spinning() -> None:
    """Let threads of torch sleep soon when they wait; settings of the environment are kept.

    For processes of our own, before torch is imported: libgomp reads the environment when it is
    loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
