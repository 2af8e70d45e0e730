"""Confidence of words in a beam search: the share of the hypotheses that have them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TOLERANCE = 5
"""Maximum distance (frames) of a word in two hypotheses."""

Path = Sequence[tuple[int, int]]
"""(label, frame of its emission)"""


def posteriors(scores: Floats, scale: float) -> Floats:
    """Turn scores of hypotheses into probabilities that add up to 1.

    Args:
        scores: (n,) finite natural logarithms.
        scale: factor of the scores; below 1 the probabilities are more even.
    """
    shares = np.exp(scale * (scores - scores.max()))
    total: float = shares.sum()
    return np.asarray(shares / total)


def label_confidence(paths: Sequence[Path], shares: Floats, space: int) -> list[float]:
    """Compute the confidence of each label of the best hypothesis: that of its word.

    Args:
        paths: hypotheses, the best first.
        shares: (n,) probability of each hypothesis.
        space: label between words; -1 if there is none.

    Returns:
        The share of the hypotheses that have the label's word at this place; 1 for a space.
    """
    others = [_words(path, space) for path in paths]
    found = [1.0] * len(paths[0])
    for labels, first, last, start in others[0]:
        share = sum(
            float(part)
            for part, words in zip(shares, others, strict=True)
            if any(
                word == labels and begin <= last + TOLERANCE and end >= first - TOLERANCE
                for word, begin, end, _ in words
            )
        )
        found[start : start + len(labels)] = [min(share, 1.0)] * len(labels)
    return found


def _words(path: Path, space: int) -> list[tuple[tuple[int, ...], int, int, int]]:
    """(labels, first frame, last frame, index of the first label) of every word."""
    words = []
    start = 0
    for i in range(len(path) + 1):
        if i == len(path) or path[i][0] == space:
            if i > start:
                labels = tuple(label for label, _ in path[start:i])
                words.append((labels, path[start][1], path[i - 1][1], start))
            start = i + 1
    return words
