"""Acoustic effects: reverberation, band limits and music."""

from __future__ import annotations

import numpy as np
from scipy.signal import fftconvolve

from ds2deploy.runtimes.features import FloatArray

DIRECT_TO_REVERBERANT_DB = (-3.0, 12.0)
"""Range of the ratio of direct sound to reverberation, from a distant to a close speaker."""

FIRST_REFLECTION_MS = (2.0, 12.0)
"""Delay between direct sound and reverberation."""

LOW_EDGE_HZ = (0.0, 300.0)
"""Range of the lower edge of a narrow band; that of a telephone is 300 Hz."""

EDGE_OCTAVES = 0.25
"""Width of the slope at either edge of a band."""

CHORD_S = (0.3, 1.5)
"""Duration of a chord of music."""


def reverberate(
    samples: FloatArray, sample_rate: int, rt60_s: float, random: np.random.Generator
) -> FloatArray:
    """Add the reverberation of a simulated room.

    The impulse response is Polack's statistical model: the direct sound, then Gaussian noise that
    decays by 60 dB within the reverberation time.

    Args:
        samples: (samples,) float32.
        sample_rate: sample rate, in Hz.
        rt60_s: reverberation time, in seconds, above 0.
        random: random generator of the room.

    Returns:
        (samples,) float32; the reverberation after the end is cut off.
    """
    decay = 10 ** (-3 * np.arange(1, int(rt60_s * sample_rate) + 2) / (rt60_s * sample_rate))
    tail = decay * random.standard_normal(len(decay))
    ratio = 10 ** (random.uniform(*DIRECT_TO_REVERBERANT_DB) / 20)
    delay = int(random.uniform(*FIRST_REFLECTION_MS) * sample_rate / 1000)
    tail /= ratio * np.sqrt(np.sum(tail**2))
    response = np.concatenate([[1.0], np.zeros(delay), tail])
    return np.asarray(fftconvolve(samples, response)[: len(samples)], np.float32)


def limit_band(samples: FloatArray, sample_rate: int, low_hz: float, high_hz: float) -> FloatArray:
    """Remove frequencies outside a band, with a slope at each edge.

    Args:
        samples: (samples,) float32.
        sample_rate: sample rate, in Hz.
        low_hz: lower edge, in Hz; 0 removes no low frequencies.
        high_hz: upper edge, in Hz.

    Returns:
        (samples,) float32.
    """
    spectrum = np.fft.rfft(samples)
    octave = np.log2(np.maximum(np.fft.rfftfreq(len(samples), 1 / sample_rate), 1e-3))
    pass_high = np.clip((np.log2(high_hz) - octave) / EDGE_OCTAVES, 0, 1)
    pass_low = np.clip((octave - np.log2(max(low_hz, 1e-3))) / EDGE_OCTAVES + 1, 0, 1)
    limited = np.fft.irfft(spectrum * pass_high * pass_low, n=len(samples))
    return limited.astype(np.float32)


def make_music(count: int, sample_rate: int, random: np.random.Generator) -> FloatArray:
    """Generate a sequence of chords of decaying harmonic tones.

    Args:
        count: number of samples.
        sample_rate: sample rate, in Hz.
        random: random generator of the chords.

    Returns:
        (count,) float32.
    """
    made = np.zeros(count)
    start = 0
    while start < count:
        length = int(random.uniform(*CHORD_S) * sample_rate)
        time = np.arange(min(2 * length, count - start)) / sample_rate
        envelope = np.exp(-random.uniform(1, 6) * time) * np.minimum(1, time / 0.01)
        for pitch in 110 * 2 ** (random.choice(37, size=3, replace=False) / 12):
            strength = random.uniform(0.2, 1.0)
            for harmonic in range(1, 7):
                phase = 2 * np.pi * harmonic * pitch * time + random.uniform(0, 2 * np.pi)
                made[start : start + len(time)] += envelope * strength**harmonic * np.sin(phase)
        start += length
    return made.astype(np.float32)
