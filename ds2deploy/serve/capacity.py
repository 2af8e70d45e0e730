"""Measurement of the number of live streams that a model can serve on this machine."""

from __future__ import annotations

import statistics
import time

import numpy as np

from ds2deploy.runtimes.recognizer import Recognizer

SHARE = 0.6
"""Maximum share of real time that the ticks may take at the measured number of streams.

The rest is for connections, for batches that are smaller than these, and for bursts: on two cores,
three times as many callers as at this share raised the 95th percentile of the latency of the
accepted ones 1.1 times, at a share of 0.7 1.4 times (`benchmarks/server_endurance.py`)."""

TICKS = 3
"""Ticks whose median is taken."""

MOST = 1024
SECONDS = 5.0
"""Time after which no larger number is tried, in seconds."""


def measure_streams(recognizer: Recognizer) -> int:
    """Measure the number of streams that can be served in real time.

    Ticks are timed with more and more streams.

    Args:
        recognizer: recognizer of a streaming model.

    Returns:
        The number of streams, at least 1, at which ticks take 60 % of the duration of their audio.
    """
    rate = recognizer.description.features.sample_rate
    random = np.random.default_rng(0)
    count, fits, began = 1, 1, time.monotonic()
    while count <= MOST and time.monotonic() - began < SECONDS:
        with recognizer.pool(streams=count) as pool:
            streams = [pool.open(rate) for _ in range(count)]
            samples = int((TICKS + 2) * pool.block_s * rate)
            sound = random.standard_normal(samples).astype(np.float32) * 0.1
            for stream in streams:
                stream.accept(sound)
            pool.tick()
            shares = []
            for _ in range(TICKS):
                started = time.perf_counter()
                pool.tick()
                shares.append((time.perf_counter() - started) / pool.block_s)
            share = statistics.median(shares)
        if share > SHARE:
            return max(1, min(fits * 2, int(count * SHARE / share)))
        fits, count = count, count * 2
    return min(MOST, max(1, int(fits * SHARE / share)))
