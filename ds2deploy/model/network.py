"""DeepSpeech 2 (Amodei et al., 2015), as deepspeech.pytorch computes it.

features (batch, 1, bins, time)
  -> two masked convolutions        (batch, 32, bins / 4, time / 2)
  -> recurrent layers               (time / 2, batch, hidden), both directions summed
  -> [lookahead convolution]        unidirectional models only
  -> batch norm, linear, log-softmax (batch, time / 2, labels)

This is the reference: training runs it, and every exported artifact is compared with it.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds2deploy.model.convolution import FourierConv2d
from ds2deploy.model.recurrent import frames_at_once, run_in_short_pieces, run_unpacked
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.geometry import CONV1, CONV2, TIME_STRIDE, conv_features, output_length

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
}

LARGEST_ACTIVATION = 20.0
"""Upper limit of the Hardtanh, the paper's clipped rectifier."""

CONV_CONTEXT = CONV2.padding[1] - (-CONV1.padding[1] // TIME_STRIDE)
"""Output frames on either side of a piece of time that its convolutions see: those of the second
one, and those of the first, which has the stride, rounded up."""


class DeepSpeech2(nn.Module):
    """DeepSpeech 2 network.

    Args:
        shape: dimensions of the recurrent part.
        bins: number of frequency bins of the features.
        labels: number of labels, blank included.
    """

    def __init__(self, shape: ModelShape, bins: int = 161, labels: int = 29) -> None:
        super().__init__()
        self.shape, self.bins, self.labels = shape, bins, labels
        self.conv = MaskedConvolutions(shape.norm_eps, shape.maps)
        sizes = [conv_features(bins, shape.maps[1]), *shape.units]
        self.rnns = nn.ModuleList(RecurrentLayer(shape, sizes[i], i) for i in range(shape.layers))
        units = sizes[-1]
        self.lookahead = None if shape.bidirectional else Lookahead(units, context=shape.lookahead)
        self.output_norm = nn.BatchNorm1d(units, shape.norm_eps)
        self.output = nn.Linear(units, labels, bias=False)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the log-probabilities of the labels.

        Args:
            features: (batch, 1, bins, time) float32; frames after an utterance's length are
                ignored.
            lengths: (batch,) int64, number of valid frames, from 1 to time.

        Returns:
            log_probs (batch, time', labels) with time' = (time - 1) // 2 + 1, float32 (float64
            for a network in float64); undefined after output_lengths. And output_lengths (batch,)
            int64.
        """
        features = features.masked_fill(~valid_frames(lengths, features.shape[3]), 0.0)
        output_lengths = output_length(lengths)
        x = self.conv(features, output_lengths)
        x = x.flatten(1, 2).permute(2, 0, 1).contiguous()
        for layer in self.rnns:
            x = layer(x, output_lengths)
        if self.lookahead is not None:
            x = self.lookahead(x)
        x = self.output(over_frames(self.output_norm, x))
        log_probs = F.log_softmax(at_least_float32(x), dim=-1)
        return log_probs.transpose(0, 1), output_lengths


class MaskedConvolutions(nn.Module):
    """Two convolutions over frequency and time; padded frames are zero after every layer.

    As in deepspeech.pytorch, the mask is applied after each of the six layers. Batch norm counts
    padded frames as zeros, and its shift does not leak into the next convolution.

    Args:
        eps: epsilon of the batch norms.
        maps: feature maps of both.
    """

    def __init__(self, eps: float, maps: tuple[int, int] = (CONV1.maps, CONV2.maps)) -> None:
        super().__init__()
        first, second = maps
        self.layers = nn.ModuleList(
            [
                FourierConv2d(1, first, CONV1.kernel, CONV1.stride, CONV1.padding),
                nn.BatchNorm2d(first, eps),
                nn.Hardtanh(0.0, LARGEST_ACTIVATION, inplace=True),
                FourierConv2d(first, second, CONV2.kernel, CONV2.stride, CONV2.padding),
                nn.BatchNorm2d(second, eps),
                nn.Hardtanh(0.0, LARGEST_ACTIVATION, inplace=True),
            ]
        )

    def forward(self, features: Tensor, output_lengths: Tensor) -> Tensor:
        """Convolve (batch, 1, bins, time) to (batch, 32, bins / 4, time / 2).

        Long features are convolved in pieces of time where no gradient is wanted; the result is the
        same, in a fraction of the memory.
        """
        frames = frames_at_once(features, len(features))
        if self.training or torch.is_grad_enabled() or features.shape[3] <= TIME_STRIDE * frames:
            return self._convolve(features, output_lengths)
        batch, _, bins, time = features.shape
        total = int(output_length(time))
        # Frames first, as the recurrent layers want them: they need no other copy.
        maps = cast(FourierConv2d, self.layers[3]).out_channels
        shape = (total, batch, maps, conv_features(bins, maps) // maps)
        result = features.new_empty(shape).permute(1, 2, 3, 0)
        for start in range(0, total, frames):
            end = min(start + frames, total)
            first = max(start - CONV_CONTEXT, 0)
            piece = features[..., TIME_STRIDE * first : TIME_STRIDE * (end + CONV_CONTEXT)]
            found = self._convolve(piece, output_lengths - first)
            result[..., start:end] = found[..., start - first : end - first]
        return result

    def _convolve(self, features: Tensor, output_lengths: Tensor) -> Tensor:
        """Convolve all frames at once."""
        x = features
        padded: Tensor | None = None
        for layer in self.layers:
            x = layer(x)
            if padded is None:
                padded = ~valid_frames(output_lengths, x.shape[3])
            x = x.masked_fill(padded, 0.0)
        return x


class RecurrentLayer(nn.Module):
    """Batch norm over frames (except in the first layer), then an RNN whose directions are summed.

    The input side of a layer with a rank is two factors: a projection that both directions share
    (Kliegl et al., 2017), and the RNN's own input weights.

    Args:
        shape: kind, sizes and directions of the RNN.
        inputs: number of input features of a frame.
        index: position among the recurrent layers, from 0; the first one has no batch norm.

    Attributes:
        projection: first factor, without bias; None for a layer without a rank.
        packed: True packs sequences; None packs them if that is faster.
        cells: list to which an LSTM in training adds cell states (1, utterances, units) from
            several moments, those of the longest utterance at its end included; None adds none.
    """

    packed: bool | None = None
    cells: list[Tensor] | None = None

    def __init__(self, shape: ModelShape, inputs: int, index: int) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(inputs, shape.norm_eps) if index else None
        rank, units = shape.input_ranks[index], shape.units[index]
        self.projection = nn.Linear(inputs, rank, bias=False) if rank else None
        self.rnn = CELLS[shape.rnn](rank or inputs, units, bidirectional=shape.bidirectional)
        if shape.rnn == "lstm":
            self._begin_by_remembering()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map (time, batch, inputs) to (time, batch, hidden), zero on padded frames."""
        packed = x.is_cuda if self.packed is None else self.packed
        cells = self.cells if self.training else None
        padded = (torch.arange(len(x), device=x.device)[:, None] >= lengths)[:, :, None]
        if not (packed or self.training or torch.is_grad_enabled()):
            short = run_in_short_pieces(self.rnn, x, lengths, self.prepared)
            return short.masked_fill_(padded, 0.0)
        x = self.prepared(x)
        if packed:
            outputs = self._packed(x, lengths, cells)
        else:
            outputs = run_unpacked(self.rnn, x, lengths, cells)
        return outputs.masked_fill(padded, 0.0)

    def prepared(self, x: Tensor) -> Tensor:
        """Apply batch norm and projection to x (time, batch, inputs): the input of the RNN."""
        if self.batch_norm is not None:
            x = over_frames(self.batch_norm, x)
        return x if self.projection is None else self.projection(x)

    def _begin_by_remembering(self) -> None:
        """Open the forget gates initially, which speeds up learning (Jozefowicz et al., 2015)."""
        for name, bias in self.rnn.named_parameters():
            if name.startswith("bias_ih"):
                with torch.no_grad():
                    bias[self.rnn.hidden_size : 2 * self.rnn.hidden_size] = 1.0

    def _packed(self, x: Tensor, lengths: Tensor, cells: list[Tensor] | None) -> Tensor:
        """Run the RNN on packed sequences, which is fast with cuDNN."""
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
        outputs, states = self.rnn(packed)
        if cells is not None and isinstance(states, tuple):
            cells.append(states[1])
        outputs = nn.utils.rnn.pad_packed_sequence(outputs, total_length=len(x))[0]
        if not self.rnn.bidirectional:
            return outputs
        return outputs.view(*outputs.shape[:2], 2, -1).sum(2)


class Lookahead(nn.Module):
    """Weighted sum of each unit over future frames (Wang et al., 2016), then Hardtanh.

    Args:
        units: number of units of a frame.
        context: number of frames in the sum, including the current one.
    """

    def __init__(self, units: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.conv = nn.Conv1d(units, units, context, groups=units, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (time, batch, units) to the same shape."""
        x = F.pad(x.permute(1, 2, 0), (0, self.context - 1))
        return self.clip(self.conv(x).permute(2, 0, 1))

    def clip(self, x: Tensor) -> Tensor:
        """Apply the Hardtanh."""
        return F.hardtanh(x, 0.0, LARGEST_ACTIVATION)


def pack_sequences(network: DeepSpeech2) -> DeepSpeech2:
    """Make a network pack its sequences on a CPU too, as deepspeech.pytorch does.

    The results are the same; benchmarks use it as their reference.

    Returns:
        The given network.
    """
    for layer in network.rnns:
        assert isinstance(layer, RecurrentLayer)
        layer.packed = True
    return network


def valid_frames(lengths: Tensor, time: int) -> Tensor:
    """Make a mask (batch, 1, 1, time), True for frames before the utterance's length."""
    return (torch.arange(time, device=lengths.device) < lengths[:, None])[:, None, None, :]


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision, which autocast produces, to float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def over_frames(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Apply batch norm with statistics over all frames of the batch, including padding."""
    return cast(Tensor, norm(x.flatten(0, 1))).view_as(x)
