"""Choose the sizes of a smaller network, from a share of energy or a budget of operations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from ds2deploy.compression.importance import Importance
from ds2deploy.model.operations import GATES, multiply_adds
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.geometry import conv_features

Method = Literal["units", "rank", "both"]

STEP, MAP_STEP = 8, 2
"""Units and ranks, and maps, that are removed at a time: matrix products like multiples of eight,
and what is smaller than two steps is removed one by one."""


class Sizes(NamedTuple):
    """Counts that a plan chooses: maps, units and ranks (0 for a whole input side)."""

    maps: tuple[int, ...]
    units: tuple[int, ...]
    ranks: tuple[int, ...]

    def shape(self, before: ModelShape) -> ModelShape:
        """Return the model's shape with these sizes."""
        first, second = self.maps
        return msgspec.structs.replace(
            before, maps=(first, second), hidden=self.units, ranks=self.ranks
        )


class Kept(NamedTuple):
    """Energy that is kept, by the number of the most important ones that stay: from 0 to all."""

    maps: tuple[Tensor, ...]
    units: tuple[Tensor, ...]
    ranks: tuple[Tensor, ...]


class Model(NamedTuple):
    """A network to be made smaller: its shape and sizes of input and output."""

    shape: ModelShape
    bins: int
    labels: int

    def operations(self, sizes: Sizes) -> int:
        """Multiply-adds of an output frame with other sizes."""
        return sum(multiply_adds(sizes.shape(self.shape), self.bins, self.labels).values())


def sizes_of(shape: ModelShape) -> Sizes:
    """Return the sizes of a model."""
    return Sizes(shape.maps, shape.units, shape.input_ranks)


def check_budget(energy: float | None, speed: float | None) -> None:
    """Check the budget of a compression before the importance of all parts is computed.

    Args:
        energy: share of every layer's energy to keep, above 0 and at most 1; or
        speed: multiply-adds before, divided by those after; above 1.

    Raises:
        ConfigError: both or neither are given, or one is out of its range.
    """
    if (energy is None) == (speed is None):
        raise ConfigError("--energy and --speed: give one of them, such as --speed 2")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError(f"--energy {energy:g}: expected above 0 and at most 1")
    if speed is not None and not 1 < speed < math.inf:
        raise ConfigError(f"--speed {speed:g}: expected above 1")


def plan_energy(model: Model, found: Importance, energy: float, method: Method) -> Sizes:
    """Keep a share of the energy of every layer.

    Args:
        model: network before.
        found: importance of its parts.
        energy: share to keep, above 0 and at most 1.
        method: kinds of parts that may be removed.
    """
    kept, sizes = _kept(found), sizes_of(model.shape)

    def enough(table: Tensor, whole: int, step: int) -> int:
        count = int((table < energy - 1e-12).sum())
        return max(1, min(whole, -(-count // step) * step if whole >= 2 * step else count))

    if method != "rank":
        maps = tuple(enough(t, n, MAP_STEP) for t, n in zip(kept.maps, sizes.maps, strict=True))
        units = tuple(enough(t, n, STEP) for t, n in zip(kept.units, sizes.units, strict=True))
        sizes = sizes._replace(maps=maps, units=units)
    if method == "units":
        return sizes
    ranks = []
    for index, table in enumerate(kept.ranks):
        rank = enough(table, len(table) - 1, STEP)
        ranks.append(rank if rank < _break_even(model, sizes, index) else sizes.ranks[index])
    return sizes._replace(ranks=tuple(ranks))


def plan_speed(model: Model, found: Importance, speed: float, method: Method) -> Sizes:
    """Remove what costs least energy for the operations that it saves, until there are few enough.

    The energy that stays is the product of the shares of all layers, so what a layer still has
    becomes dearer as it shrinks.

    Args:
        model: network before.
        found: importance of its parts.
        speed: multiply-adds before, divided by those after; above 1.
        method: kinds of parts that may be removed.

    Raises:
        ConfigError: this cannot be reached; names what can.
    """
    kept, sizes = _kept(found), sizes_of(model.shape)
    before = operations = model.operations(sizes)
    while operations * speed > before:
        best = None
        for candidate in _smaller(model, sizes, method):
            saved = operations - model.operations(candidate)
            if saved > 0:
                price = (_loss(kept, candidate) - _loss(kept, sizes)) / saved
                if best is None or price < best[0]:
                    best = price, candidate, saved
        if best is None:
            raise ConfigError(
                f"--speed {speed:g}: --method {method} reaches at most {before / operations:.2f}; "
                "lower --speed" + ("" if method == "both" else ", or use --method both")
            )
        _, sizes, saved = best
        operations -= saved
    return sizes


def _smaller(model: Model, sizes: Sizes, method: Method) -> Iterator[Sizes]:
    """All sizes that are a step smaller in one place."""
    if method != "rank":
        for name, step in (("maps", MAP_STEP), ("units", STEP)):
            counts = getattr(sizes, name)
            for i, count in enumerate(counts):
                if count > 1:
                    yield sizes._replace(**{name: _with(counts, i, _less(count, step))})
    if method != "units":
        for i, rank in enumerate(sizes.ranks):
            if rank:
                choices: Sequence[int] = [_less(rank, STEP)] if rank > 1 else []
            else:
                choices = range(STEP, _break_even(model, sizes, i), 4 * STEP)
            for choice in choices:
                yield sizes._replace(ranks=_with(sizes.ranks, i, choice))


def _less(count: int, step: int) -> int:
    return count - 1 if count < 2 * step else (count - 1) // step * step


def _break_even(model: Model, sizes: Sizes, index: int) -> int:
    """Rank from which on two factors take as many operations as the whole."""
    shape = model.shape
    inputs = sizes.units[index - 1] if index else conv_features(model.bins, sizes.maps[1])
    rows = (2 if shape.bidirectional else 1) * GATES[shape.rnn] * sizes.units[index]
    rank = inputs * rows // (inputs + rows)
    return min(rank, sizes.ranks[index]) if sizes.ranks[index] else rank


def _with(counts: tuple[int, ...], index: int, count: int) -> tuple[int, ...]:
    return (*counts[:index], count, *counts[index + 1 :])


def _kept(found: Importance) -> Kept:
    def table(shares: Tensor) -> Tensor:
        return torch.cat([shares.new_zeros(1), shares.sort(descending=True).values.cumsum(0)])

    return Kept(
        maps=tuple(map(table, found.maps)),
        units=tuple(map(table, found.units)),
        ranks=tuple(map(table, found.directions)),
    )


def _loss(kept: Kept, sizes: Sizes) -> float:
    """Logarithm of the energy before, divided by the energy that is kept."""
    total = 0.0
    for tables, counts in zip(kept, sizes, strict=True):
        for table, count in zip(tables, counts, strict=True):
            count = min(count, len(table) - 1) if count else len(table) - 1
            total -= math.log(max(float(table[count]), 1e-300))
    return total
