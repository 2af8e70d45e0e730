"""Delays, histories and latency of the convolutions, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.blocks import make_blocks
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.geometry import (
    CONV1,
    CONV2,
    CONV2_DELAY,
    CONV_LATENCY,
    TIME_STRIDE,
    ConvolutionShape,
    conv1_bins,
    conv2_bins,
    conv_features,
    output_length,
)


def last_frame_seen(frame: int) -> int:
    """The last feature frame that an output frame of the second convolution depends on."""
    return TIME_STRIDE * (frame + CONV2.kernel[1] // 2) + CONV1.kernel[1] // 2


def test_kernels_are_odd_and_only_the_first_convolution_strides_over_time():
    assert all(size % 2 for size in CONV1.kernel + CONV2.kernel)
    assert CONV2.stride[1] == 1


@given(width=st.integers(0, 12).map(lambda half: 2 * half + 1), stride=st.integers(1, 3))
def test_a_block_gives_one_output_frame_per_stride_and_none_too_late(width, stride):
    conv = ConvolutionShape(maps=1, kernel=(1, width), stride=(1, stride))
    new = 12 * stride
    assert (conv.history + new - width) // stride + 1 == new // stride
    last = new // stride - 1 - conv.delay  # of the block that begins at 0
    right = width // 2
    assert last * stride + right < new <= (last + 1) * stride + right


def test_an_output_frame_is_complete_with_its_block_and_not_before():
    block = 40
    first, last = -CONV2_DELAY, block // TIME_STRIDE - CONV2_DELAY - 1
    assert last_frame_seen(first - 1) < 0
    assert last_frame_seen(last) < block
    # The newest frame of the block is at most `CONV_LATENCY` ahead of the last output frame.
    assert block - 1 - TIME_STRIDE * last == CONV_LATENCY
    assert CONV_LATENCY - (last_frame_seen(last) - TIME_STRIDE * last) in range(TIME_STRIDE)


def test_latency_adds_up_to_the_wait_of_a_block_s_first_frame():
    blocks = make_blocks(ModelShape(bidirectional=False, lookahead=5), FeatureConfig(), "features")
    waits = blocks.frames - 1 + TIME_STRIDE * blocks.output_delay  # frames, for the first row
    stride_ms = 1000 * FeatureConfig().stride / FeatureConfig().sample_rate
    assert blocks.latency_ms == pytest.approx(waits * stride_ms + blocks.window_ms)


@pytest.mark.parametrize("frames", [1, 2, 3, 457, 1000])
def test_the_output_length_is_the_same_of_numbers_and_arrays(frames):
    padding, kernel = CONV1.kernel[1] // 2, CONV1.kernel[1]
    assert output_length(frames) == (frames + 2 * padding - kernel) // TIME_STRIDE + 1
    assert output_length(np.array([frames])).tolist() == [output_length(frames)]


def test_paper_dimensions():
    assert (conv1_bins(161), conv2_bins(161), conv_features(161)) == (81, 41, 1312)
    assert (CONV1.history, CONV2.history, CONV_LATENCY) == (9, 10, 15)
