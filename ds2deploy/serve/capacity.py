"""How many live streams a model can serve on this machine."""

from __future__ import annotations

import time

import numpy as np

from ds2deploy.runtimes.recognizer import Recognizer

SHARE = 0.7
"""Share of the time that ticks of the measured number of streams may take."""

MOST = 1024
SECONDS = 5.0
"""Seconds after which no larger number is tried."""


def measure_streams(recognizer: Recognizer) -> int:
    """Measure how many streams can be served in real time, by ticks of more and more streams.

    Args:
        recognizer: streaming model.

    Returns:
        The number of streams whose ticks take 70 % of the time that their audio takes, at least 1.
    """
    rate = recognizer.description.features.sample_rate
    random = np.random.default_rng(0)
    count, fits, began = 1, 1, time.monotonic()
    while count <= MOST and time.monotonic() - began < SECONDS:
        with recognizer.pool(streams=count) as pool:
            streams = [pool.open(rate) for _ in range(count)]
            sound = random.standard_normal(int(3 * pool.block_s * rate)).astype(np.float32) * 0.1
            for stream in streams:
                stream.accept(sound)
            pool.tick()
            started = time.perf_counter()
            pool.tick()
            share = (time.perf_counter() - started) / pool.block_s
        if share > SHARE:
            return max(1, min(fits * 2, int(count * SHARE / share)))
        fits, count = count, count * 2
    return min(MOST, max(1, int(fits * SHARE / share)))
