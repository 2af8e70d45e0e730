"""Checks of audio from outside: type and shape, sample rate, duration."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.errors import AudioError, TooLongError
from ds2deploy.runtimes.features import HIGHEST_RATE

SHORTEST_MS = 10.0
"""Less than one stride of audio holds no speech."""

MOST_CHANNELS = 32
"""A short block may have fewer samples than channels; more of them are samples, transposed."""

LOWEST_RATE = 1_000
"""Lowest sample rate of a recorder, in Hz."""


def check_duration(samples: int, sample_rate: float, source: str) -> None:
    """Refuse what is too short to be an utterance.

    Raises:
        AudioError: shorter than 10 ms.
    """
    if samples == 0:
        raise AudioError(f"{source}: 0 samples; expected speech: record or copy it again")
    duration_ms = 1000 * samples / sample_rate
    if duration_ms < SHORTEST_MS:
        count = f"{samples} sample{'s' if samples > 1 else ''}"
        raise AudioError(
            f"{source}: {count} ({duration_ms:.2g} ms); expected at least {SHORTEST_MS:g} ms: "
            "record or copy it again"
        )


def check_longest(duration_s: float, most_s: float, source: str) -> None:
    """Refuse what is longer than a caller allows.

    Raises:
        TooLongError: longer than `most_s` seconds.
    """
    if duration_s > most_s:
        raise TooLongError(
            f"{source}: longer than the limit of {most_s:g} s; split it into shorter recordings"
        )


def check_rate(sample_rate: float, source: str = "audio") -> None:
    """Refuse what is no sample rate.

    Raises:
        AudioError: not a number above 0.
    """
    # Not `<= 0`, so that NaN is refused as well.
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, float, np.number)):
        raise AudioError(f"{source}: a sample rate of {sample_rate!r}; expected a number, in Hz")
    if not sample_rate > 0:
        raise AudioError(f"{source}: a sample rate of {sample_rate} Hz; expected a positive number")


def check_stream_rate(sample_rate: float, source: str = "audio") -> None:
    """Refuse a rate that no recorder has: a slip of the hand, or a damaged header.

    Raises:
        AudioError: not a number from 1,000 to 768,000.
    """
    check_rate(sample_rate, source)
    if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        raise AudioError(
            f"{source}: a sample rate of {sample_rate:g} Hz; expected {LOWEST_RATE} to "
            f"{HIGHEST_RATE} Hz"
        )


def as_samples(samples: npt.ArrayLike, source: str = "audio") -> npt.NDArray[Any]:
    """Check the type and the shape of audio from outside.

    Args:
        samples: (samples,) or (samples, channels) float32 in [-1, 1]; there may be none.
        source: name of the audio, for errors.

    Returns:
        The same as an array.

    Raises:
        AudioError: not such an array.
    """
    try:
        array = np.asarray(samples)
    except ValueError:  # rows of different lengths
        raise AudioError(
            f"{source}: not an array, or its rows have different lengths; expected float32 of "
            "shape (samples, channels)"
        ) from None
    if array.size == 0:
        return np.zeros(0, np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(
            f"{source}: samples of type {array.dtype}; expected float32 in [-1, 1] "
            "(divide 16-bit integers by 32768)"
        )
    if array.ndim not in (1, 2):
        raise AudioError(
            f"{source}: an array with {array.ndim} dimensions; expected (samples, channels)"
        )
    if array.ndim == 2 and array.shape[1] > max(array.shape[0], MOST_CHANNELS):
        raise AudioError(
            f"{source}: shape {array.shape}; expected (samples, channels): transpose it"
        )
    return array
