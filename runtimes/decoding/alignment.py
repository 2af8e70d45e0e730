"""The most likely frames of a text: Viterbi over its labels with blanks between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ds2deploy.runtimes.alphabet import BLANK
from ds2deploy.runtimes.features import FloatArray


def align(
    log_probs: FloatArray, labels: Sequence[int], first_frame: int = 0
) -> list[tuple[int, int, int]]:
    """Find when each label of a text was spoken.

    The path is the best of all that collapse to the labels (Graves et al., 2006, without the sum).
    Where the labels are those of greedy decoding, the times are greedy's.

    Args:
        log_probs: (time, labels) float32.
        labels: without blanks; at most as many, with a blank between equal ones, as frames.
        first_frame: number of the first frame.

    Returns:
        (label, first frame, last frame) of each.
    """
    if not labels:
        return []
    states = np.full(2 * len(labels) + 1, BLANK)
    states[1::2] = labels
    skips = np.zeros(len(states), bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    penalty = np.where(skips, 0.0, -np.inf)
    emitted = log_probs[:, states].astype(np.float64)
    moves = np.zeros(emitted.shape, np.int8)
    # Two columns of padding: the scores of the states one and two before are views.
    padded = np.full(len(states) + 2, -np.inf)
    best, one, two = padded[2:], padded[1:-1], padded[:-2]
    best[:2] = emitted[0, :2]
    for frame in range(1, len(emitted)):
        skipped = two + penalty
        stepped = one > best
        following = np.where(stepped, one, best)
        jumped = skipped > following
        moves[frame] = np.where(jumped, 2, stepped)
        best[:] = np.where(jumped, skipped, following) + emitted[frame]
    at = len(states) - (1 if best[-1] >= best[-2] else 2)
    spans: list[list[int]] = [[0, -1] for _ in labels]
    for frame in range(len(emitted) - 1, -1, -1):
        if at % 2:
            span = spans[at // 2]
            span[0] = frame
            span[1] = max(span[1], frame)
        at -= int(moves[frame, at])
    return [
        (int(label), first + first_frame, last + first_frame)
        for label, (first, last) in zip(labels, spans, strict=True)
    ]
