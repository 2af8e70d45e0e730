"""What is done to training audio so that a small corpus sounds like a larger one."""

from __future__ import annotations

import numpy as np
import soxr

from ds2deploy.config import AugmentConfig
from ds2deploy.runtimes.features import FloatArray

NOISE_TILTS_DB = (0.0, 12.0)
"""Noise falls by so much per octave at most: from white to more than brown."""


def augment_audio(
    samples: FloatArray, sample_rate: int, config: AugmentConfig, random: np.random.Generator
) -> FloatArray:
    """Change speed and gain and add noise, each drawn at random.

    Args:
        samples: (samples,) float32.
        sample_rate: in Hz.
        config: ranges.
        random: what is drawn from.

    Returns:
        (samples',) float32; the length follows the speed.
    """
    slowest, fastest = config.speed
    if slowest < fastest:
        speed = float(random.uniform(slowest, fastest))
        samples = soxr.resample(samples, sample_rate * speed, sample_rate, quality="LQ")
    if config.gain_db[0] < config.gain_db[1]:
        samples = samples * np.float32(10 ** (random.uniform(*config.gain_db) / 20))
    if config.noise_snr_db is not None and random.random() < config.noise_share:
        samples = add_noise(samples, float(random.uniform(*config.noise_snr_db)), random)
    return np.asarray(samples, np.float32)


def add_noise(samples: FloatArray, snr_db: float, random: np.random.Generator) -> FloatArray:
    """Add stationary noise of random colour.

    Args:
        samples: (samples,) float32.
        snr_db: ratio of the utterance's power to the noise's, in decibels.
        random: what is drawn from.
    """
    spectrum = np.fft.rfft(random.standard_normal(len(samples)))
    tilt = random.uniform(*NOISE_TILTS_DB)
    octaves = np.log2(np.maximum(np.arange(len(spectrum)) / len(spectrum), 1e-3))
    noise = np.fft.irfft(spectrum * 10 ** (-tilt * octaves / 20), n=len(samples))
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    noise *= np.sqrt(power / max(float(np.mean(noise**2)), 1e-20)) * 10 ** (-snr_db / 20)
    return samples + noise.astype(np.float32)


def mask_features(
    features: FloatArray, config: AugmentConfig, random: np.random.Generator
) -> FloatArray:
    """SpecAugment (Park et al., 2019): blank bands of bins and stretches of frames.

    Args:
        features: (bins, time) float32, normalised, so that zero is the mean; changed in place.
        config: how many masks and how wide.
        random: what is drawn from.
    """
    bins, time = features.shape
    for _ in range(config.frequency_masks):
        width = int(random.integers(0, min(config.frequency_mask_bins, bins) + 1))
        start = int(random.integers(0, bins - width + 1))
        features[start : start + width] = 0.0
    for _ in range(config.time_masks):
        width = int(random.integers(0, min(config.time_mask_frames, time // 4) + 1))
        start = int(random.integers(0, time - width + 1))
        features[:, start : start + width] = 0.0
    return features
