"""Loading of weights into a network, with checks of names, shapes and numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ds2deploy.config import Recipe
from ds2deploy.model.network import DeepSpeech2
from ds2deploy.runtimes.errors import ModelFileError

COMPILED = "_orig_mod"
"""Prefix that `torch.compile` adds to the names of weights, at any depth."""


WRAPPERS = ("module", "model", "network")
"""Prefixes that `DataParallel` and common Lightning modules add to the names of weights."""


def build_network(recipe: Recipe) -> DeepSpeech2:
    """Build the recipe's network with random weights."""
    return DeepSpeech2(recipe.model, recipe.features.bins, len(recipe.labels))


def load_network(recipe: Recipe, weights: Any, path: Path) -> DeepSpeech2:
    """Build the recipe's network with the weights of a checkpoint.

    Shapes are compared before memory is allocated, so that a damaged file cannot exhaust it.

    Args:
        recipe: recipe of the checkpoint.
        weights: weights of the checkpoint, by name.
        path: path of the checkpoint, for errors.

    Raises:
        ModelFileError: a parameter is missing, has another shape, or contains NaN or infinity.
    """
    with torch.device("meta"):
        outline = build_network(recipe)
    fitting = _fitting_weights(outline, weights, path)
    network = build_network(recipe)
    network.load_state_dict(fitting)
    _check_numbers(network, path)
    return network


def _fitting_weights(network: DeepSpeech2, weights: Any, path: Path) -> dict[str, Any]:
    """Return the weights by the network's names, with every parameter in the right shape."""
    if not isinstance(weights, dict):
        raise ModelFileError(f"{path}: contains no weights; restore the original")
    expected = network.state_dict()
    fitting = unwrapped(weights, expected.__contains__, path)
    for name, parameter in expected.items():
        if not isinstance(fitting.get(name), torch.Tensor):
            raise ModelFileError(
                f"{path}: weights {name!r} of its recipe are missing; restore the original"
            )
        fitting[name] = checked_weight(fitting[name], name, path)
        if fitting[name].shape != parameter.shape:
            _check_kernel(fitting[name].shape, parameter.shape, name, path)
            raise ModelFileError(
                f"{path}: weights {name!r} have shape {tuple(fitting[name].shape)}, but its recipe "
                f"({network.labels} labels, {network.shape.layers} x {network.shape.rnn} of "
                f"{network.shape.hidden}) needs {tuple(parameter.shape)}; restore the original"
            )
    if surplus := sorted(map(str, fitting.keys() - expected.keys())):
        raise ModelFileError(
            f"{path}: weights {surplus[0]!r} are not in its recipe; restore the original"
        )
    return fitting


def _check_kernel(found: torch.Size, expected: torch.Size, name: str, path: Path) -> None:
    """Refuse convolution weights that only differ in the size of the kernel.

    Args:
        found: shape in the checkpoint: (maps, maps of the input, bins, frames).
        expected: shape in the network.
        name: name of the weights, for the error.
        path: path of the checkpoint, for the error.

    Raises:
        ModelFileError: the checkpoint was trained with another kernel.
    """
    if (
        len(found) == len(expected) == 4
        and found[:2] == expected[:2]
        and all(size % 2 for size in found[2:])
    ):
        sizes = " x ".join(map(str, found[2:])), " x ".join(map(str, expected[2:]))
        raise ModelFileError(
            f"{path}: trained with another convolution kernel: {name!r} has {sizes[0]} bins x "
            f"frames, runtimes/geometry.py has {sizes[1]}; use the kernel that it was trained "
            "with, or train again"
        )


def checked_weight(weight: torch.Tensor, name: str, path: Path) -> torch.Tensor:
    """Check a weight of a file and return it: a dense tensor of real numbers with its own memory.

    An expanded tensor could exhaust the memory. Tensors of other kinds cannot be copied into a
    network, or would lose their imaginary part.

    Args:
        weight: tensor as it was unpickled; attributes that the pickle set are dropped.
        name: name of the weight, for the error.
        path: path of the file, for the error.

    Raises:
        ModelFileError: the tensor is sparse, complex or quantised, or overlaps itself.
    """
    weight = torch.Tensor.detach(weight)
    kind = ""
    if weight.layout is not torch.strided or weight.device.type != "cpu":
        kind = "are sparse, or not in the file"
    elif weight.is_quantized or weight.is_complex():
        kind = f"are {weight.dtype}, expected real numbers"
    else:
        pairs = zip(weight.shape, weight.stride(), strict=True)
        if weight.numel() > 1 + sum((count - 1) * step for count, step in pairs):
            kind = "overlap themselves"
    if kind:
        raise ModelFileError(f"{path}: weights {name!r} {kind}; restore the original")
    return weight


def unwrapped(weights: dict[Any, Any], known: Callable[[str], bool], path: Path) -> dict[str, Any]:
    """Remove the prefixes of `torch.compile`, `DataParallel` and Lightning from names of weights.

    Args:
        weights: weights by their names in a file.
        known: function that returns True if the network has a parameter of a name.
        path: path of the file, for the error.

    Returns:
        The weights by their names in the network; names that stay unknown are not changed.

    Raises:
        ModelFileError: there are two weights for one parameter.
    """
    found: dict[str, Any] = {}
    for name, weight in weights.items():
        parts = [part for part in str(name).split(".") if part != COMPILED]
        while parts and parts[0] in WRAPPERS and not known(".".join(parts)):
            del parts[0]
        inner = ".".join(parts)
        inner = inner if known(inner) else str(name)
        if inner in found:
            raise ModelFileError(f"{path}: contains weights {inner!r} twice; restore the original")
        found[inner] = weight
    return found


def _check_numbers(network: DeepSpeech2, path: Path) -> None:
    """Refuse NaN and infinity, and variances below zero, whose root is NaN."""
    for name, weight in network.state_dict().items():
        if not weight.is_floating_point():
            continue
        bad = 0
        # A sum is a fast test that shows both, but it may also overflow by itself.
        if not torch.isfinite(weight.sum()):
            bad = int((~torch.isfinite(weight)).sum())
        if name.endswith("running_var"):
            bad += int((weight < 0).sum())
        if bad:
            raise ModelFileError(
                f"{path}: weights {name!r}: {bad} of {weight.numel()} are NaN, infinite or a "
                "negative variance, because the training diverged or the file is damaged; use an "
                "earlier checkpoint, or restore the original"
            )
