"""Compress a checkpoint: plan, remove, factor, write, and report."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ds2deploy.compression.importance import importance
from ds2deploy.compression.low_rank import factor_inputs
from ds2deploy.compression.plan import Method, Model, Sizes, check_budget, plan_energy, plan_speed
from ds2deploy.compression.units import remove_units
from ds2deploy.model.checkpoint import Checkpoint, save_checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.network import DeepSpeech2
from ds2deploy.model.operations import multiply_adds
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.geometry import TIME_STRIDE


class CompressedLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer before and after.

    Attributes:
        name: `conv1`, `conv2`, `rnn1`, ..., `lookahead` or `output`.
        size: maps or units, and the rank of the input side where it has one.
        multiply_adds: multiply-adds for a second of audio.
    """

    name: str
    size: tuple[str, str]
    multiply_adds: tuple[float, float]


class CompressionReport(msgspec.Struct, frozen=True, kw_only=True):
    """Report of a compression; pairs are before and after.

    Attributes:
        file: file that was written.
        layers: layers in their order.
        multiply_adds: multiply-adds of the network for a second of audio.
        speed: multiply-adds before, divided by those after.
        parameters: numbers in the weights.
        bytes: sizes of the files.
        model: shape of the network that was written.
    """

    file: str
    layers: tuple[CompressedLayer, ...]
    multiply_adds: tuple[float, float]
    speed: float
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    model: ModelShape


def compress(
    path: Path,
    out: Path,
    *,
    energy: float | None = None,
    speed: float | None = None,
    method: Method = "both",
) -> CompressionReport:
    """Write a smaller checkpoint.

    Args:
        path: checkpoint of ds2deploy or deepspeech.pytorch.
        out: file to write; it may not exist.
        energy: share of every layer's energy to keep; or
        speed: multiply-adds before, divided by those after.
        method: `units` removes maps and units, `rank` makes input sides of low rank.

    Raises:
        ConfigError: neither or both budgets, one that cannot be reached, or `out` exists.
        MissingFileError, ModelFileError: the checkpoint cannot be read.
    """
    check_budget(energy, speed)
    if out.exists():
        raise ConfigError(f"--out {out}: exists; choose another name")
    checkpoint = load_checkpoint(path)
    recipe = checkpoint.recipe
    smaller = smaller_network(checkpoint, energy=energy, speed=speed, method=method)
    shape = smaller.shape
    recipe = recipe.changed("model", hidden=shape.hidden, ranks=shape.ranks, maps=shape.maps)
    save_checkpoint(out, smaller, recipe, {})
    return _report(checkpoint, smaller, (path, out))


def smaller_network(
    checkpoint: Checkpoint,
    *,
    energy: float | None = None,
    speed: float | None = None,
    method: Method = "both",
) -> DeepSpeech2:
    """Make the network of `compress`, without a file."""
    network = checkpoint.network
    found = importance(network)
    model = Model(network.shape, network.bins, network.labels)
    if energy is not None:
        sizes = plan_energy(model, found, energy, method)
    else:
        assert speed is not None
        sizes = plan_speed(model, found, speed, method)
    return apply_sizes(network, sizes)


def apply_sizes(network: DeepSpeech2, sizes: Sizes) -> DeepSpeech2:
    """Give a network these sizes: units first, so that the ranks are those of what stays."""
    return factor_inputs(remove_units(network, importance(network), sizes), sizes.ranks)


def _report(before: Checkpoint, after: DeepSpeech2, files: tuple[Path, Path]) -> CompressionReport:
    network, features = before.network, before.recipe.features
    rate = features.sample_rate / features.stride / TIME_STRIDE
    counts = [multiply_adds(n.shape, n.bins, n.labels) for n in (network, after)]
    totals = [sum(count.values()) for count in counts]
    parameters = [sum(p.numel() for p in n.parameters()) for n in (network, after)]
    return CompressionReport(
        file=str(files[1]),
        layers=tuple(
            CompressedLayer(
                name=name,
                size=(_size(network.shape, name), _size(after.shape, name)),
                multiply_adds=(counts[0][name] * rate, counts[1][name] * rate),
            )
            for name in counts[0]
        ),
        multiply_adds=(totals[0] * rate, totals[1] * rate),
        speed=totals[0] / totals[1],
        parameters=(parameters[0], parameters[1]),
        bytes=(files[0].stat().st_size, files[1].stat().st_size),
        model=after.shape,
    )


def _size(shape: ModelShape, name: str) -> str:
    if name.startswith("conv"):
        return f"{shape.maps[int(name[4:]) - 1]} maps"
    if not name.startswith("rnn"):
        return f"{shape.units[-1]} units"
    index = int(name[3:]) - 1
    rank = shape.input_ranks[index]
    return f"{shape.units[index]} units" + (f", rank {rank}" if rank else "")
