"""Writer of `.lm` files; `runtimes/decoding/language_model_file.py` describes the format."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from ds2deploy.language_models.ngrams import Ids, NGrams
from ds2deploy.runtimes.decoding.language_model_file import (
    MAGIC,
    PREAMBLE,
    Arrays,
    LanguageModelHeader,
    layout,
)
from ds2deploy.runtimes.files import whole_file

LN10 = float(np.log(10.0))


def write_language_model(path: Path, ngrams: NGrams, header: LanguageModelHeader) -> None:
    """Write a `.lm` file atomically.

    Args:
        path: file to write.
        ngrams: n-grams of the model.
        header: header of the file; its counts are those of `ngrams`.
    """
    arrays = make_arrays(ngrams)
    document = msgspec.json.encode(header)
    document += b" " * (-(PREAMBLE + len(document)) % 8)
    checksum = zlib.crc32(document)
    for array in arrays:
        checksum = zlib.crc32(array.data.cast("B"), checksum)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + np.array([len(document), checksum], "<u4").tobytes() + document)
        for array in arrays:
            file.write(array.data)


def make_arrays(ngrams: NGrams) -> Arrays:
    """Make the arrays of the file: entries, and a link from each entry to a shorter one."""
    size = len(ngrams.words)
    kinds = layout(tuple(len(order.word) for order in ngrams.orders))
    keys, scores, links, backoffs, offsets = (np.zeros(length, kind) for kind, length in kinds)
    suffixes = np.zeros_like(links)
    keys[0], lower, first = -1, 0, 1
    for n, order in enumerate(ngrams.orders, 1):
        block = slice(first, first + len(order.word))
        parents = order.prefix.astype(np.int64) + lower
        keys[block] = parents * size + order.word
        scores[block] = np.minimum(order.score * LN10, 0)
        if n < len(ngrams.orders):
            backoffs[block] = order.backoff * LN10
        if n > 1:
            suffixes[block] = _longest_suffixes(keys[:first], suffixes, parents, order.word, size)
        lower, first = first, block.stop
    is_state = np.zeros(len(keys), bool)
    is_state[: len(backoffs)] = backoffs != 0
    is_state[keys[1:] // size] = True
    first = 1
    for order in ngrams.orders:  # from the lowest order, whose links the next orders use
        block = slice(first, first + len(order.word))
        to = suffixes[block]
        links[block] = np.where(is_state[to], to, links[to])
        first = block.stop
    links[1:] = np.where(is_state[1:], links[1:], ~links[1:])
    encoded = [word.encode() for word in ngrams.words]
    offsets[1:] = np.cumsum([len(word) for word in encoded])
    text = np.frombuffer(b"".join(encoded), np.uint8)
    return Arrays(keys, scores, links, backoffs, offsets, text)


def _longest_suffixes(
    keys: npt.NDArray[np.int64],
    suffixes: Ids,
    parents: npt.NDArray[np.int64],
    words: Ids,
    size: int,
) -> Ids:
    """Find the entries of the longest proper suffixes of n-grams; a model may lack some."""
    found = np.zeros(len(words), np.int32)
    at = suffixes[parents]
    left = np.arange(len(words))
    while len(left):
        wanted = at[left].astype(np.int64) * size + words[left]
        entries = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        hit = keys[entries] == wanted
        found[left[hit]] = entries[hit]
        left = left[~hit]
        at[left] = suffixes[at[left]]
    return found
