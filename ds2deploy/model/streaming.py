"""Streaming form of the reference network: the same modules, run block by block with states.

Its results equal those of `DeepSpeech2` on the whole utterance, for any block size. Every streaming
artifact is compared with the latter; this form makes it possible to stream with a checkpoint.
"""

from __future__ import annotations

import copy

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds2deploy.model.checkpoint import Checkpoint
from ds2deploy.model.network import (
    DeepSpeech2,
    Lookahead,
    RecurrentLayer,
    at_least_float32,
    over_frames,
)
from ds2deploy.model.recurrent import advance
from ds2deploy.model.session import TorchSession
from ds2deploy.runtimes.artifact import ArtifactDescription, Input
from ds2deploy.runtimes.blocks import BLOCK_MS, make_blocks, nearest_block_ms
from ds2deploy.runtimes.geometry import CONV1_DELAY, CONV2_DELAY, TIME_STRIDE, output_length
from ds2deploy.runtimes.tensors import memory_names, with_tensors


class StreamingNetwork(nn.Module):
    """Network that processes one block of every stream of a batch, at any positions.

    Args:
        network: unidirectional network.
        description: description with blocks of features, which lists the module's inputs in order.
    """

    def __init__(self, network: DeepSpeech2, description: ArtifactDescription) -> None:
        super().__init__()
        self.network = network
        self._states = memory_names(description.inputs)

    def forward(
        self, features: Tensor, lengths: Tensor, position: Tensor, *states: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute the log-probabilities of a block.

        Args:
            features: (batch, 1, bins, frames) float32.
            lengths: (batch,) int64, number of frames of the whole stream as far as known; later
                frames are ignored.
            position: (batch, 1) int64, index of the first frame of the block; even.
            states: states after the previous block; zeros before the first block.

        Returns:
            log_probs (batch, frames / 2, labels) float32, output_lengths (batch,) int64, the next
            position, and the next states.
        """
        state = dict(zip(self._states, states, strict=True))
        frames = features.shape[3]
        start = position // TIME_STRIDE
        output_lengths = output_length(lengths)
        valid = _inside(position, frames, lengths)
        x = features.masked_fill(~valid[:, None, None], 0.0)
        for layers, name, delay in (
            (self.network.conv.layers[:3], "features", CONV1_DELAY),
            (self.network.conv.layers[3:], "conv1", CONV2_DELAY),
        ):
            valid = _inside(start - delay, frames // TIME_STRIDE, output_lengths)
            x, state[name] = _convolve(layers, x, state[name], valid)
        x = x.flatten(1, 2).permute(2, 0, 1).contiguous()
        padded = ~valid.T[:, :, None]
        skipped = (CONV2_DELAY - start[:, 0]).clamp(0, frames // TIME_STRIDE)
        hidden, cells = state["rnn"].clone(), state.get("cell", state["rnn"]).clone()
        parts = zip(self._by_layer(hidden), self._by_layer(cells), strict=True)
        for layer, states_of_layer in zip(self.network.rnns, parts, strict=True):
            assert isinstance(layer, RecurrentLayer)
            x = _recur(layer, x, states_of_layer, skipped)
            x = x.masked_fill(padded, 0.0)
        state["rnn"] = hidden
        if "cell" in state:
            state["cell"] = cells
        if self.network.lookahead is not None:
            x = _look_ahead(self.network.lookahead, x, state)
        x = self.network.output(over_frames(self.network.output_norm, x))
        log_probs = F.log_softmax(at_least_float32(x), dim=-1).transpose(0, 1)
        following = (state[name] for name in self._states)
        return log_probs, output_lengths, position + frames, *following

    def _by_layer(self, states: Tensor) -> tuple[Tensor, ...]:
        """Return views (batch, hidden) of the states of all layers."""
        if states.dim() == 3:
            return states.unbind(1)
        return torch.split(states, list(self.network.shape.units), dim=1)


def torch_session(checkpoint: Checkpoint, device: str = "cpu") -> TorchSession:
    """Open the reference session of a checkpoint, for whole utterances and, if possible, streams.

    Raises:
        RuntimeUnavailableError: torch has no such device on this machine.
    """
    network, whole = checkpoint.network, checkpoint.description()

    def in_blocks() -> tuple[nn.Module, ArtifactDescription]:
        block_ms = nearest_block_ms(whole.features)
        description = streaming_description(whole, "features", block_ms)
        return StreamingNetwork(network, description), description

    can = not whole.model.bidirectional and whole.features.normalize != "utterance"
    return TorchSession(network, whole, device, in_blocks if can else None)


def exact_session(checkpoint: Checkpoint) -> TorchSession:
    """Open a checkpoint in float64 for whole utterances, as the reference of parity checks.

    The network is copied, so that the checkpoint's own network stays in float32.
    """
    network = copy.deepcopy(checkpoint.network)
    return TorchSession(network, checkpoint.description(), float64=True)


def streaming_description(
    whole: ArtifactDescription, kind: Input = "features", block_ms: float = BLOCK_MS
) -> ArtifactDescription:
    """Make the description of a model's streaming form.

    Args:
        whole: description of the model for whole utterances.
        kind: kind of input in a block.
        block_ms: duration of a block, in milliseconds.

    Raises:
        ConfigError: the duration cannot be that of a block.
    """
    blocks = make_blocks(whole.model, whole.features, kind, block_ms)
    return with_tensors(msgspec.structs.replace(whole, kind="streaming", input=kind, blocks=blocks))


def _inside(start: Tensor, count: int, lengths: Tensor) -> Tensor:
    """Make a mask (batch, count), from start (batch, 1) on, of frames from 0 to their length."""
    index = start + torch.arange(count, device=start.device)
    return (index >= 0) & (index < lengths[:, None])


def _convolve(
    layers: nn.ModuleList, x: Tensor, before: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply convolution, batch norm and Hardtanh to kept and new frames; return also the state."""
    conv, norm, clip = layers
    assert isinstance(conv, nn.Conv2d)
    joined = torch.cat([before, x], dim=3)
    bins = (int(conv.padding[0]), 0)
    y = F.conv2d(joined, conv.weight, conv.bias, conv.stride, bins)
    y = clip(norm(y)).masked_fill(~valid[:, None, None], 0.0)
    return y, joined[..., -before.shape[3] :].clone()


def _recur(
    layer: RecurrentLayer, x: Tensor, states: tuple[Tensor, Tensor], skipped: Tensor
) -> Tensor:
    """Map (time, batch, inputs) to (time, batch, hidden), and advance the states (batch, hidden).

    Frames before the first of a stream are skipped, because they must not change its state.
    """
    x = layer.prepared(x)
    outputs = x.new_zeros(*x.shape[:2], layer.rnn.hidden_size)
    for first in set(skipped.tolist()):
        streams = (skipped == first).nonzero()[:, 0]
        if first == len(x):
            continue
        begin = [state[streams][None] for state in states]
        part, *end = advance(layer.rnn, x[first:, streams], begin)
        outputs[first:, streams] = part
        for state, after in zip(states, end if len(end) == 2 else (*end, *end), strict=True):
            state[streams] = after[0]
    return outputs


def _look_ahead(lookahead: Lookahead, x: Tensor, state: dict[str, Tensor]) -> Tensor:
    x = x.permute(1, 2, 0)
    if "lookahead" in state:
        x = torch.cat([state["lookahead"], x], dim=2)
        state["lookahead"] = x[..., 1 - lookahead.context :].clone()
    return lookahead.clip(lookahead.conv(x)).permute(2, 0, 1)
