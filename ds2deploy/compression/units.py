"""Remove maps of the convolutions and units of the recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from ds2deploy.compression.importance import (
    Importance,
    convolution,
    input_moments,
    input_weights,
    layers_of,
    map_moments,
    suffixes,
)
from ds2deploy.compression.plan import Sizes
from ds2deploy.model.network import DeepSpeech2
from ds2deploy.model.operations import GATES

Weights = dict[str, Tensor]

NORM = ("weight", "bias", "running_mean", "running_var")


def remove_units(network: DeepSpeech2, found: Importance, sizes: Sizes) -> DeepSpeech2:
    """Keep the most important maps and units; what the others gave on average becomes a bias.

    Args:
        network: network in evaluation mode; it is not changed.
        found: importance of its parts.
        sizes: maps and units to keep; its ranks are not looked at.

    Returns:
        A network in evaluation mode, its ranks those before.
    """
    maps = [_kept(shares, count) for shares, count in zip(found.maps, sizes.maps, strict=True)]
    units = [_kept(shares, count) for shares, count in zip(found.units, sizes.units, strict=True)]
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    _prune_convolutions(network, weights, maps)
    _prune_inputs(network, weights, [_columns(network, maps[1]), *units[:-1]])
    for index, kept in enumerate(units):
        _prune_layer(network, weights, index, kept)
    _prune_output(network, weights, units[-1])
    shape = msgspec.structs.replace(
        network.shape, maps=tuple(map(len, maps)), hidden=tuple(map(len, units))
    )
    smaller = DeepSpeech2(shape, network.bins, network.labels)
    smaller.load_state_dict(weights)
    return smaller.eval()


def _kept(shares: Tensor, count: int) -> Tensor:
    return shares.argsort(descending=True, stable=True)[:count].sort().values


def _others(kept: Tensor, count: int) -> Tensor:
    removed = torch.ones(count, dtype=torch.bool)
    removed[kept] = False
    return removed.nonzero()[:, 0]


def _columns(network: DeepSpeech2, maps: Tensor) -> Tensor:
    """Find the inputs of the first recurrent layer that come from these maps."""
    inputs = input_weights(layers_of(network)[0]).shape[1] // network.shape.maps[1]
    return (maps[:, None] * inputs + torch.arange(inputs)).flatten()


def _prune_convolutions(network: DeepSpeech2, weights: Weights, maps: Sequence[Tensor]) -> None:
    second = convolution(network, 1).weight.detach()
    removed = _others(maps[0], network.shape.maps[0])
    mean = map_moments(network, 0)[0][removed].float()
    weights["conv.layers.3.bias"] += second[:, removed].sum((2, 3)) @ mean
    weights["conv.layers.3.weight"] = second[:, maps[0]]
    for index, kept in enumerate(maps):
        for name in ("weight", "bias"):
            _select(weights, f"conv.layers.{3 * index}.{name}", kept)
        for name in NORM:
            _select(weights, f"conv.layers.{3 * index + 1}.{name}", kept)


def _prune_inputs(network: DeepSpeech2, weights: Weights, kept: Sequence[Tensor]) -> None:
    """Remove columns of the input sides; their mean, after a batch norm its shift, stays."""
    moments = input_moments(network)
    for index, (layer, columns) in enumerate(zip(layers_of(network), kept, strict=True)):
        mean = moments[index][0].float()
        removed = _others(columns, len(mean))
        prefix = f"rnns.{index}."
        if layer.batch_norm is not None:
            for name in NORM:
                _select(weights, f"{prefix}batch_norm.{name}", columns)
        shift = mean[removed]
        if layer.projection is not None:
            factor = weights[prefix + "projection.weight"]
            shift = factor[:, removed] @ shift
            weights[prefix + "projection.weight"] = factor[:, columns]
        for end in suffixes(layer):
            name = f"{prefix}rnn.weight_ih_l0{end}"
            side = weights[name] if layer.projection is not None else weights[name][:, removed]
            weights[f"{prefix}rnn.bias_ih_l0{end}"] += side @ shift
            if layer.projection is None:
                weights[name] = weights[name][:, columns]


def _prune_layer(network: DeepSpeech2, weights: Weights, index: int, kept: Tensor) -> None:
    """Remove units of a layer: rows of all gates, and columns of its recurrent weights."""
    layers, layer = layers_of(network), layers_of(network)[index]
    units, directions = layer.rnn.hidden_size, suffixes(layer)
    rows = (torch.arange(GATES[network.shape.rnn])[:, None] * units + kept).flatten()
    removed = _others(kept, units)
    last = index + 1 == len(layers)
    norm = network.output_norm if last else layers[index + 1].batch_norm
    assert norm is not None
    assert norm.running_mean is not None
    # The batch norm has the mean of the sum of both directions, or of what the lookahead made.
    known = not (last and network.lookahead is not None)
    mean = norm.running_mean[removed] / len(directions) * known
    for end in directions:
        prefix = f"rnns.{index}.rnn."
        recurrent = weights[f"{prefix}weight_hh_l0{end}"]
        weights[f"{prefix}bias_hh_l0{end}"] += recurrent[:, removed] @ mean
        weights[f"{prefix}weight_hh_l0{end}"] = recurrent[:, kept]
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            _select(weights, f"{prefix}{name}_l0{end}", rows)


def _prune_output(network: DeepSpeech2, weights: Weights, kept: Tensor) -> None:
    """Remove inputs of the output layer; it has no bias, so the batch norm's shift takes over."""
    if network.lookahead is not None:
        _select(weights, "lookahead.conv.weight", kept)
    output = weights["output.weight"].double()
    removed = _others(kept, output.shape[1])
    lost = output[:, removed] @ weights["output_norm.bias"].double()[removed]
    for name in NORM:
        _select(weights, f"output_norm.{name}", kept)
    if len(removed):
        shift = torch.linalg.pinv(output[:, kept]) @ lost
        weights["output_norm.bias"] += shift.float()
    weights["output.weight"] = weights["output.weight"][:, kept]


def _select(weights: Weights, name: str, kept: Tensor) -> None:
    weights[name] = weights[name].index_select(0, kept)
