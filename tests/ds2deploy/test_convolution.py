"""The convolutions of training against torch's own, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ds2deploy import fourier
from ds2deploy.convolution import Convolution

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
"""Of float32 sums of some hundred products of the size of one; torch's own differ as much."""

FIRST = {"maps": 1, "stride": (2, 2)}
SECOND = {"maps": 3, "stride": (2, 1)}


def make(maps: int, stride: tuple[int, int]) -> Convolution:
    torch.manual_seed(0)
    return Convolution(maps, 4, (7, 5), stride=stride, padding=(3, 2))


def in_float64(layer: Convolution) -> nn.Conv2d:
    """Torch's own of the same weights."""
    maps, new_maps = layer.in_channels, layer.out_channels
    theirs = nn.Conv2d(maps, new_maps, layer.kernel_size, layer.stride, layer.padding)
    theirs.load_state_dict(layer.state_dict())
    return theirs.double()


@pytest.mark.parametrize("time", [1, 2, 30, 59, 60, 61, 200])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [FIRST, SECOND], ids=["first", "second"])
def test_values_and_gradients_are_torchs(kind: dict, layout: torch.memory_format, time: int):
    """A block has 60 new frames with this kernel."""
    ours = make(**kind).to(memory_format=layout)
    theirs = in_float64(ours)
    x = torch.randn(3, kind["maps"], 21, time).to(memory_format=layout)
    slopes = torch.randn_like(ours(x))
    found = []
    for layer, copy in ((ours, x.clone()), (theirs, x.double())):
        copy.requires_grad_()
        output = layer(copy)
        (output * slopes).sum().backward()
        found.append([output, copy.grad, layer.weight.grad, layer.bias.grad])
    for mine, expected in zip(*found, strict=True):
        assert mine.shape == expected.shape
        torch.testing.assert_close(mine.double(), expected, **TOLERANCE)


def test_at_the_networks_own_sizes():
    """Both layers, one behind the other; gradients as a share of the largest."""
    torch.manual_seed(0)
    first = Convolution(1, 32, (41, 11), stride=(2, 2), padding=(20, 5))
    second = Convolution(32, 32, (21, 11), stride=(2, 1), padding=(10, 5))
    x, slopes = torch.randn(2, 1, 161, 301), torch.randn(2, 32, 41, 151)
    found = []
    for layers in ((first, second), (in_float64(first), in_float64(second))):
        output = layers[1](layers[0](x.to(layers[0].weight.dtype)))
        (output * slopes).sum().backward()
        found.append([output, layers[0].weight.grad, layers[1].weight.grad])
    for mine, expected in zip(*found, strict=True):
        assert (mine - expected).abs().max() < 1e-5 * expected.abs().max()


def test_what_is_not_trained_in_float32_on_a_cpu_is_torchs(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(fourier, "convolve", lambda *_: calls.append("fourier"))
    layer, x = make(**SECOND), torch.randn(1, 3, 21, 30)
    theirs = nn.Conv2d.forward
    with torch.no_grad():
        assert torch.equal(layer(x), theirs(layer, x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    of_time = Convolution(3, 4, (7, 5), stride=(2, 2), padding=(3, 2))
    assert torch.equal(of_time(x), theirs(of_time, x))
    layer.double()(x.double())
    assert calls == []
    layer.float()(x)
    assert calls == ["fourier"]
