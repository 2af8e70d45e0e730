"""Measurement of the number of live streams that a model can serve on this machine."""

from __future__ import annotations

import time

import numpy as np

from ds2deploy.runtimes.recognizer import Recognizer

SHARE = 0.7
"""Maximum share of real time that the ticks may take at the measured number of streams."""

MOST = 1024
SECONDS = 5.0
"""Time after which no larger number is tried, in seconds."""


def measure_streams(recognizer: Recognizer) -> int:
    """Measure the number of streams that can be served in real time.

    Ticks are timed with more and more streams.

    Args:
        recognizer: recognizer of a streaming model.

    Returns:
        The number of streams, at least 1, at which ticks take 70 % of the duration of their audio.
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
