"""Audio in pieces becomes the same blocks, however it was cut."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.blocks import make_blocks, nearest_block_ms
from ds2deploy.runtimes.errors import AudioError, ConfigError
from ds2deploy.runtimes.features import FeatureConfig, FeatureExtractor
from ds2deploy.runtimes.geometry import CONV_LATENCY, window_delay, window_history
from ds2deploy.runtimes.streaming.audio_blocks import SampleQueue, StreamAudio

SHAPE = ModelShape(hidden=8, layers=1, bidirectional=False, lookahead=3)
WINDOWS = {
    "20 ms": FeatureConfig(normalize="none"),
    "scaled": FeatureConfig(normalize="none", scale=100.0),
    "8 kHz": FeatureConfig(normalize="none", sample_rate=8_000, window="hann"),
    "25 ms": FeatureConfig(normalize="none", window_ms=25),  # complete a frame after the block
    "64 ms": FeatureConfig(normalize="none", window_ms=64),
    "5 ms": FeatureConfig(normalize="none", window_ms=5, stride_ms=12.5),
    "global": FeatureConfig(normalize="global", mean=(0.2,) * 161, deviation=(0.3,) * 161),
}


def cut(samples: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """The samples in pieces of these sizes, and the rest."""
    return np.split(samples, np.minimum(np.cumsum(sizes), len(samples)))


@pytest.fixture(scope="module")
def audio_of(describe):
    def make(config: FeatureConfig, rate: float, block_ms: float = 40.0, sound: str = "features"):
        description = describe(SHAPE, features=config, sound=sound, block_ms=block_ms)
        return StreamAudio(description, FeatureExtractor(config), rate)

    return make


def blocks_of(audio: StreamAudio, pieces: list[np.ndarray], needed: int) -> list[np.ndarray]:
    blocks = []
    for piece in pieces:
        audio.push(piece)
        while audio.full:
            blocks.append(audio.block())
            audio.drop()
    audio.end()
    while len(blocks) < needed:
        blocks.append(audio.block())
        audio.drop()
    return blocks


@pytest.mark.parametrize("config", WINDOWS.values(), ids=WINDOWS)
@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(0, 3000), max_size=12), total=st.integers(1, 9000))
def test_features_of_blocks_are_those_of_the_whole(audio_of, config, sizes, total):
    samples = np.random.default_rng(total).uniform(-1, 1, total).astype(np.float32)
    block_ms = 4 * 1000 * config.stride / config.sample_rate
    audio = audio_of(config, config.sample_rate, block_ms)
    whole = FeatureExtractor(config)(samples)
    behind = window_delay(config)
    assert audio.first_frame == -behind
    needed = -(-(whole.shape[1] + behind) // 4)
    blocks = blocks_of(audio, cut(samples, sizes), needed)
    assert {block.shape for block in blocks} == {(1, config.bins, 4)}
    joined = np.concatenate(blocks, axis=2)[0, :, behind : behind + whole.shape[1]]
    np.testing.assert_array_equal(joined, whole)
    assert audio.total == total


@settings(deadline=None, max_examples=30)
@given(
    rate=st.sampled_from([8_000, 11_025, 22_050, 44_100, 48_000, 12_345.678]),
    sizes=st.lists(st.integers(0, 3000), max_size=12),
    total=st.integers(1, 20_000),
)
def test_resampling_does_not_depend_on_the_pieces(audio_of, rate, sizes, total):
    """Bit by bit what the whole recording is resampled to."""
    samples = np.random.default_rng(total).uniform(-1, 1, total).astype(np.float32)
    whole = soxr.resample(samples, rate, 16_000)
    audio = audio_of(FeatureConfig(), rate, sound="waveform")
    needed = -(-len(whole) // 640)
    joined = np.concatenate(blocks_of(audio, cut(samples, sizes), needed) or [whole[:0]])
    assert audio.total == len(whole)
    np.testing.assert_array_equal(joined[: len(whole)], whole)
    assert not joined[len(whole) :].any()


@given(
    steps=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 50)), max_size=30),
    wanted=st.integers(1, 60),
)
def test_a_queue_gives_what_it_got_in_order(steps: list[tuple[int, int]], wanted: int):
    queue, model, pushed = SampleQueue(), np.zeros(0, np.float32), 0
    for add, take in steps:
        piece = np.arange(pushed + 1, pushed + add + 1, dtype=np.float32)
        pushed += add
        queue.push(piece)
        model = np.concatenate([model, piece])
        front = queue.front(wanted)
        np.testing.assert_array_equal(front[: len(model)], model[:wanted])
        assert not front[len(model) :].any()
        queue.drop(take)
        model = model[take:]
        assert queue.count == len(model)


def test_a_buffer_that_its_owner_fills_again(audio_of):
    """Drivers hand out the same array again and again."""
    audio = audio_of(FeatureConfig(), 16_000, sound="waveform")
    buffer = np.full(320, 0.25, np.float32)
    for _ in range(2):
        audio.push(buffer)
        buffer += 0.25
    np.testing.assert_array_equal(audio.block(), np.repeat([0.25, 0.5], 320).astype(np.float32))


def test_channels_are_mixed(audio_of):
    audio = audio_of(FeatureConfig(), 16_000, sound="waveform")
    audio.push(np.array([[0.5, 0.1]] * 640, np.float32))
    np.testing.assert_allclose(audio.block(), 0.3, atol=1e-7)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.array([0.0, np.nan], np.float32), "NaN or infinite"),
        (np.array([np.inf], np.float32), "NaN or infinite"),
        (np.zeros(160, np.int16), "samples of type int16; expected float32"),
        (np.zeros((2, 160), np.float32), "transpose it"),
        (np.zeros((2, 2, 2), np.float32), "3 dimensions"),
        (["a"], "samples of type"),
    ],
    ids=["nan", "infinity", "int16", "transposed", "3d", "text"],
)
def test_blocks_that_are_no_audio_are_refused_whole(audio_of, samples, message):
    audio = audio_of(FeatureConfig(), 16_000)
    audio.push(np.full(100, 0.5, np.float32))
    with pytest.raises(AudioError, match=message):
        audio.push(samples)
    assert audio.waiting_s == 100 / 16_000
    audio.push(np.zeros(0, np.float32))
    audio.push([])
    assert audio.waiting_s == 100 / 16_000


@pytest.mark.parametrize("rate", [0, -16_000, float("nan"), 16, 1e9, "16000", None, True])
def test_invalid_sample_rates_are_refused(audio_of, rate):
    with pytest.raises(AudioError, match="sample rate"):
        audio_of(FeatureConfig(), rate)


@pytest.mark.parametrize("block_ms", [0, -320, 10, 30, 25, 21, 1e9, float("nan")])
def test_blocks_are_of_whole_output_frames(block_ms: float):
    with pytest.raises(ConfigError, match=r"--block-ms .*: expected a multiple of 20 ms"):
        make_blocks(SHAPE, FeatureConfig(), "features", block_ms)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100])
def test_strides_of_no_whole_millisecond_have_blocks_too(rate: int):
    """The nearest is what is meant, and what a message suggests is taken."""
    config = FeatureConfig(sample_rate=rate)
    nearest = nearest_block_ms(config)
    assert abs(nearest - 320) < 11
    for block_ms in (nearest, float(f"{nearest:g}")):
        assert make_blocks(SHAPE, config, "features", block_ms).frames % 2 == 0


@pytest.mark.parametrize("config", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("sound", ["features", "waveform"])
def test_the_parts_of_the_latency(config: FeatureConfig, sound: str):
    """From sound to log-probabilities: counted sample by sample, and as the parts add up."""
    stride_ms = 1000 * config.stride / config.sample_rate
    model = msgspec.structs.replace(SHAPE, lookahead=5)
    blocks = make_blocks(model, config, sound, 8 * stride_ms)
    assert blocks.frames == 8
    behind = window_delay(config)
    delays = []
    for block in range(20):
        heard = (block + 1) * 8 * config.stride  # samples when this block can be run
        position = 8 * block - (0 if sound == "waveform" else behind)
        for row in range(4):
            output = position // 2 - blocks.output_delay + row
            if output >= 0:
                delays.append((heard - 2 * output * config.stride) * 1000 / config.sample_rate)
                last_frame = 2 * output + CONV_LATENCY + 2 * 4  # that the network sees for it
                end = last_frame * config.stride + config.n_fft - config.n_fft // 2
                assert end <= heard  # nothing is read before it was heard
    assert max(delays) == pytest.approx(blocks.latency_ms)
    assert blocks.latency_ms == pytest.approx(sum(blocks.parts().values()) / 2)
    assert blocks.convolutions_ms == CONV_LATENCY * stride_ms
    assert blocks.lookahead_ms == 8 * stride_ms
    assert min(delays) == pytest.approx(blocks.latency_ms - blocks.waiting_ms)
    assert window_history(config) == behind * config.stride + config.n_fft // 2
