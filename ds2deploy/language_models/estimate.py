"""Interpolated modified Kneser-Ney estimation with pruning, in numpy.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1998), section
3; Heafield et al., "Scalable modified Kneser-Ney language model estimation" (2013), sections 3.1 to
3.3. The results equal those of KenLM's `lmplz`. Counts of lower orders are numbers of distinct
words to the left, except after `<s>`. The lowest order is interpolated with the uniform
distribution. N-grams are pruned by their number of occurrences, and their probability mass goes to
the order below. There is one difference, which only matters for a text of a few lines: to estimate
discounts, lmplz uses the number of occurrences for n-grams that end in the last word of its
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ds2deploy.language_models.ngrams import Ids, NGrams, Order
from ds2deploy.runtimes.decoding.language_model_file import START, UNKNOWN

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts for counts of 1, 2 and more if a text is too small to estimate them; they equal lmplz's
`--discount_fallback`."""

Floats = npt.NDArray[np.float64]


class Counts(NamedTuple):
    """Counted n-grams of one order, sorted by prefix, then by word.

    Attributes:
        times: (n-grams,) number of occurrences.
        prefix: (n-grams,) index of all words but the last among the n-grams of the order below.
        suffix: (n-grams,) index of all words but the first among the n-grams of the order below.
        word: (n-grams,) id of the last word.
        begins: (n-grams,) True if the first word is `<s>`.
    """

    times: Ids
    prefix: Ids
    suffix: Ids
    word: Ids
    begins: npt.NDArray[np.bool_]


class Estimate(NamedTuple):
    """Estimated model.

    Attributes:
        ngrams: n-grams that were not pruned.
        fallback: orders that use the discounts of `FALLBACK`.
    """

    ngrams: NGrams
    fallback: list[int]


def estimate(ids: Ids, words: list[str], order: int, prune: Sequence[int] = ()) -> Estimate:
    """Estimate a model.

    Args:
        ids: (words of the text,) ids in `words`, with `<s>` and `</s>` around each sentence.
        words: vocabulary in the order of its UTF-8 bytes, with `<unk>`, `<s>` and `</s>`.
        order: length of the longest n-gram.
        prune: for each order, the number of occurrences up to which an n-gram is dropped; the last
            number also applies to higher orders. The numbers start with 0 and do not decrease.
    """
    special = [words.index(UNKNOWN), words.index(START)]
    counts = count_ngrams(ids, len(words), special[1], order)
    fallback = []
    orders: list[Order] = []
    lower = np.zeros(1)
    kept = np.ones(1, bool)
    for n, counted in enumerate(counts, 1):
        adjusted = counted.times.copy()
        if n < order:
            left = np.bincount(counts[n].suffix, minlength=len(adjusted))
            adjusted = np.where(counted.begins, adjusted, left)
        if n == 1:
            adjusted[special] = 0
        discounts = find_discounts(adjusted)
        if discounts is None:
            fallback.append(n)
            discounts = np.array([0.0, *FALLBACK])
        threshold = prune[min(n, len(prune)) - 1] if prune else 0
        keep = (counted.times > threshold) | (n == 1)
        share, gamma = _discount(adjusted, keep, counted.prefix, len(lower), discounts)
        if n == 1:
            lower = share + gamma[0] / (len(words) - 1)
            lower[special[1]] = 1.0
        else:
            orders[-1].backoff[:] = np.log10(gamma[kept])
            lower = share + gamma[counted.prefix] * lower[counted.suffix]
        number = np.cumsum(kept, dtype=np.int32) - np.int32(1)
        score = np.log10(lower[keep])
        prefix = number[counted.prefix[keep]]
        orders.append(Order(prefix, counted.word[keep], score, np.zeros(len(score))))
        kept = keep
    return Estimate(NGrams(words, orders), fallback)


def count_ngrams(ids: Ids, size: int, start: int, order: int) -> list[Counts]:
    """Count the n-grams of each order; none extends over the end of a sentence.

    Args:
        ids: (words of the text,) with `<s>` and `</s>` around each sentence.
        size: number of words in the vocabulary.
        start: id of `<s>`.
        order: length of the longest n-gram.
    """
    vocabulary = np.arange(size, dtype=np.int32)
    none = np.zeros(size, np.int32)
    times = np.bincount(ids, minlength=size).astype(np.int32)
    counts = [Counts(times, none, none, vocabulary, vocabulary == start)]
    inside = ids[1:] != start
    ending = ids  # the n-gram of the order below that ends at each word of the text; -1: none
    for _ in range(1, order):
        positions = np.flatnonzero((ending[:-1] >= 0) & inside) + 1
        keys = ending[positions - 1].astype(np.int64) * size + ids[positions]
        by_key = np.argsort(keys, kind="stable")
        keys = keys[by_key]
        is_new = np.ones(len(keys), bool)
        is_new[1:] = keys[1:] != keys[:-1]
        firsts = np.flatnonzero(is_new)
        prefix, word = np.divmod(keys[firsts], size)
        suffix = ending[positions[by_key[firsts]]]
        longer = np.full(len(ids), -1, np.int32)
        longer[positions[by_key]] = np.cumsum(is_new, dtype=np.int32) - np.int32(1)
        times = np.diff(firsts, append=len(keys)).astype(np.int32)
        counts.append(
            Counts(
                times,
                prefix.astype(np.int32),
                suffix,
                word.astype(np.int32),
                counts[-1].begins[prefix],
            )
        )
        ending = longer
    return counts


def find_discounts(adjusted: npt.NDArray[np.integer]) -> Floats | None:
    """Estimate the discounts of counts of 0, 1, 2 and more; None if the text is too small.

    They follow from the numbers of n-grams with counts of 1 to 4 (Chen and Goodman, equation 26).
    """
    n = np.bincount(np.minimum(adjusted, 5), minlength=6).astype(float)
    if not n[1:4].all():
        return None
    y = n[1] / (n[1] + 2 * n[2])
    found = np.array([0.0, *(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))])
    # A discount of 0, which lmplz takes, leaves no probability to lower orders.
    return found if (found[1:] > 1e-9).all() and (found <= np.arange(4)).all() else None


def _discount(
    adjusted: npt.NDArray[np.integer],
    keep: npt.NDArray[np.bool_],
    prefix: Ids,
    contexts: int,
    discounts: Floats,
) -> tuple[Floats, Floats]:
    """Compute each n-gram's share of its context, and each context's share for lower orders."""
    cut = discounts[np.minimum(adjusted, 3)]
    total = np.bincount(prefix, adjusted, contexts)
    taken = np.bincount(prefix, np.where(keep, cut, adjusted), contexts)
    gamma = np.where(total > 0, taken / np.maximum(total, 1), 1.0)
    share = np.where(keep, adjusted - cut, 0) / np.maximum(total[prefix], 1)
    return share, gamma
