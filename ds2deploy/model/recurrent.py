"""Recurrent layer over utterances of different lengths on a CPU, without packing.

oneDNN's fused LSTM only takes whole tensors. On packed sequences torch computes step by step, which
takes more than twice as long. The utterances are therefore sorted, longest first, and time is split
into a few pieces; each piece only contains the utterances that have not ended. A GRU and a tanh RNN
are always computed step by step, and only save the frames of utterances that have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

PIECE_COST = 64
"""Cost of starting another piece, in frames of one utterance. Measured with layers of 512 units
over 8 utterances of 151 to 251 frames, forward and backward: 0.515 s in one piece, 0.482 s in two,
0.465 s in three, 0.495 s in four and 0.586 s in eight (two cores, AMD Zen 4)."""


class Piece(NamedTuple):
    """Range of frames of the longest utterances.

    Attributes:
        frames: number of frames.
        utterances: number of utterances.
        reaching_end: number of them that do not end before the piece does.
    """

    frames: int
    utterances: int
    reaching_end: int


def run_unpacked(
    rnn: nn.RNNBase, x: Tensor, lengths: Tensor, cells: list[Tensor] | None = None
) -> Tensor:
    """Run a layer on padded utterances.

    For the backward direction, the valid frames of every utterance are reversed, so that it begins
    at the last valid frame. Padded frames never influence valid ones.

    Args:
        rnn: single layer of `LSTM`, `GRU` or `RNN` (tanh), in one or two directions.
        x: (time, batch, inputs) floating point.
        lengths: (batch,) int64, number of valid frames.
        cells: list to which cell states (1, utterances, hidden) of an LSTM are added, from several
            moments; of an utterance that ends within a piece, none may be from its end. None adds
            none.

    Returns:
        (time, batch, hidden) floating point, directions summed; undefined after the lengths.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # torch selects oneDNN's LSTM by the type of its input, float32. Autocast then converts it
        # to bfloat16, which oneDNN does not support on every processor.
        x = x.to(torch.get_autocast_dtype("cpu"))
    time, batch, _ = x.shape
    lengths, order = lengths.sort(descending=True)
    pieces = split(lengths.tolist())
    frames = torch.arange(int(lengths[0]), device=x.device)[:, None]

    def run(suffix: str, at: Tensor) -> Tensor:
        indices = _in_pieces(at * batch + order, pieces)
        inputs = x.flatten(0, 1).index_select(0, indices)
        outputs = _direction(rnn, suffix, inputs, pieces, cells)
        padded = outputs.new_zeros(time * batch, rnn.hidden_size)
        return padded.index_copy(0, indices, outputs).view(time, batch, -1)

    forward = run("", frames)
    if not rnn.bidirectional:
        return forward
    return forward + run("_reverse", torch.where(frames < lengths, lengths - 1 - frames, frames))


def has_bfloat16_lstm() -> bool:
    """Check that oneDNN has a bfloat16 LSTM for this processor; it needs at least AVX-512."""
    rnn = nn.LSTM(8, 8)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            rnn(torch.zeros(2, 1, 8))
    except RuntimeError:
        return False
    return True


def split(lengths: Sequence[int]) -> list[Piece]:
    """Split time into the pieces with the lowest total cost.

    Args:
        lengths: lengths of the utterances, in frames.

    Returns:
        Pieces that reach the end of the longest utterance.
    """
    ends = [0, *sorted(set(lengths))]
    going_on = [sum(length > end for length in lengths) for end in ends]
    best: list[tuple[int, list[Piece]]] = [(0, [])]  # best split up to each end
    for j in range(1, len(ends)):
        ways = []
        for i, (cost, before) in enumerate(best):
            reaching_end = sum(length >= ends[j] for length in lengths)
            piece = Piece(ends[j] - ends[i], going_on[i], reaching_end)
            ways.append((cost + PIECE_COST + piece.frames * piece.utterances, [*before, piece]))
        best.append(min(ways, key=lambda way: way[0]))
    return best[-1][1]


def _in_pieces(indices: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Flatten (time, batch), longest utterance first, to one dimension, piece after piece."""
    parts = torch.split(indices, [piece.frames for piece in pieces])
    return torch.cat(
        [part[:, : piece.utterances].flatten() for part, piece in zip(parts, pieces, strict=True)]
    )


def _direction(
    rnn: nn.RNNBase,
    suffix: str,
    x: Tensor,
    pieces: Sequence[Piece],
    cells: list[Tensor] | None,
) -> Tensor:
    """Map (frames of all pieces, inputs) to (frames, hidden), passing states between pieces."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weights = [cast(Tensor, getattr(rnn, name + suffix)) for name in names]
    options = (True, 1, 0.0, rnn.training, False, False)
    states = [x.new_zeros(1, pieces[0].utterances, rnn.hidden_size)] * (2 if _is_lstm(rnn) else 1)
    outputs = []
    parts = torch.split(x, [piece.frames * piece.utterances for piece in pieces])
    for piece, part in zip(pieces, parts, strict=True):
        part = part.view(piece.frames, piece.utterances, -1)
        states = [state[:, : piece.utterances].contiguous() for state in states]
        if _is_lstm(rnn):
            output, *states = torch.lstm(part, states, weights, *options)
            if cells is not None:
                cells.append(states[1][:, : piece.reaching_end])
        else:
            cell = torch.gru if rnn.mode == "GRU" else torch.rnn_tanh
            output, *states = cell(part, states[0], weights, *options)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs)


def _is_lstm(rnn: nn.RNNBase) -> bool:
    return rnn.mode == "LSTM"
