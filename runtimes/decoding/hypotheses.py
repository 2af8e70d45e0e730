"""Hypotheses of a beam search: what is known of each, and their texts as a tree."""

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
    """Hypotheses, (n,) arrays but for the states.

    Attributes:
        hash: uint64 of the text.
        last: last label; the blank for the empty text.
        blank: log-probability of the paths that end with the blank.
        label: log-probability of those that end with the last label.
        bonus: what the scorers have added.
        states: (columns, n) states of the scorers, one below the other.
        node: place in the history.
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
        """Log-probability and bonus."""
        return np.logaddexp(self.blank, self.label) + self.bonus

    def with_paths(self, blank: Floats, label: Floats) -> Beam:
        """Return the same texts with other probabilities."""
        return Beam(self.hash, self.last, blank, label, self.bonus, self.states, self.node)

    def take(self, index: npt.NDArray[Any] | slice) -> Beam:
        """Give these hypotheses, in this order."""
        return Beam(*(getattr(self, field.name)[..., index] for field in fields(self)))


def join(beams: Sequence[Beam]) -> Beam:
    """Put beams one after the other."""
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
        parent: (size,) node before; -1 of a root.
        label: (size,)
        frame: (size,) in which the label was added.
        size: nodes.
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
        """Put trees side by side; also where each begins."""
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
        """Add nodes; gives their numbers."""
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
        """(label, frame) of the labels of a hypothesis, from a root on."""
        found: list[tuple[int, int]] = []
        while node != root:
            found.append((int(self.label[node]), int(self.frame[node])))
            node = int(self.parent[node])
        return found[::-1]

    def ancestors(self, nodes: Ints, frames: Ints) -> Ints:
        """Last node up to a frame on the way to each of these nodes, or a root."""
        nodes = nodes.copy()
        late = np.flatnonzero(self.frame[nodes] > frames)
        while len(late):
            nodes[late] = self.parent[nodes[late]]
            late = late[self.frame[nodes[late]] > frames[late]]
        return nodes

    def split(self, nodes: Ints, owners: Ints, roots: Ints) -> tuple[list[History], Ints]:
        """Give each utterance a tree of its own, of what its hypotheses still need.

        Args:
            nodes: nodes of all hypotheses.
            owners: index of each one's utterance.
            roots: node that becomes the root, for each utterance; all of its nodes are after it.

        Returns:
            The trees, and the nodes' numbers in them.
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
