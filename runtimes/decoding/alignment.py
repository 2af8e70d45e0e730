"""Alignment of texts with frames: Viterbi over the labels, with blanks between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.alphabet import BLANK
from ds2deploy.runtimes.features import FloatArray

Spans = list[tuple[int, int, int]]
"""(label, first frame, last frame) of each label."""


def align(log_probs: FloatArray, labels: Sequence[int], first_frame: int = 0) -> Spans:
    """Find when each label of a text was spoken; see `align_batch`.

    Args:
        log_probs: (time, labels) float32.
        labels: labels without blanks; with one blank between equal labels, at most `time`.
        first_frame: number of the first frame.
    """
    return align_batch([log_probs], [labels], [first_frame])[0]


def align_batch(
    log_probs: Sequence[FloatArray], texts: Sequence[Sequence[int]], first_frames: Sequence[int]
) -> list[Spans]:
    """Find when each label of some texts was spoken.

    The path is the best of all that collapse to the labels (Graves et al., 2006, without the sum).
    If the labels are those of greedy decoding, so are the times. The result of an utterance does
    not depend on the others of the batch.

    Args:
        log_probs: (time, labels) float32 for each text.
        texts: labels without blanks; with one blank between equal labels, at most `time`.
        first_frames: number of the first frame of each text.
    """
    longest = max(map(len, log_probs), default=0)
    width = 2 * max(map(len, texts), default=0) + 1
    if not longest or width == 1:
        return [[] for _ in texts]
    emitted = np.zeros((longest, len(texts), width))
    penalty = np.full((len(texts), width), -np.inf)
    for i, (rows, labels) in enumerate(zip(log_probs, texts, strict=True)):
        states = np.full(width, BLANK)
        states[1 : 2 * len(labels) : 2] = labels
        penalty[i, 3::2][states[3::2] != states[1:-2:2]] = 0.0
        emitted[: len(rows), i] = rows[:, states]
    # Two columns of padding: the scores of the states one and two before are views.
    best = np.full((longest, len(texts), width + 2), -np.inf)
    best[0, :, 2:4] = emitted[0, :, :2]
    for before, after, row in zip(best[:-1], best[1:], emitted[1:], strict=True):
        following = after[:, 2:]
        np.add(before[:, :-2], penalty, out=following)
        np.maximum(following, before[:, 1:-1], out=following)
        np.maximum(following, before[:, 2:], out=following)
        following += row
    stay, step, skip = best[:-1, :, 2:], best[:-1, :, 1:-1], best[:-1, :, :-2] + penalty
    moves = np.zeros(emitted.shape, np.int8)
    moves[1:] = np.where(skip > np.maximum(stay, step), 2, step > stay)
    found = []
    for i, (rows, labels, first) in enumerate(zip(log_probs, texts, first_frames, strict=True)):
        end = 2 * len(labels) + 2
        last = best[len(rows) - 1, i, end - 1 : end + 1]
        at = end - (2 if last[1] >= last[0] else 3)
        found.append(_spans(moves[: len(rows), i], at, labels, first))
    return found


def _spans(moves: npt.NDArray[np.int8], at: int, labels: Sequence[int], first: int) -> Spans:
    """Follow the moves back from a state; (frames, states)."""
    spans = [[0, -1] for _ in labels]
    for frame, move in zip(range(len(moves) - 1, -1, -1), moves[::-1], strict=True):
        if at % 2:
            span = spans[at // 2]
            span[0] = frame
            span[1] = max(span[1], frame)
        at -= int(move[at])
    return [
        (int(label), start + first, end + first)
        for label, (start, end) in zip(labels, spans, strict=True)
    ]
