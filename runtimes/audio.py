"""Recordings of any format, rate and channel count to mono float32 at the model's rate."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ds2deploy.runtimes.errors import AudioError, MissingFileError
from ds2deploy.runtimes.features import FloatArray

SHORTEST_MS = 10.0
"""Less than one stride of audio holds no speech."""

UNKNOWN_SIZE = 0x7FFF_0000
"""A header that declares this much or more was written by a stream that did not know its end."""


def load_audio(path: str | Path, sample_rate: int) -> FloatArray:
    """Read a recording.

    Args:
        path: any format that libsndfile reads (WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, ...).
        sample_rate: in Hz, what to convert to.

    Returns:
        (samples,) float32 in [-1, 1], the mean of all channels.

    Raises:
        MissingFileError: no such file, or not a file.
        AudioError: not audio, damaged, truncated, empty, not finite, or too short.
    """
    path = Path(path)
    if path.is_dir():
        raise MissingFileError(f"{path}: is a directory; expected an audio file")
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; expected an audio file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes); expected audio, record or copy it again")
    samples, rate = _read(path)
    return convert_audio(samples, rate, sample_rate, source=str(path))


def convert_audio(
    samples: FloatArray, sample_rate: int, to_rate: int, source: str = "audio"
) -> FloatArray:
    """Mix down, check and resample audio that is in memory.

    Args:
        samples: (samples,) or (samples, channels) float32 in [-1, 1].
        sample_rate: of `samples`, in Hz.
        to_rate: wanted rate, in Hz.
        source: what to name in an error.

    Returns:
        (samples,) float32.

    Raises:
        AudioError: not an array of finite float samples, or shorter than 10 ms.
    """
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(
            f"{source}: samples of type {samples.dtype}; expected float32 in [-1, 1] "
            "(divide 16-bit integers by 32768)"
        )
    if samples.ndim not in (1, 2):
        raise AudioError(f"{source}: {samples.ndim} dimensions; expected (samples, channels)")
    if sample_rate <= 0:
        raise AudioError(f"{source}: a sample rate of {sample_rate} Hz; expected a positive number")
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    if len(mono) == 0:
        raise AudioError(f"{source}: 0 samples; expected speech, record or copy it again")
    duration_ms = 1000 * len(mono) / sample_rate
    if duration_ms < SHORTEST_MS:
        count = f"{len(mono)} sample{'s' if len(mono) > 1 else ''}"
        raise AudioError(
            f"{source}: {count} ({duration_ms:.2g} ms); expected at least {SHORTEST_MS:g} ms"
        )
    if not np.isfinite(mono).all():
        raise AudioError(f"{source}: holds samples that are not finite (NaN or infinity); repair it")
    if sample_rate != to_rate:
        mono = soxr.resample(mono, sample_rate, to_rate)
    return np.ascontiguousarray(mono, np.float32)


def _read(path: Path) -> tuple[FloatArray, int]:
    try:
        with soundfile.SoundFile(path) as sound:
            declared, log = sound.frames, sound.extra_info
            samples = sound.read(dtype="float32", always_2d=True)
            rate = int(sound.samplerate)
    except soundfile.LibsndfileError as error:
        detail = str(error.error_string).strip().rstrip(".") or "cannot be decoded"
        raise AudioError(
            f"{path}: not audio that can be read, or damaged ({detail}); "
            "expected WAV, FLAC, Ogg or another format of libsndfile"
        ) from None
    if 0 < len(samples) < declared < UNKNOWN_SIZE or _cut_off(log):
        raise AudioError(f"{path}: truncated, its end is missing; copy or record it again")
    return samples, rate


def _cut_off(log: str) -> bool:
    """Whether libsndfile's account of the header names a chunk longer than what is there."""
    sizes = re.findall(r":\s*(\d+) \(should be (\d+)\)", log)
    return any(
        int(actual) + 1 < int(declared) < UNKNOWN_SIZE for declared, actual in sizes
    )
