"""Augmentation of training audio, so that a small corpus sounds like a larger one."""

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
"""Noise falls by so much per octave at most: from white to more than brown."""


def augment_audio(
    samples: FloatArray, sample_rate: int, config: AugmentConfig, random: np.random.Generator
) -> FloatArray:
    """Change speed, tempo and gain, add a room and noise, narrow the band, each drawn at random.

    Args:
        samples: (samples,) float32.
        sample_rate: sample rate, in Hz.
        config: ranges of the changes.
        random: generator that they are drawn from.

    Returns:
        (samples',) float32; the length follows speed and tempo.
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
        snr_db: ratio of the utterance's power to the noise's, in decibels.
    """
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    there = float(np.mean(np.square(noise, dtype=np.float64)))
    return samples + noise * np.float32(np.sqrt(power / max(there, 1e-20)) * 10 ** (-snr_db / 20))


def recorded_noise(
    folder: str, count: int, sample_rate: int, random: np.random.Generator
) -> FloatArray:
    """Draw a part of a recording of noise; a shorter recording is repeated.

    Args:
        folder: folder of recordings, at any depth.
        count: number of samples.
        sample_rate: sample rate of the result, in Hz.
        random: generator that the part is drawn from.

    Raises:
        ConfigError: no such folder, or no recordings in it.
        NoiseError: a recording that cannot be read.
    """
    paths = noise_files(folder)
    path = paths[int(random.integers(len(paths)))]
    try:
        samples, rate = _noise_size(path)
        wanted = int(count * rate / sample_rate) + 2
        start = int(random.integers(0, max(0, samples - wanted) + 1))
        read, _ = load_part(path, start / rate, wanted / rate)
    except FILE_ERRORS:
        raise NoiseError(f"{path}: not audio that can be read; take it out of {folder}") from None
    if not read.size:
        raise NoiseError(f"{path}: truncated, its end is missing; take it out of {folder}")
    return np.resize(convert_audio(read, rate, sample_rate, str(path)), count)


@lru_cache(maxsize=10_000)
def _noise_size(path: Path) -> tuple[int, int]:
    """Samples and sample rate (Hz) of a recording; one without a length in it is decoded once."""
    facts = measure_audio(path)
    return facts.samples, facts.sample_rate


@lru_cache(maxsize=4)
def noise_files(folder: str) -> tuple[Path, ...]:
    """List the recordings of a folder, in the same order every time.

    Raises:
        ConfigError: no such folder, or no recordings in it.
    """
    found = [p for p in list_files(Path(folder)).files if p.suffix.lower() in READ_SUFFIXES]
    if not found:
        what = "holds no audio" if Path(folder).is_dir() else "no such folder"
        raise ConfigError(f"augment.noise_folder = {folder}: {what}; expected recordings of noise")
    return tuple(found)


def check_noise(config: AugmentConfig) -> None:
    """Check all recordings of noise, before a training begins.

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
            raise AudioError(
                f"{path}: not audio that can be read; take it out of {config.noise_folder}"
            )


def made_noise(count: int, random: np.random.Generator) -> FloatArray:
    """Make stationary noise of random colour: (count,) float32.

    Args:
        count: number of samples.
        random: generator that the noise is drawn from.
    """
    spectrum = np.fft.rfft(random.standard_normal(count))
    tilt = random.uniform(*NOISE_TILTS_DB)
    octaves = np.log2(np.maximum(np.arange(len(spectrum)) / len(spectrum), 1e-3))
    noise = np.fft.irfft(spectrum * 10 ** (-tilt * octaves / 20), n=count)
    return noise.astype(np.float32)


def mask_features(
    features: FloatArray, config: AugmentConfig, random: np.random.Generator
) -> FloatArray:
    """Blank bands of bins and stretches of frames (SpecAugment, Park et al., 2019).

    Args:
        features: (bins, time) float32, normalised, so that zero is the mean; changed in place.
        config: number and width of the masks.
        random: generator that the masks are drawn from.
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
"""Length of a piece of speech that is moved: two or three periods of a voice."""

SEARCH_MS = 8.0
"""Reach to either side in which a piece may be moved to fit the one before: a period of a low
voice."""


def change_tempo(samples: FloatArray, sample_rate: int, tempo: float) -> FloatArray:
    """Overlap pieces of a recording anew, each where its waveform continues the last (WSOLA,
    Verhelst and Roelands, 1993).

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
    # Silence around, so that every piece and every search stays inside.
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
    """Find where a region is most like what would follow; the middle if all offsets are alike."""
    candidates = np.lib.stride_tricks.sliding_window_view(region, len(following))
    likeness = candidates @ following
    energy = np.sqrt(np.einsum("ij,ij->i", candidates, candidates)) + 1e-6
    middle = len(candidates) // 2
    likeness = likeness / energy
    best = int(np.argmax(likeness))
    return best if likeness[best] > likeness[middle] else middle
