"""Recurrent layer over utterances of different lengths on a CPU, without packing.

oneDNN's fused LSTM only takes whole tensors. On packed sequences torch computes step by step, which
takes more than twice as long. The utterances are therefore sorted, longest first, and time is split
into a few pieces; each piece only contains the utterances that have not ended. A GRU and a tanh RNN
are always computed step by step, and only save the frames of utterances that have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

PIECE_COST = 64
"""Cost of starting another piece, in frames of one utterance. Measured with layers of 512 units
over 8 utterances of 151 to 251 frames, forward and backward: 0.515 s in one piece, 0.482 s in two,
0.465 s in three, 0.495 s in four and 0.586 s in eight (two cores, AMD Zen 4)."""

FRAMES_ON_CPU, FRAMES_ON_GPU, LEAST_FRAMES = 4096, 16_384, 256
"""Output frames of all utterances that are computed at once without gradients (82 s on a CPU), and
frames of a piece at least, however many utterances there are."""


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
    directions = []
    for suffix, parts_of in _readings(rnn, lengths, order, pieces):
        indices = torch.cat(parts_of)
        inputs = x.flatten(0, 1).index_select(0, indices)
        parts = torch.split(inputs, [piece.frames * piece.utterances for piece in pieces])
        outputs = torch.cat(list(_direction(rnn, suffix, parts, pieces, cells)))
        padded = outputs.new_zeros(time * batch, rnn.hidden_size)
        directions.append(padded.index_copy(0, indices, outputs).view(time, batch, -1))
    return sum(directions[1:], directions[0])


def run_in_short_pieces(
    rnn: nn.RNNBase, x: Tensor, lengths: Tensor, prepare: Callable[[Tensor], Tensor]
) -> Tensor:
    """Run a layer without gradients in little memory: no piece is long, and each is read by itself.

    Args:
        rnn: see `run_unpacked`.
        x: (time, batch, inputs) floating point.
        lengths: (batch,) int64, number of valid frames.
        prepare: function that makes the input of the RNN, frame by frame: it takes and returns
            (frames, utterances, inputs).

    Returns:
        (time, batch, hidden) floating point, as `run_unpacked`.
    """
    time, batch, _ = x.shape
    lengths, order = lengths.sort(descending=True)
    pieces = shorten(split(lengths.tolist()), x)
    result = x.new_zeros(time * batch, rnn.hidden_size)
    for suffix, indices in _readings(rnn, lengths, order, pieces):
        parts = (
            prepare(x.flatten(0, 1).index_select(0, i).view(piece.frames, piece.utterances, -1))
            for i, piece in zip(indices, pieces, strict=True)
        )
        outputs = _direction(rnn, suffix, parts, pieces, None)
        for i, output in zip(indices, outputs, strict=True):
            result.index_add_(0, i, output.to(result.dtype))
    return result.view(time, batch, -1)


def frames_at_once(x: Tensor, utterances: int) -> int:
    """Return the most output frames of so many utterances to compute at once without gradients."""
    total = FRAMES_ON_GPU if x.is_cuda else FRAMES_ON_CPU
    return max(LEAST_FRAMES, total // utterances)


def shorten(pieces: Sequence[Piece], x: Tensor) -> list[Piece]:
    """Cut pieces that are longer than `frames_at_once` allows on the device of a tensor."""
    short = []
    for piece in pieces:
        most, left = frames_at_once(x, piece.utterances), piece.frames
        while left > 0:
            short.append(piece._replace(frames=min(most, left)))
            left -= most
    return short


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
        reaching_end = sum(length >= ends[j] for length in lengths)
        for i, (cost, before) in enumerate(best):
            piece = Piece(ends[j] - ends[i], going_on[i], reaching_end)
            ways.append((cost + PIECE_COST + piece.frames * piece.utterances, [*before, piece]))
        best.append(min(ways, key=lambda way: way[0]))
    return best[-1][1]


def _readings(
    rnn: nn.RNNBase, lengths: Tensor, order: Tensor, pieces: Sequence[Piece]
) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield each direction: the suffix of its weights, and the frames of each piece in its order.

    Frames are indices into (time * batch). `lengths` are sorted, longest first, and `order` has
    the utterances that they belong to.
    """
    batch = len(order)
    frames = torch.arange(int(lengths[0]), device=lengths.device)[:, None]
    yield "", _in_pieces(frames * batch + order, pieces)
    if rnn.bidirectional:
        backward = torch.where(frames < lengths, lengths - 1 - frames, frames)
        yield "_reverse", _in_pieces(backward * batch + order, pieces)


def _in_pieces(indices: Tensor, pieces: Sequence[Piece]) -> list[Tensor]:
    """Split (time, batch), longest utterance first, into one dimension for each piece."""
    parts = torch.split(indices, [piece.frames for piece in pieces])
    return [
        part[:, : piece.utterances].flatten() for part, piece in zip(parts, pieces, strict=True)
    ]


def _direction(
    rnn: nn.RNNBase,
    suffix: str,
    parts: Iterable[Tensor],
    pieces: Sequence[Piece],
    cells: list[Tensor] | None,
) -> Iterator[Tensor]:
    """Map the frames of each piece to (frames * utterances, hidden), passing states on."""
    states: list[Tensor] = []
    for piece, part in zip(pieces, parts, strict=True):
        part = part.view(piece.frames, piece.utterances, -1)
        if not states:
            zeros = part.new_zeros(1, piece.utterances, rnn.hidden_size)
            states = [zeros] * (2 if _is_lstm(rnn) else 1)
        states = [state[:, : piece.utterances].contiguous() for state in states]
        output, *states = advance(rnn, part, states, suffix)
        if cells is not None and _is_lstm(rnn):
            cells.append(states[1][:, : piece.reaching_end])
        yield output.flatten(0, 1)


def advance(
    rnn: nn.RNNBase, x: Tensor, states: Sequence[Tensor], suffix: str = ""
) -> tuple[Tensor, ...]:
    """Run one direction of a layer from given states.

    The layer itself may not be called from several threads: it keeps a list of its weights.

    Args:
        rnn: single layer of `LSTM`, `GRU` or `RNN` (tanh).
        x: (time, batch, inputs) floating point.
        states: (1, batch, hidden) each: one, and the cells of an LSTM.
        suffix: "_reverse" for the weights of the backward direction.

    Returns:
        Outputs (time, batch, hidden), and the states after the last frame.
    """
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weights = [cast(Tensor, getattr(rnn, name + suffix)) for name in names]
    options = (True, 1, 0.0, rnn.training, False, False)
    if _is_lstm(rnn):
        return tuple(torch.lstm(x, list(states), weights, *options))
    cell = torch.gru if rnn.mode == "GRU" else torch.rnn_tanh
    return tuple(cell(x, states[0], weights, *options))


def _is_lstm(rnn: nn.RNNBase) -> bool:
    return rnn.mode == "LSTM"
