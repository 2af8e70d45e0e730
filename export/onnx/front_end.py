"""The feature extractor inside the graph: samples in, so that a device needs no feature code.

The short-time Fourier transform is a convolution with the windowed Fourier basis; magnitude,
logarithm and normalisation follow. All of it is float32 in every graph: fp16 would drown what is
60 dB under the loudest sound.
"""

from __future__ import annotations

import numpy as np

from ds2deploy.export.onnx.graph_builder import GraphBuilder
from ds2deploy.export.onnx.time_axis import TimeAxis
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.features import (
    SMALLEST_DEVIATION,
    FeatureConfig,
    FloatArray,
    analysis_window,
)
from ds2deploy.runtimes.geometry import window_history
from ds2deploy.runtimes.tensors import LENGTHS, WAVEFORM


def features_of_waveform(
    g: GraphBuilder, description: ArtifactDescription, time: TimeAxis
) -> tuple[str, str]:
    """Write the extractor.

    Args:
        g: the graph.
        description: metadata of the artifact.
        time: time axis of the graph: whole utterances or blocks.

    Returns:
        Features (batch, 1, bins, time) float32, and their lengths (batch,) int64 in frames.
    """
    config = description.features
    valid = time.valid_samples(WAVEFORM)
    x = g.node("Where", "samples/mask", valid, WAVEFORM, g.float32(0))
    half = config.n_fft // 2
    x, pads = time.beside(WAVEFORM, x, axis=1, before=half, after=config.n_fft - half)
    if description.blocks is not None:
        # A frame more may be complete already: it belongs to the next block.
        needed = (description.blocks.frames - 1) * config.stride + config.n_fft
        if needed < window_history(config) + description.blocks.frames * config.stride:
            x = g.slice("fourier/block", x, 1, 0, needed)
    x = g.node("Unsqueeze", "fourier/channel", x, g.integers(1))
    basis = g.constant("fourier/basis", fourier_basis(config)[:, None])
    x = g.node("Conv", "fourier", x, basis, strides=[config.stride], pads=pads)
    x = g.node("Reshape", "fourier/parts", x, g.integers(0, 2, config.bins, -1))
    x = g.node("Mul", "fourier/squares", x, x)
    x = g.node("ReduceSum", "fourier/power", x, g.integers(1), keepdims=1)
    x = g.node("Sqrt", "fourier/magnitude", x)
    x = g.node("Log", "spectrogram", g.node("Add", "spectrogram/plus_one", x, g.float32(1)))
    samples_per_frame = g.integer(config.stride)
    whole = g.node("Div", "frames/strides", LENGTHS, samples_per_frame)
    lengths = g.node("Add", "frames", whole, g.integer(1))
    if config.normalize == "utterance":
        x = _normalized_by_utterance(g, config, time.valid_features(x, lengths), x, lengths)
    elif config.normalize == "global":
        x = _normalized_by_corpus(g, config, x)
    return x, lengths


def fourier_basis(config: FeatureConfig) -> FloatArray:
    """Real and then imaginary parts of every bin, windowed, scaled: (2 * bins, n_fft) float32."""
    window = analysis_window(config.window, config.n_fft).astype(np.float64)
    phase = np.outer(np.arange(config.bins), np.arange(config.n_fft)) % config.n_fft
    angle = 2 * np.pi * phase / config.n_fft
    basis = np.concatenate([np.cos(angle), -np.sin(angle)]) * window * config.scale
    return np.asarray(basis, np.float32)


def _normalized_by_utterance(
    g: GraphBuilder, config: FeatureConfig, valid: str, x: str, lengths: str
) -> str:
    """Minus the mean over the unbiased deviation of all bins of all valid frames."""
    mask = g.node("Unsqueeze", "normal/mask", valid, g.integers(1, 2))
    frames = g.node("Cast", "normal/frames", lengths, to=1)
    column = g.node("Reshape", "normal/frames_column", frames, g.integers(-1, 1, 1, 1))
    count = g.node("Mul", "normal/count", column, g.float32(config.bins))

    def mean(name: str, values: str, divisor: str) -> str:
        inside = g.node("Where", f"{name}/valid", mask, values, g.float32(0))
        # Bins first: sums of a few hundred numbers, and then of so many again, lose no digits.
        total = g.node("ReduceSum", f"{name}/bins", inside, g.integers(2), keepdims=1)
        total = g.node("ReduceSum", f"{name}/time", total, g.integers(3), keepdims=1)
        return g.node("Div", name, total, divisor)

    centred = g.node("Sub", "normal/centred", x, mean("normal/mean", x, count))
    squares = g.node("Mul", "normal/squares", centred, centred)
    freedom = g.node("Sub", "normal/freedom", count, g.float32(1))
    deviation = g.node("Sqrt", "normal/deviation", mean("normal/variance", squares, freedom))
    divisor = g.node("Max", "normal/divisor", deviation, g.float32(SMALLEST_DEVIATION))
    return g.node("Div", "normal", centred, divisor)


def _normalized_by_corpus(g: GraphBuilder, config: FeatureConfig, x: str) -> str:
    def per_bin(name: str, values: tuple[float, ...] | None) -> str:
        array = np.array(values, np.float32).reshape(1, 1, config.bins, 1)
        return g.constant(name, array)

    centred = g.node("Sub", "normal/centred", x, per_bin("normal/mean", config.mean))
    return g.node("Div", "normal", centred, per_bin("normal/deviation", config.deviation))
