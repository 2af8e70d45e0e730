"""Ratios of speed that `check.py` guards, measured on one thread with both sides in turns."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import latency
import numpy as np
import startup
import throughput
import torch
import training
from models import (
    DIGITS,
    MEDIUM,
    TINY,
    make_checkpoint,
    network_run,
    open_network,
    recipe_of,
    speech,
    write_onnx,
)
from report import progress

import ds2deploy
from ds2deploy.bench.timing import ratio, take_turns
from ds2deploy.compression.compress import compress
from ds2deploy.export.format import ExportFormat
from ds2deploy.runtimes.artifact import ModelShape, Precision
from ds2deploy.runtimes.features import FeatureConfig, FeatureExtractor, FloatArray, analysis_window
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.training.memory import keep_freed_memory

THREADS = 1

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")

PORTABLE = ("int8 file, times smaller",)
"""Ratios that are the same on every machine."""


class Sizes(NamedTuple):
    """Sizes of a measurement: network, seconds of audio, batch, files, rounds."""

    shape: ModelShape
    seconds: float
    batch: int
    files: int
    rounds: int


FULL, QUICK = Sizes(MEDIUM, 4.0, 4, 24, 7), Sizes(TINY, 0.2, 4, 4, 1)


def measure_ratios(sizes: Sizes, portable: bool = False) -> dict[str, float]:
    """Measure every ratio, or only those that are the same on every machine."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as name:
        folder = Path(name)
        found |= network_ratios(sizes, folder, portable)
        if portable:
            return found
        torch.set_num_threads(THREADS)
        found["training step against packed"] = training_ratio(sizes)
        found["features against plain numpy"] = feature_ratio(sizes)
        found |= digits_ratios(sizes, folder)
        found |= stream_ratios(sizes, folder)
        found |= compression_ratios(sizes, folder)
    return found


def times_as_fast(took: Mapping[str, Sequence[float]], reference: str, case: str) -> float:
    """Compare two cases that ran in turns: median of the ratios of the rounds."""
    return ratio(took[reference], took[case]).median


def network_ratios(sizes: Sizes, folder: Path, portable: bool) -> dict[str, float]:
    """Measure the speed of the artifacts relative to packed torch, and their sizes."""
    models = latency.open_models(sizes.shape, folder, THREADS)
    files = models.sizes
    found = {PORTABLE[0]: files[latency.FP32] / files[latency.INT8]}
    if portable:
        return found
    names = (latency.PACKED, latency.FP32, latency.INT8)
    for batch in (1, sizes.batch):
        cases = {n: network_run(models.sessions[n], batch, sizes.seconds) for n in names}
        took = take_turns(cases, sizes.rounds, progress=progress)
        for name in names[1:]:
            case = f"{name} against packed torch, batch {batch}"
            found[case] = times_as_fast(took, latency.PACKED, name)
    return found


def training_ratio(sizes: Sizes) -> float:
    """Measure the speed of our training step relative to one over packed sequences."""
    keep_freed_memory()  # as in training; without it, runs of one process differed by a third
    recipe = recipe_of(sizes.shape)
    batch = training.make_batch(recipe, sizes.batch, (sizes.seconds / 2, sizes.seconds))
    networks = training.make_networks(recipe)
    compared = (training.PACKED, training.OURS)
    cases = {name: training.step_of(networks[name], batch) for name in compared}
    took = take_turns(cases, sizes.rounds, progress=progress)
    return times_as_fast(took, training.PACKED, training.OURS)


def feature_ratio(sizes: Sizes) -> float:
    """Measure the speed of our features relative to plain numpy on all windows at once."""
    config = FeatureConfig()
    samples, extract = speech(config.sample_rate, 10.0), FeatureExtractor(config)
    window = analysis_window(config.window, config.n_fft)

    def plain() -> object:
        padded = np.pad(samples, config.n_fft // 2)
        windows = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)
        spectrum = np.fft.rfft(windows[:: config.stride] * window, axis=1)
        return np.log1p(np.abs(spectrum)).T

    cases: dict[str, Callable[[], object]] = {"plain": plain, "ours": lambda: extract(samples)}
    took = take_turns(cases, 20 * sizes.rounds, warm_up=3)
    return times_as_fast(took, "plain", "ours")


