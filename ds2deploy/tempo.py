"""Speech that is spoken faster or slower at the same pitch.

No library with wheels, a permissive licence and few dependencies does it: lhotse's goes through
torchaudio's sox, which torchaudio has dropped.
"""

from __future__ import annotations

import numpy as np

from ds2deploy.runtimes.features import FloatArray

FRAME_MS = 30.0
"""Of a piece of speech that is moved: two or three periods of a voice."""

SEARCH_MS = 8.0
"""How far to either side a piece may be moved to fit the one before: a period of a low voice."""


def change_tempo(samples: FloatArray, sample_rate: int, tempo: float) -> FloatArray:
    """Overlap pieces of a recording anew, each where its waveform continues the last (WSOLA,
    Verhelst and Roelands, 1993).

    Args:
        samples: (samples,) float32.
        sample_rate: in Hz.
        tempo: how many times as fast, above 0.

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
        place = source[nominal - reach : nominal + reach + frame]
        position = nominal - reach + _best_place(place, following)
    return made[hop : hop + wanted]


def _best_place(place: FloatArray, following: FloatArray) -> int:
    """Where a stretch of sound looks most like what would follow; the middle, if all is alike."""
    candidates = np.lib.stride_tricks.sliding_window_view(place, len(following))
    likeness = candidates @ following
    energy = np.sqrt(np.einsum("ij,ij->i", candidates, candidates)) + 1e-6
    middle = len(candidates) // 2
    likeness = likeness / energy
    best = int(np.argmax(likeness))
    return best if likeness[best] > likeness[middle] else middle
