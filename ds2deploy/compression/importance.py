"""Importance of maps, units and singular directions, from the weights and batch norms alone.

A batch norm keeps how much each unit varied in training. What a unit contributes to the layer
after it is the variance of the batch norm's output times the squared weights which read it, so no
data is needed. A unit that never varies contributes nothing, however large its weights are.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ds2deploy.model.network import LARGEST_ACTIVATION, DeepSpeech2, RecurrentLayer


class Importance(NamedTuple):
    """Shares of the energy of a layer, each summing to one, float64.

    Attributes:
        maps: shares of the maps of both convolutions, (maps,) each.
        units: shares of the units of every recurrent layer, (units,) each.
        directions: squared singular values of the input side of every recurrent layer as shares,
            largest first, (rank,) each.
    """

    maps: tuple[Tensor, Tensor]
    units: tuple[Tensor, ...]
    directions: tuple[Tensor, ...]


def importance(network: DeepSpeech2) -> Importance:
    """Rate every map, unit and singular direction of a network."""
    layers = layers_of(network)
    first, second = map_moments(network, 0), map_moments(network, 1)
    read_maps = _squares(convolution(network, 1).weight)
    read_rows = _squares(input_weights(layers[0])).view(len(second[1]), -1).sum(1)
    return Importance(
        maps=(_shares(first[1] ** 2 * read_maps), _shares(second[1] ** 2 * read_rows)),
        units=tuple(_of_units(network, layers, index) for index in range(len(layers))),
        directions=tuple(
            _shares(torch.linalg.svdvals(input_weights(layer) * deviation) ** 2)
            for layer, (_, deviation) in zip(layers, input_moments(network), strict=True)
        ),
    )


def layers_of(network: DeepSpeech2) -> list[RecurrentLayer]:
    """List the recurrent layers."""
    return [layer for layer in network.rnns if isinstance(layer, RecurrentLayer)]


def convolution(network: DeepSpeech2, index: int) -> nn.Conv2d:
    """Return the first or second convolution: index 0 or 1."""
    return cast(nn.Conv2d, network.conv.layers[3 * index])


def suffixes(layer: RecurrentLayer) -> tuple[str, ...]:
    """List the endings of the names of an RNN's weights, by direction."""
    return ("", "_reverse") if layer.rnn.bidirectional else ("",)


def input_weights(layer: RecurrentLayer) -> Tensor:
    """Input side of both directions, factors multiplied: (directions * gates * units, inputs)."""
    stacked = torch.cat([getattr(layer.rnn, "weight_ih_l0" + end) for end in suffixes(layer)])
    whole = stacked.detach().double()
    if layer.projection is not None:
        whole = whole @ layer.projection.weight.detach().double()
    return whole


def map_moments(network: DeepSpeech2, index: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (maps,) of a convolution's output, a clipped normal variable."""
    norm = cast(nn.BatchNorm2d, network.conv.layers[3 * index + 1])
    mean, deviation = norm.bias.detach().double(), norm.weight.detach().double().abs()
    quantiles = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    normal = torch.special.ndtri(quantiles)
    values = (mean[:, None] + deviation[:, None] * normal).clamp(0, LARGEST_ACTIVATION)
    return values.mean(1), values.std(1)


def norm_deviation(norm: nn.BatchNorm1d) -> Tensor:
    """Compute the standard deviation (units,) of a batch norm's output, float64.

    It is the scale times the root of var / (var + eps): less than the scale of a unit that hardly
    varies.
    """
    assert norm.running_var is not None
    variance = norm.running_var.double()
    return norm.weight.detach().double().abs() * (variance / (variance + norm.eps)).sqrt()


def input_moments(network: DeepSpeech2) -> list[tuple[Tensor, Tensor]]:
    """Mean and standard deviation (inputs,) of the input of every RNN, batch norm included."""
    layers = layers_of(network)
    found = []
    for layer in layers:
        if layer.batch_norm is None:
            mean, deviation = map_moments(network, 1)
            times = input_weights(layer).shape[1] // len(mean)
            found.append((mean.repeat_interleave(times), deviation.repeat_interleave(times)))
        else:
            norm = layer.batch_norm
            found.append((norm.bias.detach().double(), norm_deviation(norm)))
    return found


def _of_units(network: DeepSpeech2, layers: list[RecurrentLayer], index: int) -> Tensor:
    """Shares of a layer's units: half by what follows reads, half by what the layer itself does."""
    last = index + 1 == len(layers)
    reader = network.output.weight.detach() if last else input_weights(layers[index + 1])
    norm = network.output_norm if last else layers[index + 1].batch_norm
    assert norm is not None
    assert norm.running_var is not None
    shares = _shares(norm_deviation(norm) ** 2 * _squares(reader))
    rnn = layers[index].rnn
    squares = [_squares(getattr(rnn, "weight_hh_l0" + end)) for end in suffixes(layers[index])]
    # After the lookahead and its clipping, the variance is no longer that of the unit.
    clipped = last and network.lookahead is not None
    variance = torch.ones_like(shares) if clipped else norm.running_var.double()
    return (shares + _shares(variance * sum(squares))) / 2


def _squares(weight: Tensor) -> Tensor:
    """Sum of the squares over all axes but the second."""
    return (weight.detach().double() ** 2).sum([0, *range(2, weight.dim())])


def _shares(energy: Tensor) -> Tensor:
    total = energy.sum()
    return energy / total if total > 0 else torch.full_like(energy, 1 / len(energy))
