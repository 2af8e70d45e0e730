"""Augmentation of training audio: speed, tempo, gain, rooms, noise, band limits and masks."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import soxr

from ds2deploy.config import AugmentConfig
from ds2deploy.data.acoustics import LOW_EDGE_HZ, limit_band, make_music, reverberate
from ds2deploy.data.listing import list_files
from ds2deploy.runtimes.audio.formats import READ_SUFFIXES
from ds2deploy.runtimes.audio.loading import load_part, measure_audio
from ds2deploy.runtimes.audio.samples import convert_audio
from ds2deploy.runtimes.errors import FILE_ERRORS, AudioError, ConfigError, NoiseError
from ds2deploy.runtimes.features import FloatArray

NEUTRAL = AugmentConfig()
"""Augmentation that changes nothing."""

NOISE_TILTS_DB = (0.0, 12.0)
"""Range of the slope of the noise, in decibels per octave: from white to steeper than brown."""


def augment_audio(
    samples: FloatArray, sample_rate: int, config: AugmentConfig, random: np.random.Generator
) -> FloatArray:
    """Apply random changes: speed, tempo, gain, reverberation, noise and band limits.

    Args:
        samples: (samples,) float32.
        sample_rate: sample rate, in Hz.
        config: ranges of the changes.
        random: random generator of the changes.

    Returns:
        (samples',) float32; the length depends on speed and tempo.
    """
    if config.speed != NEUTRAL.speed:
        speed = float(random.uniform(*config.speed))
        samples = soxr.resample(samples, sample_rate * speed, sample_rate, quality="LQ")
    if config.tempo != NEUTRAL.tempo:
        samples = change_tempo(samples, sample_rate, float(random.uniform(*config.tempo)))
    if config.room_rt60_s is not None and random.random() < config.room_share:
        samples = reverberate(samples, sample_rate, random.uniform(*config.room_rt60_s), random)
    if config.gain_db != NEUTRAL.gain_db:
        samples = samples * np.float32(10 ** (random.uniform(*config.gain_db) / 20))
    if config.noise_snr_db is not None and random.random() < config.noise_share:
        snr_db = float(random.uniform(*config.noise_snr_db))
        if config.noise_folder:
            noise = recorded_noise(config.noise_folder, len(samples), sample_rate, random)
        elif config.noise_music_share and random.random() < config.noise_music_share:
            noise = make_music(len(samples), sample_rate, random)
        else:
            noise = made_noise(len(samples), random)
        samples = add_noise(samples, noise, snr_db)
    if config.band_hz is not None and random.random() < config.band_share:
        low_hz, high_hz = random.uniform(*LOW_EDGE_HZ), random.uniform(*config.band_hz)
        samples = limit_band(samples, sample_rate, low_hz, high_hz)
    return np.asarray(samples, np.float32)


def add_noise(samples: FloatArray, noise: FloatArray, snr_db: float) -> FloatArray:
    """Add noise to an utterance.

    Args:
        samples: (samples,) float32.
        noise: (samples,) float32.
        snr_db: ratio of the power of the utterance to that of the noise, in decibels.
    """
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    there = float(np.mean(np.square(noise, dtype=np.float64)))
    return samples + noise * np.float32(np.sqrt(power / max(there, 1e-20)) * 10 ** (-snr_db / 20))


def recorded_noise(
    folder: str, count: int, sample_rate: int, random: np.random.Generator
) -> FloatArray:
    """Draw a random part of a noise recording, and repeat recordings that are too short.

    Args:
        folder: folder of recordings, at any depth.
        count: number of samples.
        sample_rate: sample rate of the result, in Hz.
        random: random generator of the part.

    Raises:
        ConfigError: the folder does not exist, or contains no recordings.
        NoiseError: a recording cannot be read.
    """
    paths = noise_files(folder)
    path = paths[int(random.integers(len(paths)))]
    try:
        samples, rate = _noise_size(path)
        wanted = int(count * rate / sample_rate) + 2
        start = int(random.integers(0, max(0, samples - wanted) + 1))
        read, _ = load_part(path, start / rate, wanted / rate)
    except FILE_ERRORS:
        raise NoiseError(f"{path}: not readable audio; remove it from {folder}") from None
    if not read.size:
        raise NoiseError(f"{path}: truncated; remove it from {folder}")
    return np.resize(convert_audio(read, rate, sample_rate, str(path)), count)


@lru_cache(maxsize=10_000)
def _noise_size(path: Path) -> tuple[int, int]:
    """Measure a recording as its number of samples and its sample rate (Hz).

    A recording whose header has no length is decoded once.
    """
    facts = measure_audio(path)
    return facts.samples, facts.sample_rate


@lru_cache(maxsize=4)
def noise_files(folder: str) -> tuple[Path, ...]:
    """List the recordings of a folder in a fixed order.

    Raises:
        ConfigError: the folder does not exist, or contains no recordings.
    """
    found = [p for p in list_files(Path(folder)).files if p.suffix.lower() in READ_SUFFIXES]
    if not found:
        what = "contains no audio" if Path(folder).is_dir() else "no such folder"
        raise ConfigError(f"augment.noise_folder = {folder}: {what}; expected recordings of noise")
    return tuple(found)


def check_noise(config: AugmentConfig) -> None:
    """Check all noise recordings before a training begins.

    Raises:
        ConfigError, AudioError: see `recorded_noise`.
    """
    if not config.noise_folder:
        return
    for path in noise_files(config.noise_folder):
        try:
            usable = _noise_size(path)[0] > 0
        except FILE_ERRORS:
            usable = False
        if not usable:
            raise AudioError(f"{path}: not readable audio; remove it from {config.noise_folder}")


def made_noise(count: int, random: np.random.Generator) -> FloatArray:
    """Generate stationary noise of random colour.

    Args:
        count: number of samples.
        random: random generator of the noise.

    Returns:
        (count,) float32.
    """
    spectrum = np.fft.rfft(random.standard_normal(count))
    tilt = random.uniform(*NOISE_TILTS_DB)
    octaves = np.log2(np.maximum(np.arange(len(spectrum)) / len(spectrum), 1e-3))
    noise = np.fft.irfft(spectrum * 10 ** (-tilt * octaves / 20), n=count)
    return noise.astype(np.float32)


def mask_features(
    features: FloatArray, config: AugmentConfig, random: np.random.Generator
) -> FloatArray:
    """Mask random bands of bins and ranges of frames (SpecAugment, Park et al., 2019).

    Args:
        features: (bins, time) float32, normalised so that zero is the mean; changed in place.
        config: number and width of the masks.
        random: random generator of the masks.
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


FRAME_MS = 30.0
"""Length of a piece of speech that is moved: two or three pitch periods."""

SEARCH_MS = 8.0
"""Maximum distance by which a piece is moved to fit the previous one: one pitch period of a low
voice."""


def change_tempo(samples: FloatArray, sample_rate: int, tempo: float) -> FloatArray:
    """Change the tempo but not the pitch (WSOLA, Verhelst and Roelands, 1993).

    Pieces of the recording are overlapped anew, each at the place where its waveform best
    continues the previous piece.

    Args:
        samples: (samples,) float32.
        sample_rate: sample rate, in Hz.
        tempo: factor of the tempo, above 0.

    Returns:
        (samples / tempo,) float32.
    """
    hop = max(1, int(sample_rate * FRAME_MS / 2000))
    frame, reach = 2 * hop, int(sample_rate * SEARCH_MS / 1000)
    wanted = max(1, round(len(samples) / tempo))
    count = -(-wanted // hop) + 1
    # Pad with silence, so that every piece and every search stays inside.
    ahead = int(count * hop * tempo) + 2 * frame + 2 * reach
    source = np.pad(samples, (reach + hop, max(0, ahead - len(samples)) + reach + frame))
    window = np.hanning(frame + 1)[:-1].astype(np.float32)
    made = np.zeros(count * hop + frame, np.float32)
    position = reach
    for i in range(count):
        made[i * hop : i * hop + frame] += window * source[position : position + frame]
        following = source[position + hop : position + hop + frame]
        nominal = reach + round((i + 1) * hop * tempo)
        region = source[nominal - reach : nominal + reach + frame]
        position = nominal - reach + _best_offset(region, following)
    return made[hop : hop + wanted]


def _best_offset(region: FloatArray, following: FloatArray) -> int:
    """Find the offset at which a region best matches `following`; the middle if all are equal."""
    candidates = np.lib.stride_tricks.sliding_window_view(region, len(following))
    likeness = candidates @ following
    energy = np.sqrt(np.einsum("ij,ij->i", candidates, candidates)) + 1e-6
    middle = len(candidates) // 2
    likeness = likeness / energy
    best = int(np.argmax(likeness))
    return best if likeness[best] > likeness[middle] else middle