def digits_ratios(sizes: Sizes, folder: Path) -> dict[str, float]:
    """Measure batched files relative to single files, and ONNX Runtime relative to torch."""
    onnx = write_onnx(DIGITS, folder)
    (folder / "audio").mkdir()
    paths, _ = throughput.write_files(folder / "audio", sizes.files, 6.0)
    with ds2deploy.load(onnx, threads=THREADS) as recognizer:
        transcribe = throughput.in_this_process(recognizer)
        transcribe(paths[:2])  # allocates memory
        passes = [throughput.pass_through(paths, transcribe) for _ in range(sizes.rounds)]
    commands = {"onnx": str(onnx), "torch": str(DIGITS)}
    cases: dict[str, Callable[[], object]] = {
        name: partial(startup.process, startup.COMMAND, "transcribe", model, str(paths[0]))
        for name, model in commands.items()
    }
    cases["bare"] = partial(startup.process, startup.SESSION, str(onnx))
    took = take_turns(cases, sizes.rounds, progress=progress)
    return {
        "files all at once against one by one": statistics.median(
            found.alone_s / found.together_s for found in passes
        ),
        "a process on ONNX Runtime against torch": times_as_fast(took, "torch", "onnx"),
        "a session of ONNX Runtime alone against a process": times_as_fast(took, "bare", "onnx"),
    }


def stream_ratios(sizes: Sizes, folder: Path) -> dict[str, float]:
    """Measure a pool of streams relative to single streams, and int8 relative to fp32."""
    shape = ModelShape(
        hidden=sizes.shape.hidden, layers=sizes.shape.layers, bidirectional=False, lookahead=20
    )
    folder = folder / "streams"
    folder.mkdir()
    checkpoint, streaming = make_checkpoint(shape, folder), ExportFormat(streaming=True)
    count, rate = 4 * sizes.batch, FeatureConfig().sample_rate
    audio = [speech(rate, sizes.seconds, voice) for voice in range(count)]
    files = [write_onnx(checkpoint, folder, one, streaming) for one in PRECISIONS]
    cases: dict[str, Callable[[], object]] = {}
    with contextlib.ExitStack() as stack:
        fp32, int8 = (stack.enter_context(ds2deploy.load(file, threads=THREADS)) for file in files)
        cases["fp32"] = partial(_stream, fp32, audio, count)
        cases["int8"] = partial(_stream, int8, audio, count)
        cases["single"] = partial(_stream, fp32, audio, 1)
        took = take_turns(cases, sizes.rounds, progress=progress)
    return {
        f"{count} streams in one pool against one by one": times_as_fast(took, "single", "fp32"),
        f"{count} streams in int8 against fp32": times_as_fast(took, "fp32", "int8"),
    }


def _stream(recognizer: Recognizer, audio: list[FloatArray], at_once: int) -> None:
    """Recognise recordings as streams of a pool, a number at a time."""
    rate = recognizer.description.features.sample_rate
    for start in range(0, len(audio), at_once):
        with recognizer.pool(streams=at_once, backlog_s=3600.0) as pool:
            for samples in audio[start : start + at_once]:
                stream = pool.open(rate)
                stream.accept(samples)
                stream.finish()
            while pool.tick():
                pass


def compression_ratios(sizes: Sizes, folder: Path) -> dict[str, float]:
    """Measure a network of half the operations relative to the whole network."""
    folder = folder / "compressed"
    folder.mkdir()
    whole, small = make_checkpoint(sizes.shape, folder), folder / "small.ckpt"
    compress(whole, small, speed=2.0)
    found = {}
    for precision in PRECISIONS:
        cases = {}
        for path in (whole, small):
            onnx = write_onnx(path, folder / path.stem, precision)
            session = open_network(onnx, "onnxruntime", THREADS)
            cases[path.stem] = network_run(session, 1, sizes.seconds)
        took = take_turns(cases, sizes.rounds, progress=progress)
        case = f"half the operations against all, {precision}"
        found[case] = times_as_fast(took, whole.stem, small.stem)
    return found
