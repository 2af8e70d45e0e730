"""Blocks of a streaming artifact: their duration, their delay, the latency that they cause."""

from __future__ import annotations

from ds2deploy.runtimes.artifact import Blocks, Input, ModelShape
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.geometry import CONV2_DELAY, CONV_LATENCY, TIME_STRIDE, window_delay

BLOCK_MS = 320.0
"""Default duration of a block, in milliseconds."""


def nearest_block_ms(features: FeatureConfig, block_ms: float = BLOCK_MS) -> float:
    """Find the duration of a block of whole output frames that is nearest to another one."""
    output_ms = TIME_STRIDE * 1000 * features.stride / features.sample_rate
    return max(1, round(block_ms / output_ms)) * output_ms


def make_blocks(
    model: ModelShape, features: FeatureConfig, kind: Input, block_ms: float = BLOCK_MS
) -> Blocks:
    """Lay out the blocks of a model.

    Args:
        model: a unidirectional one.
        features: the model's features.
        kind: content of a block.
        block_ms: duration of a block in milliseconds; a multiple of an output frame's.

    Raises:
        ConfigError: another duration.
    """
    stride_ms = 1000 * features.stride / features.sample_rate
    frames = round(block_ms / stride_ms) if 0 < block_ms <= 60_000 else 0
    near = abs(frames * stride_ms - block_ms) < 1e-2 * stride_ms
    if frames < TIME_STRIDE or frames % TIME_STRIDE or not near:
        raise ConfigError(
            f"--block-ms {block_ms:g}: expected a multiple of {TIME_STRIDE * stride_ms:g} ms (two "
            f"feature frames) up to 60000 ms, such as {nearest_block_ms(features):g}"
        )
    delay = window_delay(features)
    behind = delay // TIME_STRIDE if kind == "waveform" else 0
    return Blocks(
        frames=frames,
        output_delay=CONV2_DELAY + model.lookahead_delay + behind,
        window_ms=(delay + 1) * stride_ms,
        convolutions_ms=CONV_LATENCY * stride_ms,
        lookahead_ms=model.lookahead_delay * TIME_STRIDE * stride_ms,
        waiting_ms=(frames - TIME_STRIDE) * stride_ms,
    )
