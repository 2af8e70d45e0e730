"""How blocks, contexts and delays fit together in a network that hears as it goes.

A block of `2k` feature frames begins at the even frame `position`. The first convolution keeps 9
frames from before, and so gives the outputs `position / 2 - 2` to `position / 2 + k - 3`; the
second keeps 10 of those, and is 5 behind; a lookahead that sees `c` frames is `c - 1` behind that.
All stages have `k` frames in a block, and only the indices tell start, end and padding apart.
"""

from __future__ import annotations

from ds2deploy.runtimes.artifact import (
    CONV_FRAMES,
    CONV_PADDING,
    TIME_STRIDE,
    Blocks,
    Input,
    ModelShape,
)
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FeatureConfig

BLOCK_MS = 320.0
"""Of sound at a time, unless another block is asked for."""

CONV1_DELAY = (CONV_FRAMES - TIME_STRIDE - CONV_PADDING) // TIME_STRIDE
"""Output frames by which the first convolution is behind its block: 2."""

CONV2_DELAY = CONV1_DELAY + (CONV_FRAMES - 1 - CONV_PADDING)
"""Output frames by which the second convolution is behind: 7."""


def lookahead_history(model: ModelShape) -> int:
    """Frames that the lookahead keeps from before a block, and is behind."""
    return 0 if model.bidirectional else model.lookahead - 1


def window_delay(features: FeatureConfig) -> int:
    """Feature frames, an even number, by which a block of features is behind one of samples.

    A frame is complete when its window is. Windows of up to two strides (20 ms every 10 ms) are
    complete with the block that they begin in.
    """
    after = -(-(features.n_fft - features.n_fft // 2) // features.stride) - 1
    return after + after % TIME_STRIDE


def window_history(features: FeatureConfig) -> int:
    """Samples from before a block that the windows of its feature frames reach back to."""
    return window_delay(features) * features.stride + features.n_fft // 2


def nearest_block_ms(features: FeatureConfig, block_ms: float = BLOCK_MS) -> float:
    """The duration of a block of whole output frames that is nearest to another one."""
    output_ms = TIME_STRIDE * 1000 * features.stride / features.sample_rate
    return max(1, round(block_ms / output_ms)) * output_ms


def make_blocks(
    model: ModelShape, features: FeatureConfig, kind: Input, block_ms: float = BLOCK_MS
) -> Blocks:
    """The blocks of a model.

    Args:
        model: a unidirectional one.
        features: of the model.
        kind: what a block holds.
        block_ms: of sound in a block; twice the stride, or a multiple of that.

    Raises:
        ConfigError: another duration.
    """
    stride_ms = 1000 * features.stride / features.sample_rate
    frames = round(block_ms / stride_ms) if 0 < block_ms <= 60_000 else 0
    near = abs(frames * stride_ms - block_ms) < 1e-2 * stride_ms
    if frames < TIME_STRIDE or frames % TIME_STRIDE or not near:
        raise ConfigError(
            f"--block-ms {block_ms:g}: expected a multiple of {TIME_STRIDE * stride_ms:g} ms (two "
            f"feature frames), up to 60000, such as {nearest_block_ms(features):g}"
        )
    delay = window_delay(features)
    return Blocks(
        frames=frames,
        output_delay=CONV2_DELAY
        + lookahead_history(model)
        + (delay // TIME_STRIDE if kind == "waveform" else 0),
        window_ms=(delay + 1) * stride_ms,
        convolutions_ms=CONV_PADDING * (1 + TIME_STRIDE) * stride_ms,
        lookahead_ms=lookahead_history(model) * TIME_STRIDE * stride_ms,
        waiting_ms=(frames - TIME_STRIDE) * stride_ms,
    )
