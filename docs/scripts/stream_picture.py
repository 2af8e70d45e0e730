"""Picture of a stream: the output of a block, the kept state, and the parts of the latency."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from svg import (
    AMBER,
    BIG,
    BLUE,
    FAINT,
    GREEN,
    GREY,
    HATCHED,
    MIDDLE,
    PALE,
    SMALL,
    VIOLET,
    box,
    dashes,
    document,
    text,
)

from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.blocks import make_blocks
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.geometry import (
    CONV1,
    CONV1_DELAY,
    CONV2,
    CONV2_DELAY,
    TIME_STRIDE,
    conv1_bins,
    window_history,
)

BLOCK = 2
"""Index of the block that the picture shows; two came before it."""


class Row(NamedTuple):
    """A tensor of a stream while one block is run, in milliseconds of the stream.

    Attributes:
        title: name of the stage.
        first: start of the frames that this block gives.
        last: end of the frames that this block gives.
        kept: milliseconds of those (or of earlier ones) that stay in the state.
        state: name of the state and its shape; empty for the last stage.
        color: fill colour.
    """

    title: str
    first: float
    last: float
    kept: float
    state: str
    color: str


def stream_rows(model: ModelShape, features: FeatureConfig, index: int = BLOCK) -> list[Row]:
    """List the output of each stage after a block of samples, and the kept state.

    Args:
        model: dimensions of a network that streams.
        features: settings of its features.
        index: number of the block, from 0.
    """
    blocks = make_blocks(model, features, "waveform")
    position, count = index * blocks.frames, blocks.frames // TIME_STRIDE
    frame, out = features.stride_ms, TIME_STRIDE * features.stride_ms
    behind = blocks.output_delay - CONV2_DELAY - model.lookahead_delay
    start, end = position * frame, (position + blocks.frames) * frame
    history = window_history(features)

    def outputs(delay: int) -> tuple[float, float]:
        first = position // TIME_STRIDE - behind - delay
        return first * out, (first + count) * out

    moved = behind * out
    maps, bins = model.maps[0], features.bins
    rnn = "rnn, cell" if model.rnn == "lstm" else "rnn"
    lookahead = f"lookahead: {model.units[-1]} x {model.lookahead_delay} frames"
    ahead, kept = model.lookahead_delay, CONV2.history
    return [
        Row("samples", start, end, 1000 * history / features.sample_rate,
            f"waveform: {history} samples", GREY),
        Row("features", start - moved, end - moved, CONV1.history * frame,
            f"features: 1 x {bins} x {CONV1.history} frames", GREY),
        Row("convolution 1", *outputs(CONV1_DELAY), kept * out,
            f"conv1: {maps} x {conv1_bins(bins)} x {kept} frames", BLUE),
        Row("convolution 2", *outputs(CONV2_DELAY), 0, "", BLUE),
        Row("recurrent layers", *outputs(CONV2_DELAY), ahead * out,
            f"{rnn}: {model.layers} x {model.units[-1]} each; {lookahead}", GREEN),
        Row("log-probabilities", *outputs(CONV2_DELAY + ahead), 0, "", VIOLET),
    ]  # fmt: skip


def draw_stream(model: ModelShape, features: FeatureConfig) -> str:
    """Draw one block of a stream as SVG: its output, the kept state, and the latency."""
    blocks = make_blocks(model, features, "waveform")
    size = blocks.frames * features.stride_ms
    rows = stream_rows(model, features)
    left, wide, top, row = 180, 790, 116, 62
    end_ms = (BLOCK + 1) * size

    def x(ms: float) -> float:
        return left + wide * ms / end_ms

    bottom = top + row * len(rows)
    title = f"Block {BLOCK + 1} of a stream, {size:g} ms: its output, and the kept state"
    parts = [text(40, 32, title, BIG, "start")]
    parts += _legend(40, 48)
    for i in range(BLOCK + 2):
        parts.append(dashes(x(i * size), top - 12, x(i * size), bottom - 8))
        parts.append(text(x(i * size), top - 18, f"{i * size:g} ms", SMALL, color=FAINT))
    for i, item in enumerate(rows):
        y = top + row * i
        parts.append(text(left - 14, y + 17, item.title, MIDDLE, "end", bold=True))
        if item.first > 0:
            parts.append(box(x(0), y + 4, x(item.first) - x(0), 16, PALE, radius=2))
        parts.append(box(x(item.first), y, x(item.last) - x(item.first), 24, item.color, 2))
        if item.kept:
            begin = item.last - item.kept
            parts.append(box(x(begin), y, x(item.last) - x(begin), 24, HATCHED, 2))
        if item.state:
            parts.append(text(x(item.last), y + 42, f"state: {item.state}", SMALL, "end", FAINT))
    parts += _latency(blocks.parts(), x, bottom + 40)
    return document(parts, bottom + 110)


def _legend(left: float, y: float) -> list[str]:
    parts, x = [], left
    for fill, words, size in (
        (PALE, "computed by earlier blocks", 250),
        (BLUE, "computed by this block", 230),
        (HATCHED, "kept as state for the next block", 220),
    ):
        parts += [box(x, y, 22, 14, fill, 2), text(x + 30, y + 12, words, SMALL, "start", FAINT)]
        x += size
    return parts


def _latency(parts_ms: dict[str, float], x: Callable[[float], float], y: float) -> list[str]:
    """Draw the parts of the latency to the scale of the picture, from left to right."""
    total = parts_ms["total"]
    found = [
        text(40, y - 10, f"Latency of this model: at most {total:g} ms", MIDDLE, "start", bold=True)
    ]
    at = 0.0
    colors = {"window": GREY, "convolutions": BLUE, "lookahead": AMBER, "waiting": VIOLET}
    for name, color in colors.items():
        ms = parts_ms[name]
        found.append(box(x(at), y, x(at + ms) - x(at), 24, color, 2))
        middle, label = x(at + ms / 2), f"{name} {ms:g}"
        if ms >= total / 8:
            found.append(text(middle, y + 17, label, SMALL))
        else:
            found.append(text(x(at), y + 44, label, SMALL, "start"))
        at += ms
    return found
