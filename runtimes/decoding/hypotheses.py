"""Hypotheses of a beam search: their scores and states, and their texts as a tree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.alphabet import BLANK

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass
class Beam:
    """Hypotheses as arrays (n,).

    Attributes:
        hash: hash of the text, uint64.
        last: last label; the blank for the empty text.
        blank: log-probability of the paths that end with the blank.
        label: log-probability of the paths that end with the last label.
        bonus: sum of the gains of all scorers.
        states: (columns, n) states of the scorers, one below the other.
        node: node in the history.
    """

    hash: npt.NDArray[np.uint64]
    last: Ints
    blank: Floats
    label: Floats
    bonus: Floats
    states: Ints
    node: Ints

    def __len__(self) -> int:
        return len(self.hash)

    @property
    def score(self) -> Floats:
        """Sum of log-probability and bonus."""
        return np.logaddexp(self.blank, self.label) + self.bonus

    def with_paths(self, blank: Floats, label: Floats) -> Beam:
        """Return the same texts with other probabilities."""
        return Beam(self.hash, self.last, blank, label, self.bonus, self.states, self.node)

    def take(self, index: npt.NDArray[Any] | slice) -> Beam:
        """Select hypotheses by index, in this order."""
        return Beam(*(getattr(self, field.name)[..., index] for field in fields(self)))


def join(beams: Sequence[Beam]) -> Beam:
    """Concatenate beams."""
    if len(beams) == 1:
        return replace(beams[0])
    return Beam(
        *(
            np.concatenate([getattr(beam, field.name) for beam in beams], axis=-1)
            for field in fields(Beam)
        )
    )


class History:
    """Labels of all hypotheses as a tree; hypotheses that begin alike share nodes.

    Attributes:
        parent: (size,) previous node; -1 for a root.
        label: (size,) label of the node.
        frame: (size,) frame in which the label was added.
        size: number of nodes.
    """

    def __init__(self, parent: Ints, label: Ints, frame: Ints) -> None:
        self.parent, self.label, self.frame = parent, label, frame
        self.size = len(parent)

    @classmethod
    def root(cls) -> History:
        """Make a tree of one node without text."""
        return cls(np.array([-1]), np.array([BLANK]), np.array([-1]))

    @classmethod
    def joined(cls, trees: Sequence[History]) -> tuple[History, Ints]:
        """Join trees; returns the joined tree and the first node of each."""
        offsets = np.cumsum([0, *(tree.size for tree in trees)])
        parents = [
            np.where(tree.parent[: tree.size] < 0, -1, tree.parent[: tree.size] + offset)
            for tree, offset in zip(trees, offsets[:-1], strict=True)
        ]
        labels = [tree.label[: tree.size] for tree in trees]
        frames = [tree.frame[: tree.size] for tree in trees]
        whole = cls(np.concatenate(parents), np.concatenate(labels), np.concatenate(frames))
        return whole, offsets[:-1]

    def add(self, parent: Ints, label: Ints, frame: Ints) -> Ints:
        """Add nodes, and return their numbers."""
        first, self.size = self.size, self.size + len(parent)
        if self.size > len(self.parent):
            room = max(2 * len(self.parent), self.size, 256)
            for name in ("parent", "label", "frame"):
                grown = np.empty(room, np.int64)
                grown[:first] = getattr(self, name)[:first]
                setattr(self, name, grown)
        self.parent[first : self.size] = parent
        self.label[first : self.size] = label
        self.frame[first : self.size] = frame
        return np.arange(first, self.size)

    def path(self, node: int, root: int = 0) -> list[tuple[int, int]]:
        """Return (label, frame) for each label of a hypothesis, from the root on."""
        found: list[tuple[int, int]] = []
        while node != root:
            found.append((int(self.label[node]), int(self.frame[node])))
            node = int(self.parent[node])
        return found[::-1]

    def ancestors(self, nodes: Ints, frames: Ints) -> Ints:
        """Find the last ancestor of each node up to a frame, or the root."""
        nodes = nodes.copy()
        late = np.flatnonzero(self.frame[nodes] > frames)
        while len(late):
            nodes[late] = self.parent[nodes[late]]
            late = late[self.frame[nodes[late]] > frames[late]]
        return nodes

    def split(self, nodes: Ints, owners: Ints, roots: Ints) -> tuple[list[History], Ints]:
        """Split the tree into one for each utterance, with the nodes that are still needed.

        Args:
            nodes: nodes of all hypotheses.
            owners: index of each hypothesis' utterance.
            roots: new root of each utterance; all nodes of the utterance are after it.

        Returns:
            The trees, and the numbers of the nodes in them.
        """
        owner = np.full(self.size, -1)
        owner[roots] = np.arange(len(roots))
        front = np.flatnonzero(owner[nodes] < 0)
        front, of = nodes[front], owners[front]
        while len(front):
            owner[front] = of
            front = self.parent[front]
            new = owner[front] < 0
            front, of = front[new], of[new]
        kept = np.flatnonzero(owner >= 0)
        kept = kept[np.argsort(owner[kept], kind="stable")]
        starts = np.searchsorted(owner[kept], np.arange(len(roots) + 1))
        number = np.empty(self.size, np.int64)
        number[kept] = np.arange(len(kept)) - starts[owner[kept]]
        trees = []
        for first, last in itertools.pairwise(starts.tolist()):
            own = kept[first:last]
            parent = number[self.parent[own]]
            parent[0] = -1
            trees.append(History(parent, self.label[own], self.frame[own]))
        return trees, number[nodes]
