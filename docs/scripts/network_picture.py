"""Picture of the network: the shapes of its stages, and the receptive field of an output frame."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from svg import (
    AMBER,
    BIG,
    BLUE,
    FAINT,
    GREEN,
    GREY,
    MIDDLE,
    PALE,
    SMALL,
    VIOLET,
    arrow,
    box,
    dashes,
    document,
    text,
)

from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.geometry import (
    CONV1,
    CONV2,
    TIME_STRIDE,
    ConvolutionShape,
    conv1_bins,
    conv2_bins,
    conv_features,
    output_length,
)

LABELS = 29
"""Labels of the example: blank, apostrophe, the letters and the space."""


class Stage(NamedTuple):
    """A stage of the network: what it does, what it gives, and the colour of its box."""

    title: str
    detail: str
    shape: str
    meaning: str
    color: str


def stages(model: ModelShape, features: FeatureConfig, seconds: float) -> list[Stage]:
    """List the stages of a network, with the shapes for one utterance.

    Args:
        model: dimensions of the network.
        features: settings of its features.
        seconds: duration of the utterance.
    """
    samples = round(seconds * features.sample_rate)
    frames = features.frames(samples)
    time, bins = output_length(frames), features.bins
    units = model.units[-1]
    maps1, maps2 = model.maps
    stride = f"{features.stride_ms:g} ms"
    directions = "both directions summed" if model.bidirectional else "forward"
    found = [
        Stage(
            "waveform",
            f"{features.sample_rate / 1000:g} kHz, mono",
            f"({samples})",
            "samples",
            GREY,
        ),
        Stage(
            "log spectrogram",
            f"window {features.window_ms:g} ms, stride {stride}",
            f"(1, {bins}, {frames})",
            "1 map, bins, frames",
            GREY,
        ),
        _convolution("convolution 1", CONV1, (maps1, conv1_bins(bins), time)),
        _convolution("convolution 2", CONV2, (maps2, conv2_bins(bins), time)),
        Stage(
            "flatten",
            f"{maps2} maps x {conv2_bins(bins)} bins",
            f"({time}, {conv_features(bins, maps2)})",
            "frames, features",
            BLUE,
        ),
        Stage(
            f"{model.layers} x {model.rnn.upper()}",
            f"{directions}; batch norm from the second on",
            f"({time}, {units})",
            "frames, units",
            GREEN,
        ),
    ]
    ahead = f"sum over {model.lookahead} frames, Hardtanh"
    if model.bidirectional:
        ahead = f"only in forward-only models: {ahead}"
    color = PALE if model.bidirectional else AMBER
    found.append(Stage("lookahead", ahead, f"({time}, {units})", "frames, units", color))
    last = "batch norm, no bias, log-softmax"
    return [*found, Stage("linear", last, f"({time}, {LABELS})", "frames, labels", VIOLET)]


def _convolution(title: str, conv: ConvolutionShape, shape: tuple[int, int, int]) -> Stage:
    kernel, stride = (f"{pair[0]}x{pair[1]}" for pair in (conv.kernel, conv.stride))
    detail = f"kernel {kernel}, stride {stride}; batch norm, Hardtanh"
    return Stage(title, detail, str(shape), "maps, bins, frames", BLUE)


def seen_ahead() -> int:
    """Count the feature frames on either side that an output frame of the convolutions needs."""
    return CONV1.padding[1] + TIME_STRIDE * CONV2.padding[1]


def draw_network(model: ModelShape, features: FeatureConfig, seconds: float) -> str:
    """Draw the network as SVG: stages from top to bottom, and the receptive field of a frame."""
    row, height, left, size = 70, 52, 30, 440
    parts, y = [], 64
    parts.append(
        text(left, 36, f"One utterance of {seconds:g} s through the network", BIG, "start")
    )
    listed = stages(model, features, seconds)
    for i, stage in enumerate(listed):
        if i:
            x = left + size / 2
            parts.append(arrow(x, y - row + height, x, y))
        parts.append(box(left, y, size, height, stage.color))
        parts.append(text(left + 14, y + 22, stage.title, MIDDLE, "start", bold=True))
        parts.append(text(left + 14, y + 43, stage.detail, SMALL, "start", FAINT))
        parts.append(text(left + size + 16, y + 22, stage.shape, MIDDLE, "start", bold=True))
        parts.append(text(left + size + 16, y + 43, stage.meaning, SMALL, "start", FAINT))
        y += row
    parts += _field(features, 672, 64, 300)
    return document(parts, y)


def _field(features: FeatureConfig, left: float, top: float, size: float) -> list[str]:
    """Draw the feature frames that one output frame of the convolutions needs."""
    ahead = seen_ahead()
    count, inner = 2 * ahead + 1, CONV2.kernel[1]
    ms = (count - 1) * features.stride_ms + features.window_ms
    step = size / count
    rows = (
        (f"{count} feature frames", ahead, 1, GREY),
        (f"{inner} frames of convolution 1", CONV2.padding[1] * TIME_STRIDE, TIME_STRIDE, BLUE),
        ("1 output frame", 0, TIME_STRIDE, VIOLET),
    )
    middle = left + size / 2
    parts = [
        text(left, top + 8, "Receptive field of an output frame", MIDDLE, "start", bold=True),
        text(left, top + 30, "through both convolutions", SMALL, "start", FAINT),
    ]
    places = []
    for i, (name, reach, stride, color) in enumerate(rows):
        y = top + 76 + 80 * i
        places.append((y, reach))
        if reach:
            parts.append(text(middle, y - 8, name, SMALL, color=FAINT))
        else:
            parts.append(text(middle + 14, y + 14, name, SMALL, "start", FAINT))
        for frame in range(-reach, reach + 1, stride):
            x = middle + (frame - 0.5) * step
            parts.append(box(x + 0.6, y, step - 1.2, 18, color, radius=1))
    for (upper, wide), (lower, narrow) in itertools.pairwise(places):
        for sign in (-1, 1):
            parts.append(
                dashes(
                    middle + sign * (narrow + 0.5) * step,
                    lower,
                    middle + sign * (wide + 0.5) * step,
                    upper + 18,
                )
            )
    y = top + 76 + 80 * 3 - 12
    lines = (
        f"{ahead} frames on either side: {ahead * features.stride_ms:g} ms",
        f"{count} frames and their windows: {ms:g} ms of sound",
        f"an output frame every {TIME_STRIDE * features.stride_ms:g} ms",
    )
    return parts + [text(left, y + 24 * i, line, SMALL, "start") for i, line in enumerate(lines)]
