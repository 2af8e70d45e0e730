"""Prefix tree of words in one dense table; each step is one look-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.errors import ConfigError

OUTSIDE, ROOT = 0, 1
"""Nodes of every trie: outside all words, and the beginning of a word."""

LARGEST_BYTES = 512 * 2**20


class Trie(NamedTuple):
    """Prefix tree of label sequences.

    Attributes:
        child: (nodes, labels) int32, next node; OUTSIDE if no sequence continues so.
        entry: (nodes,) int32, index of the sequence that ends in a node; -1 if none does.
        depth: (nodes,) int32, number of labels from the root.
        parent: (nodes,) int32, previous node.
    """

    child: npt.NDArray[np.int32]
    entry: npt.NDArray[np.int32]
    depth: npt.NDArray[np.int32]
    parent: npt.NDArray[np.int32]


def build_trie(entries: Sequence[Sequence[int]], labels: int) -> Trie:
    """Build a trie; nodes are numbered by depth, so that a parent comes before its children.

    Args:
        entries: label sequences, none empty; for equal ones, `entry` is the index of the last.
        labels: size of the alphabet.

    Raises:
        ConfigError: the table would be larger than 512 MiB.
    """
    lengths = np.array([len(entry) for entry in entries], np.int64)
    rows = np.zeros((len(entries), int(lengths.max(initial=0))), np.int16)
    inside = np.arange(rows.shape[1]) < lengths[:, None]
    rows[inside] = np.fromiter((label for entry in entries for label in entry), np.int16)
    order = np.lexsort(rows.T[::-1]) if rows.size else np.arange(len(entries))
    rows, inside = rows[order], inside[order]
    new = inside.copy()
    new[1:] &= np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    nodes = 2 + int(new.sum())
    if nodes * labels * 4 > LARGEST_BYTES:
        raise ConfigError(
            f"a lexicon of {len(entries)} words needs a table of {nodes * labels * 4 / 2**20:.0f} "
            f"MiB, above the limit of {LARGEST_BYTES >> 20} MiB; use fewer words"
        )
    trie = Trie(
        np.zeros((nodes, labels), np.int32),
        np.full(nodes, -1, np.int32),
        np.zeros(nodes, np.int32),
        np.zeros(nodes, np.int32),
    )
    at, count = np.full(len(rows), ROOT, np.int64), 2
    for depth in range(rows.shape[1]):
        first = np.flatnonzero(new[:, depth])
        made = np.arange(count, count + len(first))
        trie.child[at[first], rows[first, depth]] = made
        trie.parent[made], trie.depth[made] = at[first], depth + 1
        at = np.where(inside[:, depth], trie.child[at, rows[:, depth]], at)
        count += len(first)
    trie.entry[at] = order
    return trie
