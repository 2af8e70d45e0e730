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
    penalty = np.full(len(states), -np.inf)
    penalty[3::2][states[3::2] != states[1:-2:2]] = 0.0
    emitted = log_probs[:, states].astype(np.float64)
    # Two columns of padding: the scores of the states one and two before are views.
    best = np.full((len(emitted), len(states) + 2), -np.inf)
    best[0, 2:4] = emitted[0, :2]
    for before, after, row in zip(best[:-1], best[1:], emitted[1:], strict=True):
        following = after[2:]
        np.add(before[:-2], penalty, out=following)
        np.maximum(following, before[1:-1], out=following)
        np.maximum(following, before[2:], out=following)
        following += row
    stay, step, skip = best[:-1, 2:], best[:-1, 1:-1], best[:-1, :-2] + penalty
    moves = np.zeros(emitted.shape, np.int8)
    moves[1:] = np.where(skip > np.maximum(stay, step), 2, step > stay)
    at = len(states) - (1 if best[-1, -1] >= best[-1, -2] else 2)
    spans: list[list[int]] = [[0, -1] for _ in labels]
    for frame, move in zip(range(len(moves) - 1, -1, -1), moves[::-1], strict=True):
        if at % 2:
            span = spans[at // 2]
            span[0] = frame
            span[1] = max(span[1], frame)
        at -= int(move[at])
    return [
        (int(label), first + first_frame, last + first_frame)
        for label, (first, last) in zip(labels, spans, strict=True)
    ]
