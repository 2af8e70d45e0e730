"""The reference network: the article's shapes, the original's mathematics, padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ds2deploy.model import recurrent as unpacked
from ds2deploy.model.network import DeepSpeech2
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.geometry import output_length

CELLS = ["lstm", "gru", "rnn"]


def test_the_articles_numbers():
    """Shapes of a batch of 16 with 457 frames, layer by layer."""
    network = DeepSpeech2(ModelShape(hidden=32, layers=2)).eval()
    seen: dict[str, tuple[int, ...]] = {}

    def record(name: str, of_input: bool):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = tuple((inputs[0] if of_input else output).shape)

        return hook

    network.conv.register_forward_hook(record("convolutions", of_input=False))
    network.rnns[0].register_forward_hook(record("first RNN's input", of_input=True))
    network.output.register_forward_hook(record("output", of_input=False))
    log_probs, lengths = network(torch.zeros(16, 1, 161, 457), torch.full((16,), 457))
    assert seen == {
        "convolutions": (16, 32, 41, 229),
        "first RNN's input": (229, 16, 1312),
        "output": (229, 16, 29),
    }
    assert log_probs.shape == (16, 229, 29)
    assert lengths.tolist() == [229] * 16
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(16, 229))


class Original(nn.Module):
    """The same weights the way deepspeech.pytorch uses them: a mask in a loop, packed sequences."""

    def __init__(self, network: DeepSpeech2) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        network, x = self.network, features
        valid = torch.tensor([output_length(int(length)) for length in lengths])
        for layer in network.conv.layers:
            x = layer(x)
            mask = torch.zeros_like(x, dtype=torch.bool)
            for i, length in enumerate(valid):
                mask[i, :, :, length:] = True
            x = x.masked_fill(mask, 0)
        x = x.reshape(x.shape[0], -1, x.shape[3]).permute(2, 0, 1)
        for layer in network.rnns:
            if layer.batch_norm is not None:
                x = layer.batch_norm(x.reshape(-1, x.shape[2])).reshape(x.shape)
            packed = nn.utils.rnn.pack_padded_sequence(x, valid, enforce_sorted=False)
            x = nn.utils.rnn.pad_packed_sequence(layer.rnn(packed)[0], total_length=len(x))[0]
            if layer.rnn.bidirectional:
                x = x.reshape(x.shape[0], x.shape[1], 2, -1).sum(2)
        if network.lookahead is not None:
            context = network.lookahead.context
            x = nn.functional.pad(x.transpose(0, 1).transpose(1, 2), (0, context - 1))
            x = network.lookahead.conv(x).transpose(1, 2).transpose(0, 1).clamp(0, 20)
        x = network.output_norm(x.reshape(-1, x.shape[2])).reshape(x.shape)
        return network.output(x).log_softmax(-1).transpose(0, 1)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("bidirectional", [True, False], ids=["both ways", "lookahead"])
@pytest.mark.parametrize("cell", CELLS)
def test_agrees_with_packed_sequences(
    cell: str, bidirectional: bool, training: bool, monkeypatch: pytest.MonkeyPatch
):
    """Values and gradients, over ragged lengths in any order, in as many pieces."""
    monkeypatch.setattr(unpacked, "PIECE_COST", 0)
    torch.manual_seed(1)
    shape = ModelShape(rnn=cell, hidden=12, layers=2, bidirectional=bidirectional, lookahead=4)
    network = DeepSpeech2(shape, bins=33, labels=5).train(training)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    lengths = torch.tensor([17, 40, 1, 26])
    features = torch.randn(4, 1, 33, 40) * (torch.arange(40) < lengths[:, None])[:, None, None]
    valid = (torch.arange(20) < (lengths[:, None] + 1) // 2)[:, :, None]
    weights = torch.randn(4, 20, 5) * valid

    results = []
    for module in (network, Original(network)):
        network.zero_grad()
        output = module(features, lengths)
        log_probs = output[0] if isinstance(output, tuple) else output
        (log_probs * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
        results.append((log_probs.detach() * valid, gradients))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-3, atol=1e-3, msg=name)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    extra=st.integers(0, 50),
    cell=st.sampled_from(CELLS),
    bidirectional=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_output_lengths(lengths: list[int], extra: int, cell: str, bidirectional: bool):
    torch.manual_seed(0)
    shape = ModelShape(rnn=cell, hidden=8, layers=1, bidirectional=bidirectional, lookahead=3)
    network = DeepSpeech2(shape, bins=17, labels=4).eval()
    time = max(lengths) + extra
    log_probs, output = network(torch.randn(len(lengths), 1, 17, time), torch.tensor(lengths))
    assert log_probs.shape == (len(lengths), output_length(time), 4)
    assert output.tolist() == [output_length(length) for length in lengths]


def test_values_in_the_padding_do_not_change_the_result():
    torch.manual_seed(0)
    network = DeepSpeech2(ModelShape(hidden=8, layers=2), bins=17, labels=4).eval()
    features, lengths = torch.randn(2, 1, 17, 30), torch.tensor([30, 12])
    expected = network(features, lengths)[0][1, :6]
    features[1, :, :, 12:] = float("nan")
    torch.testing.assert_close(network(features, lengths)[0][1, :6], expected)


@pytest.mark.parametrize("bidirectional", [True, False], ids=["both ways", "lookahead"])
@pytest.mark.parametrize("cell", CELLS)
def test_pieces_of_time_give_the_same(
    cell: str, bidirectional: bool, monkeypatch: pytest.MonkeyPatch
):
    """Without gradients, utterances of other lengths than whole pieces."""
    torch.manual_seed(0)
    shape = ModelShape(rnn=cell, hidden=16, layers=2, bidirectional=bidirectional)
    network = DeepSpeech2(shape).eval()
    features, lengths = torch.randn(3, 1, 161, 701), torch.tensor([701, 340, 5])
    whole, valid = network(features, lengths)  # with gradients: at once
    monkeypatch.setattr(unpacked, "FRAMES_ON_CPU", 120)
    monkeypatch.setattr(unpacked, "LEAST_FRAMES", 17)
    with torch.inference_mode():
        found, _ = network(features, lengths)
    for i, length in enumerate(valid):
        torch.testing.assert_close(found[i, :length], whole[i, :length], rtol=1e-5, atol=1e-5)


def test_no_tensor_of_long_audio_is_larger_than_a_layers_input(monkeypatch: pytest.MonkeyPatch):
    """The first convolution of all frames would be twice as large."""
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = function(*args, **(kwargs or {}))
            several = found if isinstance(found, (tuple, list)) else [found]
            sizes.extend(tensor.numel() for tensor in several if isinstance(tensor, Tensor))
            return found

    monkeypatch.setattr(unpacked, "FRAMES_ON_CPU", 256)
    network = DeepSpeech2(ModelShape(hidden=400, layers=1)).eval()
    with torch.no_grad(), Sizes():
        network(torch.randn(1, 1, 161, 3001), torch.tensor([3001]))
    assert max(sizes) == output_length(3001) * 1312
