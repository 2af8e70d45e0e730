"""N-grams of a language model in memory, between a source (text, ARPA) and a `.lm` file."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.floating[Any]]


class Order(NamedTuple):
    """All n-grams of one order, sorted by prefix, then by word.

    Attributes:
        prefix: (n-grams,) index of all words but the last among the n-grams of the order below;
            0 for unigrams.
        word: (n-grams,) id of the last word.
        score: (n-grams,) log10 of the probability of the last word, given the others.
        backoff: (n-grams,) log10 of the back-off weight; zeros for the highest order.
    """

    prefix: Ids
    word: Ids
    score: Floats
    backoff: Floats


class NGrams(NamedTuple):
    """N-grams of all orders.

    Attributes:
        words: vocabulary in the order of its UTF-8 bytes; ids are indices into it.
        orders: n-grams of each order, unigrams first; there is one unigram for each word.
    """

    words: list[str]
    orders: list[Order]
