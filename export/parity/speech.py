"""Sound that is like speech, for parity checks where no recording is at hand.

A source-filter synthesiser (Fant, 1960) in numpy: syllables of a buzzing voice or of hiss through
three wandering formants, at a natural rhythm, with pauses and faint noise. It says nothing, but a
trained network answers it with labels, where noise or zeros would be all blank.
"""

from __future__ import annotations

import numpy as np

from ds2deploy.runtimes.features import FeatureConfig, FeatureExtractor, FloatArray

# First, second, third formant in Hz of some vowels (Peterson and Barney, 1952).
VOWELS = (
    (270, 2290, 3010),
    (530, 1840, 2480),
    (730, 1090, 2440),
    (570, 840, 2410),
    (300, 870, 2240),
)
BANDWIDTHS = (80.0, 100.0, 140.0)
FRICATIVES = ((4500.0, 1500.0), (2500.0, 700.0), (6500.0, 2000.0))
SYLLABLE_S = (0.12, 0.35)


def speech_features(config: FeatureConfig, utterances: int, frames: int) -> list[FloatArray]:
    """Features of synthetic speech, each by another voice.

    Args:
        config: feature settings of the model.
        utterances: number of utterances.
        frames: length of each.

    Returns:
        Arrays (bins, frames) float32, normalised as the model wants them; the same every time.
    """
    extract = FeatureExtractor(config)
    return [extract(samples) for samples in speech_waveforms(config, utterances, frames)]


def speech_waveforms(config: FeatureConfig, utterances: int, frames: int) -> list[FloatArray]:
    """Make the same as samples: arrays (samples,) float32, each of so many frames."""
    samples = (frames - 1) * config.stride
    return [synthesize(config.sample_rate, samples, seed=i) for i in range(utterances)]


def synthesize(sample_rate: int, samples: int, seed: int) -> FloatArray:
    """Speech-like sound: (samples,) float32 in [-1, 1]; the same for the same seed."""
    random = np.random.default_rng([20, seed])
    pitch = random.uniform(90, 230)
    pieces: list[FloatArray] = []
    while sum(map(len, pieces)) <= samples:
        pieces.append(np.zeros(int(sample_rate * random.uniform(0.01, 0.06)), np.float32))
        if random.random() < 0.15:
            pieces.append(np.zeros(int(sample_rate * random.uniform(0.1, 0.4)), np.float32))
        pieces.append(_syllable(sample_rate, pitch * random.uniform(0.85, 1.2), random))
    sound = np.concatenate(pieces)[:samples]
    return (0.25 * sound + 1e-3 * random.standard_normal(samples)).astype(np.float32)


def _syllable(sample_rate: int, pitch: float, random: np.random.Generator) -> FloatArray:
    vowel = _vowel(sample_rate, pitch, random)
    if random.random() < 0.4:
        return vowel
    centre, width = FRICATIVES[random.integers(len(FRICATIVES))]
    count = int(sample_rate * random.uniform(0.04, 0.12))
    frequencies = np.fft.rfftfreq(count, 1 / sample_rate)
    spectrum = np.fft.rfft(random.standard_normal(count))
    spectrum *= np.exp(-0.5 * ((frequencies - centre) / width) ** 2)
    hiss = np.fft.irfft(spectrum, n=count) * np.hanning(count)
    hiss *= 0.3 / max(float(np.abs(hiss).max()), 1e-9)
    return np.concatenate([hiss.astype(np.float32), vowel])


def _vowel(sample_rate: int, pitch: float, random: np.random.Generator) -> FloatArray:
    """Harmonics of a falling voice, each as loud as the formants that glide past it make it."""
    count = int(sample_rate * random.uniform(*SYLLABLE_S))
    position = np.linspace(0, 1, count)
    phase = 2 * np.pi * np.cumsum(pitch * (1.1 - 0.2 * position)) / sample_rate
    start, end = (np.array(VOWELS[random.integers(len(VOWELS))]) for _ in range(2))
    sound = np.zeros(count)
    for harmonic in range(1, int(min(4000, 0.45 * sample_rate) / pitch)):
        wave = np.sin(harmonic * phase)
        for first, last, width in zip(start, end, BANDWIDTHS, strict=True):
            distance = (harmonic * pitch - (first + (last - first) * position)) / width
            sound += wave / (1 + distance**2) / np.sqrt(harmonic)
    sound *= np.hanning(count) ** 0.5
    return (sound / max(float(np.abs(sound).max()), 1e-9)).astype(np.float32)
