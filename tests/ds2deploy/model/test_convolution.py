"""The convolutions of training against torch's own, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ds2deploy.model import convolution as fourier
from ds2deploy.model.convolution import FourierConv2d, _OfOneMap

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
"""Of float32 sums of some hundred products of the size of one; torch's own differ as much."""

FIRST = {"maps": 1, "stride": (2, 2)}
SECOND = {"maps": 3, "stride": (2, 1)}


def make(maps: int, stride: tuple[int, int]) -> FourierConv2d:
    torch.manual_seed(0)
    return FourierConv2d(maps, 4, (7, 5), stride=stride, padding=(3, 2))


def in_float64(layer: FourierConv2d) -> nn.Conv2d:
    """Torch's own of the same weights."""
    maps, new_maps = layer.in_channels, layer.out_channels
    theirs = nn.Conv2d(maps, new_maps, layer.kernel_size, layer.stride, layer.padding)
    theirs.load_state_dict(layer.state_dict())
    return theirs.double()


def check(layer: FourierConv2d, x: torch.Tensor) -> None:
    """Compare values, and the gradients of input, weights and bias."""
    theirs = in_float64(layer)
    grad_output = torch.randn_like(layer(x))
    found = []
    for module, copy in ((layer, x.clone()), (theirs, x.double())):
        copy.requires_grad_()
        output = module(copy)
        (output * grad_output).sum().backward()
        found.append([output, copy.grad, module.weight.grad, module.bias.grad])
    for mine, expected in zip(*found, strict=True):
        assert mine.shape == expected.shape
        torch.testing.assert_close(mine.double(), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("time", "layout"),
    [
        *((time, torch.contiguous_format) for time in (1, 2, 30, 59, 60, 61, 200)),
        (1, torch.channels_last),
        (61, torch.channels_last),
    ],
)
@pytest.mark.parametrize("kind", [FIRST, SECOND], ids=["first", "second"])
def test_values_and_gradients_are_torchs(kind: dict, layout: torch.memory_format, time: int):
    """A block has 60 new frames with this kernel."""
    layer = make(**kind).to(memory_format=layout)
    check(layer, torch.randn(3, kind["maps"], 21, time).to(memory_format=layout))


@given(
    time=st.integers(1, 150),
    kernel_frames=st.integers(1, fourier.MOST_FRAMES + 1),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 16)),
    stride=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_any_split_into_blocks(
    time: int, kernel_frames: int, padding: tuple[int, int], stride: int
):
    """Also a kernel that is too long for the way of the second layer."""
    torch.manual_seed(0)
    if time + 2 * padding[1] < kernel_frames:
        time = kernel_frames
    layer = FourierConv2d(2, 3, (7, kernel_frames), stride=(stride, 1), padding=padding)
    check(layer, torch.randn(2, 2, 9, time))


@pytest.mark.parametrize("kind", [FIRST, SECOND], ids=["first", "second"])
def test_inputs_of_other_layouts(kind: dict):
    maps = kind["maps"]
    torch.manual_seed(0)
    layer = FourierConv2d(maps, 4, (7, 5), stride=kind["stride"], padding=(0, 0))
    check(layer, torch.randn(3, maps, 30, 21).transpose(2, 3))
    assert layer(torch.randn(0, maps, 21, 30)).shape[0] == 0


@pytest.mark.parametrize("time", [21, 22, 60, 61, 200])
@pytest.mark.parametrize("kind", [FIRST, SECOND], ids=["first", "second"])
def test_in_float64_it_is_exact_with_and_without_gradients(kind: dict, time: int):
    layer = make(**kind)
    theirs = in_float64(layer)
    layer, x = layer.double(), torch.randn(3, kind["maps"], 21, time, dtype=torch.float64)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(layer(x), theirs(x), rtol=1e-12, atol=1e-13)


def test_at_the_networks_own_sizes():
    """Both layers, one behind the other, to 1e-5 of the largest: float32 sums 7392 products."""
    torch.manual_seed(0)
    first = FourierConv2d(1, 32, (41, 11), stride=(2, 2), padding=(20, 5))
    second = FourierConv2d(32, 32, (21, 11), stride=(2, 1), padding=(10, 5))
    x, slopes = torch.randn(2, 1, 161, 301), torch.randn(2, 32, 41, 151)
    found = []
    for layers in ((first, second), (in_float64(first), in_float64(second))):
        output = layers[1](layers[0](x.to(layers[0].weight.dtype)))
        (output * slopes).sum().backward()
        found.append([output, layers[0].weight.grad, layers[1].weight.grad])
    for mine, expected in zip(*found, strict=True):
        assert (mine - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", [FIRST, SECOND], ids=["first", "second"])
def test_torchs_convolution_is_used_for_other_precisions_and_devices(
    kind: dict, monkeypatch: pytest.MonkeyPatch
):
    taken = []
    monkeypatch.setattr(fourier, "fourier_convolve", lambda *_: taken.append("second"))
    monkeypatch.setattr(_OfOneMap, "apply", lambda *_: taken.append("first"))
    layer, x = make(**kind), torch.randn(1, kind["maps"], 21, 70)
    with torch.no_grad():
        assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    of_time = FourierConv2d(3, 4, (7, 5), stride=(2, 2), padding=(3, 2))
    sound = torch.randn(1, 3, 21, 30)
    assert torch.equal(of_time(sound), nn.Conv2d.forward(of_time, sound))
    assert taken == []
    layer(x)
    layer.double()(x.double())
    assert taken == ["first" if kind is FIRST else "second"] * 2
