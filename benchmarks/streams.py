"""Number of streams that a machine can serve, measured with `StreamPool` and random offsets.

    python benchmarks/streams.py MODEL [--streams 64] [--seconds 10] [--threads 1] [--json]

Both measurements use the same streams. *In real time*: each tick processes one block of every
stream that has one; the duration of the ticks is measured. *At full speed*: all audio is available
from the start; the seconds of audio that a core recognises per second are the maximum number of its
streams.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import ds2deploy
from ds2deploy.bench.machine import describe_machine
from ds2deploy.bench.timing import latency
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.session import usable_cores

WARM_UP = 3
"""Number of warm-up ticks, which allocate memory and start threads."""


def main() -> None:
    """Measure, and print the result as a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="duration of each stream in seconds"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 0 uses all cores")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with ds2deploy.load(options.model, threads=options.threads) as recognizer:
        result = measure(recognizer, options.streams, options.seconds)
    cores = options.threads or usable_cores()
    result["streams_per_core"] = round(result["full_speed"] / cores, 1)
    result |= {"threads": cores, "model": str(options.model), "machine": str(describe_machine())}
    if options.json:
        print(json.dumps(result))
        return
    tick = result["tick_ms"]
    print(f"{result['machine']}; {result['runtime']}, {cores} thread(s)")
    print(f"{options.streams} streams, blocks of {result['block_ms']:g} ms")
    print(
        f"tick       p50 {tick['p50']:.1f} ms  p95 {tick['p95']:.1f} ms  p99 {tick['p99']:.1f} ms"
    )
    print(f"throughput {result['streams_per_core']:.1f} streams per core")
    print(f"same text as without other streams: {result['same_text']} of {options.streams}")


def measure(recognizer: Recognizer, streams: int, seconds: float) -> dict[str, Any]:
    """Serve a number of streams, and compare each text with that of a single stream.

    Args:
        recognizer: recogniser of a streaming model.
        streams: number of streams.
        seconds: duration of each stream, in seconds.
    """
    random = np.random.default_rng(0)
    rate = recognizer.description.features.sample_rate
    voices = [synthesize(rate, int(rate * seconds), seed=i) for i in range(8)]
    starts = random.integers(0, len(voices[0]) // 2, streams)
    speech = [np.roll(voices[i % 8], -start) for i, start in enumerate(starts)]
    alone = [transcript.text for transcript in recognizer.transcribe(speech, rate)]
    texts, ticks, block_s = in_real_time(recognizer, speech, random)
    tick, speed = latency(ticks), at_full_speed(recognizer, speech)
    return {
        "runtime": recognizer.session.runtime,
        "streams": streams,
        "audio_s": seconds,
        "block_ms": round(1000 * block_s, 3),
        "tick_ms": {name: round(1000 * getattr(tick, name), 2) for name in ("p50", "p95", "p99")},
        "ticks": tick.runs,
        "full_speed": round(speed, 2),
        "same_text": sum(left == right for left, right in zip(texts, alone, strict=True)),
    }


def in_real_time(
    recognizer: Recognizer, speech: list[np.ndarray], random: np.random.Generator
) -> tuple[list[str], list[float], float]:
    """Measure the texts, the seconds of every tick with all streams open, and those of a block.

    Time is simulated: each tick stands for the duration of a block, in which every stream gets
    about one block of audio. Only the computing time is measured.
    """
    rate = recognizer.description.features.sample_rate
    with recognizer.pool(streams=len(speech)) as pool:
        blocks = pool.block_s
        size = int(blocks * rate)
        opened = [pool.open(rate) for _ in speech]
        sent = [0] * len(speech)
        took: list[float] = []
        while any(stream.transcript is None for stream in opened):
            everybody = True
            for i, stream in enumerate(opened):
                if stream.transcript is not None or sent[i] > len(speech[i]):
                    everybody = False
                    continue
                count = int(size * random.uniform(0.7, 1.3))
                stream.accept(speech[i][sent[i] : sent[i] + count])
                sent[i] += count
                if sent[i] >= len(speech[i]):
                    sent[i] = len(speech[i]) + 1
                    stream.finish()
            started = time.perf_counter()
            pool.tick()
            if everybody:
                took.append(time.perf_counter() - started)
        texts = [stream.transcript.text for stream in opened if stream.transcript is not None]
    return texts, took[WARM_UP:], blocks


def at_full_speed(recognizer: Recognizer, speech: list[np.ndarray]) -> float:
    """Measure the seconds of audio that are recognised per second, without waiting for audio."""
    rate = recognizer.description.features.sample_rate
    total_s = sum(map(len, speech)) / rate
    with recognizer.pool(streams=len(speech), backlog_s=total_s) as pool:
        opened = [pool.open(rate) for _ in speech]
        for stream, samples in zip(opened, speech, strict=True):
            stream.accept(samples)
            stream.finish()
        started = time.perf_counter()
        while any(stream.transcript is None for stream in opened):
            pool.tick()
        return total_s / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
