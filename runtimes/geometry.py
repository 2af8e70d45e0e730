"""Geometry of the network, declared once: kernels, strides, and all that follows from them.

Kernels are odd and padded by half on both sides, so output sizes depend on strides alone.

A block of `2k` feature frames of a stream begins at an even frame, its position. Each convolution
keeps so many frames from before a block (its history) that it gives `k` output frames for it: those
that are complete, which are some frames behind the block (its delay). With the kernels below, the
first convolution keeps 9 frames and gives the outputs `position / 2 - 2` to
`position / 2 + k - 3`; the second keeps 10 of those, and is 5 more behind; a lookahead over `c`
frames is `c - 1` behind that. Only these indices tell start, end and padding apart.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from ds2deploy.runtimes.features import FeatureConfig

Length = TypeVar("Length", bound=Any)
"""A number, or an array or tensor of integers."""


class ConvolutionShape(NamedTuple):
    """A convolution over frequency and time; pairs are in this order.

    Attributes:
        maps: feature maps that it gives.
        kernel: bins and frames that it sees at a time; both odd.
        stride: bins and frames from one output to the next.
    """

    maps: int
    kernel: tuple[int, int]
    stride: tuple[int, int]

    @property
    def padding(self) -> tuple[int, int]:
        """Bins and frames of zeros on either side."""
        return self.kernel[0] // 2, self.kernel[1] // 2

    @property
    def delay(self) -> int:
        """Output frames by which it is behind a block of input frames."""
        return -(-(self.kernel[1] - self.stride[1] - self.padding[1]) // self.stride[1])

    @property
    def history(self) -> int:
        """Input frames that it keeps from before a block."""
        return self.padding[1] + self.stride[1] * self.delay


CONV1 = ConvolutionShape(maps=32, kernel=(41, 11), stride=(2, 2))
CONV2 = ConvolutionShape(maps=32, kernel=(21, 11), stride=(2, 1))

TIME_STRIDE = CONV1.stride[1]
"""Feature frames per output frame; the second convolution leaves time as it is."""

CONV1_DELAY = CONV1.delay
"""Output frames by which the first convolution is behind its block: 2."""

CONV2_DELAY = CONV1_DELAY + CONV2.delay
"""Output frames by which the second convolution is behind its block: 7."""

CONV_LATENCY = TIME_STRIDE * (CONV2_DELAY + 1) - 1
"""Feature frames that must follow before both convolutions are complete for a frame: 15."""


def output_length(frames: Length) -> Length:
    """Output frames of so many feature frames: one for every two, the last half one included."""
    count: Length = (frames - 1) // TIME_STRIDE + 1
    return count


def conv1_bins(bins: int) -> int:
    """Frequency bins after the first convolution: 81 of 161."""
    return (bins - 1) // CONV1.stride[0] + 1


def conv2_bins(bins: int) -> int:
    """Frequency bins after both convolutions: 41 of 161."""
    return (conv1_bins(bins) - 1) // CONV2.stride[0] + 1


def conv_features(bins: int, maps: int = CONV2.maps) -> int:
    """Features of an output frame that the first recurrent layer takes: 1312 of 161 bins."""
    return maps * conv2_bins(bins)


def window_delay(features: FeatureConfig) -> int:
    """Feature frames, a multiple of the stride, by which a block of them is behind its samples.

    A frame is complete when its window is. Windows of up to two strides (20 ms every 10 ms) are
    complete with the block that they begin in.
    """
    after = -(-(features.n_fft - features.n_fft // 2) // features.stride) - 1
    return -(-after // TIME_STRIDE) * TIME_STRIDE


def window_history(features: FeatureConfig) -> int:
    """Count the samples before a block that the windows of its feature frames reach back to."""
    return window_delay(features) * features.stride + features.n_fft // 2
