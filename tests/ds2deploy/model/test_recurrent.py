"""Recurrent layers in pieces of time against packed sequences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ds2deploy.model import recurrent as unpacked
from ds2deploy.model.network import CELLS
from ds2deploy.model.recurrent import PIECE_COST, Piece, run_unpacked, split


def packed(rnn: nn.RNNBase, x: Tensor, lengths: Tensor) -> Tensor:
    """What torch gives, directions summed."""
    sequences = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    found = nn.utils.rnn.pad_packed_sequence(rnn(sequences)[0], total_length=len(x))[0]
    return found.reshape(*x.shape[:2], -1, rnn.hidden_size).sum(2)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("cell", CELLS)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    extra=st.integers(0, 5),
    cost=st.sampled_from([0, 20, 1000]),
)
@settings(max_examples=15, deadline=None)
def test_is_the_same_in_any_number_of_pieces(
    cell: str, bidirectional: bool, lengths: list[int], extra: int, cost: int
):
    """Values on valid frames, and the gradients of the input and of every weight."""
    torch.manual_seed(0)
    rnn = CELLS[cell](3, 4, bidirectional=bidirectional)
    x, of_each = torch.randn(max(lengths) + extra, len(lengths), 3), torch.tensor(lengths)
    valid = (torch.arange(len(x))[:, None] < of_each)[:, :, None]
    slopes = torch.randn(*x.shape[:2], 4) * valid
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpacked, "PIECE_COST", cost)
        for way in (run_unpacked, packed):
            rnn.zero_grad()
            copy = x.clone().requires_grad_()
            output = way(rnn, copy, of_each)
            (output * slopes).sum().backward()
            weights = [parameter.grad.clone() for parameter in rnn.parameters()]
            found.append([output.detach() * valid, copy.grad, *weights])
    for ours, theirs in zip(*found, strict=True):
        # What float32 leaves of sums over 40 frames, in another order.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_under_autocast(cell: str, monkeypatch: pytest.MonkeyPatch):
    """Several pieces are one, to the two to three digits that bfloat16 has."""
    torch.manual_seed(0)
    rnn, x = CELLS[cell](8, 16, bidirectional=True), torch.randn(30, 4, 8)
    lengths = torch.tensor([30, 5, 18, 11])
    found = []
    for cost in (0, 1000):
        monkeypatch.setattr(unpacked, "PIECE_COST", cost)
        assert len(split([30, 18, 11, 5])) == (4 if cost == 0 else 1)
        rnn.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = run_unpacked(rnn, x, lengths)
        valid = (torch.arange(30)[:, None] < lengths)[:, :, None]
        (output * valid).float().square().sum().backward()
        found.append([output.float() * valid, *(p.grad.clone() for p in rnn.parameters())])
    for several, one in zip(*found, strict=True):
        assert (several - one).abs().max() < 0.02 * one.abs().max()


def test_pieces_where_they_pay():
    assert split([100]) == [Piece(100, 1, 1)]
    assert split([100, 100, 100]) == [Piece(100, 3, 3)]
    assert split([100, 100 - PIECE_COST]) == [Piece(100, 2, 1)], "as long as another piece takes"
    assert split([200, 199 - PIECE_COST]) == [
        Piece(199 - PIECE_COST, 2, 2), Piece(1 + PIECE_COST, 1, 1)
    ]  # fmt: skip
    assert split([251, 236, 222, 208, 193, 179, 165, 151]) == [
        Piece(179, 8, 6), Piece(43, 5, 3), Piece(29, 2, 1)
    ]  # fmt: skip


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_no_choice_of_pieces_is_better(lengths: list[int]):
    """All choices of ends, one after the other."""
    lengths.sort(reverse=True)
    ends, best = sorted(set(lengths)), None
    for choice in range(1 << (len(ends) - 1)):
        cuts = [end for i, end in enumerate(ends[:-1]) if choice >> i & 1] + ends[-1:]
        begins = [0, *cuts[:-1]]
        cost = sum(
            PIECE_COST + (end - begin) * sum(length > begin for length in lengths)
            for begin, end in zip(begins, cuts, strict=True)
        )
        best = cost if best is None else min(best, cost)
    pieces = split(lengths)
    assert sum(PIECE_COST + piece.frames * piece.utterances for piece in pieces) == best
    assert sum(piece.frames for piece in pieces) == lengths[0]
