"""The numpy features against torch's short-time Fourier transform and scipy's windows."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2deploy.runtimes import features as module
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import (
    FeatureConfig,
    FeatureExtractor,
    analysis_window,
    pad_features,
)

TOLERANCE = 1e-6
"""Two float32 Fourier transforms of some hundred samples, magnitudes of about 1: measured, they
differ by 2e-7 to 5e-7."""

WINDOWS = ("hamming", "hann", "blackman", "bartlett")
CONFIGS = [
    FeatureConfig(normalize="none"),
    FeatureConfig(normalize="none", sample_rate=8_000),
    FeatureConfig(normalize="none", sample_rate=8_000, window="hann"),
    FeatureConfig(normalize="none", sample_rate=44_100, window="bartlett"),
    FeatureConfig(normalize="none", window_ms=25, stride_ms=10, window="blackman"),
    FeatureConfig(normalize="none", window_ms=10, stride_ms=10),
    FeatureConfig(normalize="none", window_ms=5, stride_ms=12.5),
    FeatureConfig(normalize="none", sample_rate=22_050),
]
ODD_WINDOW = CONFIGS[-1]

extractor = cache(FeatureExtractor)


def noise(samples: int, scale: float = 0.05, seed: int = 0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def torch_log_spectrogram(samples: np.ndarray, config: FeatureConfig) -> np.ndarray:
    torch = pytest.importorskip("torch")
    windows = {name: getattr(torch, f"{name}_window") for name in WINDOWS}
    spectrum = torch.stft(
        torch.from_numpy(samples),
        n_fft=round(config.sample_rate * config.window_ms / 1000),
        hop_length=round(config.sample_rate * config.stride_ms / 1000),
        window=windows[config.window](
            round(config.sample_rate * config.window_ms / 1000), periodic=True
        ),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    return torch.log1p(spectrum.abs()).numpy()


def config_name(config: FeatureConfig) -> str:
    return f"{config.sample_rate}-{config.window_ms:g}-{config.stride_ms:g}-{config.window}"


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([c for c in CONFIGS if c is not ODD_WINDOW]),
    st.integers(1, 5000),
    st.integers(0, 2**16),
)
def test_equals_torch_at_any_length(config, samples, seed):
    audio = noise(samples, seed=seed)
    ours = extractor(config)(audio)
    reference = torch_log_spectrogram(audio, config)
    assert ours.dtype == np.float32
    assert ours.shape == reference.shape == (config.bins, config.frames(samples))
    np.testing.assert_allclose(ours, reference, rtol=0, atol=TOLERANCE)


def test_a_window_of_odd_length_equals_torch_and_has_one_frame_more_at_a_whole_stride():
    for samples, extra in ((2200, 1), (2201, 0), (2419, 0)):
        audio = noise(samples)
        ours, reference = (
            extractor(ODD_WINDOW)(audio),
            torch_log_spectrogram(audio, ODD_WINDOW),
        )
        assert ours.shape[1] == reference.shape[1] + extra
        np.testing.assert_allclose(ours[:, : reference.shape[1]], reference, rtol=0, atol=TOLERANCE)


def test_the_default_geometry_is_that_of_deepspeech_pytorch():
    config = FeatureConfig()
    assert (config.n_fft, config.stride, config.bins) == (320, 160, 161)
    assert [config.frames(n) for n in (1, 159, 160, 16_000)] == [1, 1, 2, 101]


@pytest.mark.parametrize("length", [2, 63, 160, 320, 441])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_equal_scipy(name, length):
    signal = pytest.importorskip("scipy.signal")
    ours = analysis_window(name, length)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, signal.get_window(name, length), rtol=0, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(samples=st.integers(200, 5000), level=st.sampled_from([1e-4, 0.05, 1.0]))
def test_an_utterance_is_normalised_by_its_own_mean_and_unbiased_deviation(samples, level):
    torch = pytest.importorskip("torch")
    audio = noise(samples, level)
    spectrogram = torch.from_numpy(torch_log_spectrogram(audio, FeatureConfig())).double()
    expected = (spectrogram - spectrogram.mean()) / spectrogram.std()
    # The deviation of quiet noise is small (6e-4 at 1e-4), and divides the rounding error.
    tolerance = 4 * TOLERANCE * max(1.0, 1 / spectrogram.std().item())
    ours = extractor(FeatureConfig())(audio)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=tolerance)


def test_the_deviation_is_unbiased():
    # One frame of 161 bins: the biased deviation differs by 0.3 %.
    features = extractor(FeatureConfig())(noise(100))
    assert features.shape == (161, 1)
    assert features.std(ddof=1) == pytest.approx(1.0, abs=1e-5)
    assert features.mean() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("samples", [1, 160, 16_000])
def test_silence_becomes_zeros(samples):
    features = extractor(FeatureConfig())(np.zeros(samples, np.float32))
    assert not features.any()


def test_a_constant_offset_stays_finite():
    features = extractor(FeatureConfig())(np.full(4000, 0.25, np.float32))
    assert np.isfinite(features).all()


def test_global_normalisation_uses_the_statistics_of_each_bin():
    bins = FeatureConfig().bins
    mean = np.linspace(-1, 1, bins)
    deviation = np.linspace(0.5, 2, bins)
    config = FeatureConfig(
        normalize="global", mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist())
    )
    audio = noise(3000)
    plain = extractor(FeatureConfig(normalize="none"))(audio)
    ours = extractor(config)(audio)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(
        ours, (plain - mean[:, None]) / deviation[:, None], rtol=0, atol=1e-5
    )


def test_global_normalisation_of_a_part_is_the_part_of_the_whole():
    # What streaming rests on; normalisation by utterance does not have it.
    bins = FeatureConfig().bins
    config = FeatureConfig(normalize="global", mean=(0.5,) * bins, deviation=(0.25,) * bins)
    audio = noise(16_000)
    whole, part = extractor(config)(audio), extractor(config)(audio[:8000])
    np.testing.assert_array_equal(part[:, :49], whole[:, :49])


@pytest.mark.parametrize("block", [1, 2, 7, 25, 26, 27])
def test_blocks_leave_no_seam(block, monkeypatch):
    audio = noise(4100)  # 26 frames
    config = FeatureConfig(normalize="none")
    whole = extractor(config)(audio)
    assert whole.shape == (161, 26)
    monkeypatch.setattr(module, "FRAMES_PER_BLOCK", block)
    np.testing.assert_array_equal(extractor(config)(audio), whole)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_rate": 0}, "features.sample_rate = 0"),
        ({"sample_rate": -16_000}, "features.sample_rate = -16000"),
        ({"stride_ms": 0.0}, "stride of 0.0 ms"),
        ({"stride_ms": 0.01}, "stride of 0.01 ms"),
        ({"window_ms": 0.0}, "window of 0.0 ms"),
        ({"window_ms": -20.0}, "window of -20.0 ms"),
        ({"sample_rate": 10**18}, "features.sample_rate = 1000000"),
        ({"window_ms": 1e9}, "features.window_ms"),
        ({"window_ms": float("inf")}, "features.window_ms"),
        ({"stride_ms": -1e308}, "features.stride_ms"),
        ({"stride_ms": float("nan")}, "features.stride_ms"),
        ({"scale": 1e308}, "features.scale"),
        ({"scale": 1e-320}, "features.scale"),
        ({"mean": (1e308,) * 161}, "features.mean"),
        ({"deviation": (1e308,) * 161}, "features.deviation"),
        ({"deviation": (1e-320,) * 161}, "features.deviation"),
        (
            {"mean": (0.0,) * 160},
            "features.mean has 160 values; expected one for each of the 161 bins",
        ),
        (
            {"deviation": (1.0,) * 162},
            "features.deviation has 162 values; expected one for each of the 161 bins",
        ),
        ({"deviation": (1.0,) * 160 + (0.0,)}, "features.deviation: expected a positive"),
        ({"deviation": (1.0,) * 160 + (float("nan"),)}, "features.deviation: expected a positive"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError) as raised:
        FeatureConfig(**fields)
    assert message in str(raised.value)


@pytest.mark.parametrize("statistics", [{}, {"mean": (0.0,) * 161}, {"deviation": (1.0,) * 161}])
def test_global_normalisation_without_statistics_is_refused(statistics):
    with pytest.raises(ConfigError, match="needs the mean and deviation of every bin"):
        FeatureExtractor(FeatureConfig(normalize="global", **statistics))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_a_batch_holds_every_utterance_and_zeros_after_it(frames):
    utterances = [np.full((5, n), i + 1, np.float32) for i, n in enumerate(frames)]
    features, lengths = pad_features(utterances)
    assert features.dtype == np.float32
    assert lengths.dtype == np.int64
    assert features.shape == (len(frames), 1, 5, max(frames))
    assert lengths.tolist() == frames
    for row, utterance in zip(features, utterances, strict=True):
        np.testing.assert_array_equal(row[0, :, : utterance.shape[1]], utterance)
        assert not row[0, :, utterance.shape[1] :].any()
