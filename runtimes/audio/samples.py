"""Conversion of audio in memory to mono float32 at the model's rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.audio.checks import as_samples, check_duration, check_rate
from ds2deploy.runtimes.audio.levels import Levels
from ds2deploy.runtimes.features import FloatArray


def resample_pieces(
    pieces: Iterable[FloatArray], sample_rate: float, to_rate: int
) -> Iterator[FloatArray]:
    """Resample audio in pieces; joined, they equal the resampled whole.

    Args:
        pieces: arrays (samples,) float32.
        sample_rate: sample rate of the pieces, in Hz.
        to_rate: sample rate of the result, in Hz.
    """
    if sample_rate == to_rate:
        yield from pieces
        return
    import soxr  # not at the top: audio of the model's rate has no need of it

    resampler = soxr.ResampleStream(sample_rate, to_rate, 1, dtype="float32")
    for piece in pieces:
        yield resampler.resample_chunk(np.ascontiguousarray(piece))
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def convert_audio(
    samples: npt.ArrayLike, sample_rate: float, to_rate: int, source: str = "audio"
) -> FloatArray:
    """Mix down, check and resample audio that is in memory.

    Args:
        samples: (samples,) or (samples, channels) float32 in [-1, 1].
        sample_rate: sample rate of `samples`, in Hz.
        to_rate: sample rate of the result, in Hz.
        source: name of the audio in errors.

    Returns:
        (samples,) float32.

    Raises:
        AudioError: not an array of finite float samples, or shorter than 10 ms.

    Warns:
        AudioWarning: digital silence, channels that cancel each other out, or a wrong scale.
    """
    check_rate(sample_rate, source)
    levels = Levels(source)
    mono = mix_down(samples, source, levels)
    check_duration(len(mono), sample_rate, source)
    levels.warn()
    if sample_rate != to_rate:
        import soxr

        mono = soxr.resample(mono, sample_rate, to_rate)
    return np.ascontiguousarray(mono, np.float32)


def mono_pieces(
    pieces: Iterable[npt.ArrayLike], sample_rate: float, source: str
) -> Iterator[FloatArray]:
    """Check and mix down a recording that comes in pieces, and its duration when it is over.

    The arguments and errors are those of `mix_down` and `check_duration`.

    Warns:
        AudioWarning: see `convert_audio`; when it is over.
    """
    count, levels = 0, Levels(source)
    for piece in pieces:
        mono = mix_down(piece, source, levels)
        count += len(mono)
        yield mono
    check_duration(count, sample_rate, source)
    levels.warn()


def mix_down(
    samples: npt.ArrayLike, source: str = "audio", levels: Levels | None = None
) -> FloatArray:
    """Check audio that is in memory, and take the mean of its channels.

    Args:
        samples: (samples,) or (samples, channels) float32 in [-1, 1]; there may be none.
        source: name of the audio in errors.
        levels: levels of the whole recording, which are updated.

    Returns:
        (samples,) float32, which may be the same array.

    Raises:
        AudioError: not an array of finite float samples.
    """
    samples = as_samples(samples, source)
    if samples.size == 0:
        return np.zeros(0, np.float32)
    return (levels or Levels(source)).mix_down(samples)
