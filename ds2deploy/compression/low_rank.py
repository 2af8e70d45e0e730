"""Write the input side of recurrent layers as two products (Kliegl et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch

from ds2deploy.compression.importance import input_moments, input_weights, layers_of, suffixes
from ds2deploy.model.network import DeepSpeech2


def factor_inputs(network: DeepSpeech2, ranks: Sequence[int]) -> DeepSpeech2:
    """Approximate input sides by singular value decomposition, both directions together.

    The error is weighed by how much each input varies, and its mean becomes a bias.

    Args:
        network: network in evaluation mode; it is not changed.
        ranks: rank of every recurrent layer; 0, or the rank that it has, leaves a layer as it is.

    Returns:
        A network in evaluation mode.
    """
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    moments = input_moments(network)
    for index, (layer, rank) in enumerate(zip(layers_of(network), ranks, strict=True)):
        if rank == network.shape.input_ranks[index]:
            continue
        mean, deviation = moments[index]
        whole, scale = input_weights(layer), deviation.clamp(min=1e-6)
        left, values, right = torch.linalg.svd(whole * scale, full_matrices=False)
        root = values[:rank].sqrt()
        outer, inner = left[:, :rank] * root, root[:, None] * right[:rank] / scale
        lost = (whole - outer @ inner) @ mean
        prefix = f"rnns.{index}."
        weights[prefix + "projection.weight"] = inner.float()
        ends = suffixes(layer)
        for end, part, shift in zip(
            ends, outer.chunk(len(ends)), lost.chunk(len(ends)), strict=True
        ):
            weights[f"{prefix}rnn.weight_ih_l0{end}"] = part.float()
            weights[f"{prefix}rnn.bias_ih_l0{end}"] += shift.float()
    shape = msgspec.structs.replace(network.shape, ranks=tuple(ranks))
    smaller = DeepSpeech2(shape, network.bins, network.labels)
    smaller.load_state_dict(weights)
    return smaller.eval()
