"""Convolutions of the network that are faster on a CPU than torch's: in training, and in float64.

* The input of the first layer has a single map, for which oneDNN has no fast kernel of the weight
  gradient on some processors: for eight utterances of 5 s it takes 32 ms on two cores of an AMD
  Zen 4, but 250 ms on a Zen 3. Here it is a matrix product for each bin, which takes 33 ms on the
  Zen 4.
* The second layer, which has most of the operations, uses a Fourier transform: forward and
  backward pass take 0.22 s, and 0.48 s with torch (the same batch, on the Zen 4).

In float64, the reference of every parity check, torch has no fast convolution at all. For eight
utterances of 4.6 s, on one core of a Zen 4, the first layer takes a quarter of torch's time as a
matrix product for each bin, the second one an eighth with the Fourier transform; results differ by
7e-14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FourierConv2d(nn.Conv2d):
    """Replacement of `torch.nn.Conv2d` that is faster on a CPU: in training, and in float64.

    It pads with zeros, and supports neither dilation nor groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (batch, maps, bins, time) to (batch, new maps, bins', time')."""
        if not self._is_slow_in_torch(input):
            return super().forward(input)
        if self.in_channels == 1:
            found: Tensor = _OfOneMap.apply(  # type: ignore[no-untyped-call]
                input, self.weight, self.bias, self.stride, self.padding
            )
            return found
        if self.stride[1] == 1 and self.kernel_size[1] <= MOST_FRAMES:
            assert self.bias is not None
            return fourier_convolve(input, self.weight, self.bias, self.stride[0], self.padding)
        return super().forward(input)

    def _is_slow_in_torch(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or x.dtype != self.weight.dtype:
            return False
        if x.dtype == torch.float64:
            return len(x) * x.shape[3] > BLOCK  # the kernels' transform takes longer than these
        in_float32 = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return in_float32 and torch.is_grad_enabled()


class _OfOneMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        if x.dtype == torch.float64:
            return _convolve_one_map(x, weight, bias, stride, padding)
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad_output,) = grads
        x, weight = ctx.saved_tensors
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            rest = ((1, 1), False, (0, 0), 1, (True, False, False))
            grad_input = torch.ops.aten.convolution_backward(
                grad_output, x, weight, None, ctx.stride, ctx.padding, *rest
            )[0]
        if ctx.needs_input_grad[1]:
            grad_weight = _grad_weight(grad_output, x, weight, ctx.stride, ctx.padding)
        return grad_input, grad_weight, grad_output.sum((0, 2, 3)), None, None


def _convolve_one_map(x: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any) -> Tensor:
    """Compute the convolution with one matrix product for each bin of the output."""
    windows, (bins, batch, time) = _windows(x, weight, stride, padding)
    kernels = weight.flatten(1).expand(bins, -1, -1)
    y = torch.baddbmm(bias[:, None], kernels, windows)
    return y.view(bins, len(weight), batch, time).permute(2, 1, 0, 3)


def _grad_weight(
    grad_output: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any
) -> Tensor:
    """Compute the weight gradient with one matrix product for each bin of the output."""
    windows, (bins, batch, time) = _windows(x, weight, stride, padding)
    grad_output = grad_output.permute(2, 0, 3, 1).reshape(bins, batch * time, len(weight))
    return torch.bmm(windows, grad_output).sum(0).T.reshape(weight.shape)


def _windows(
    x: Tensor, weight: Tensor, stride: Any, padding: Any
) -> tuple[Tensor, tuple[int, int, int]]:
    """Collect what each output of a convolution of one map sees.

    Returns:
        (bins', kernel bins * kernel frames, batch * time'), and bins', batch and time'.
    """
    _, _, kernel_bins, kernel_frames = weight.shape
    x = F.pad(x[:, 0], (padding[1], padding[1], padding[0], padding[0])).contiguous()
    batch, all_bins, all_time = x.shape
    bins = (all_bins - kernel_bins) // stride[0] + 1
    time = (all_time - kernel_frames) // stride[1] + 1
    # Input frames for each frame of the kernel: (bins, kernel frames, batch, time'). With those of
    # neighbouring bins, the input of an output bin is contiguous in memory.
    seen = x.as_strided(
        (all_bins, kernel_frames, batch, time),
        (all_time, 1, all_bins * all_time, stride[1]),
    ).contiguous()
    of_bin = kernel_frames * batch * time
    windows = seen.as_strided(
        (bins, kernel_bins * kernel_frames, batch * time), (stride[0] * of_bin, batch * time, 1)
    )
    return windows, (bins, batch, time)


BLOCK = 64
"""Number of frames in a block. Blocks of 32 frames took a quarter more time with a kernel of 11
frames, because a third of each block overlaps the previous one (two cores, AMD Zen 4)."""

MOST_FRAMES = BLOCK // 2 + 1
"""Maximum number of frames of a kernel, so that a block only overlaps its neighbour."""


def fourier_convolve(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: Sequence[Any]
) -> Tensor:
    """Compute `torch.nn.functional.conv2d` with a stride of 1 over time.

    Args:
        x: (batch, maps, bins, time) float32 or float64; fastest in channels-last.
        weight: (new maps, maps, kernel bins, kernel frames), at most `MOST_FRAMES` kernel frames,
            of the type of `x`.
        bias: (new maps,).
        stride: stride over bins.
        padding: number of zeros on either side of the bins and of time.

    Returns:
        (batch, new maps, bins', time') of the type of `x`, in channels-last.
    """
    new_maps, kernel_frames = len(weight), weight.shape[3]
    time = x.shape[3] + 2 * padding[1] - kernel_frames + 1
    forward, inverse = _transforms(x, BLOCK - kernel_frames + 1)
    kernels = _kernels(weight)
    # (batch, bins, blocks, coefficients * 2, maps): in channels-last, a map for each coefficient.
    spectrum = torch.matmul(forward, _blocks(x, kernel_frames, padding[1], time))
    rows = spectrum.shape[3]
    spectrum = spectrum.flatten(3).permute(0, 3, 1, 2)
    y = F.conv2d(spectrum, kernels, None, (stride, 1), (padding[0], 0), groups=rows // 2)
    y = torch.unflatten(y.permute(0, 2, 3, 1), 3, (rows, new_maps))
    y = torch.matmul(inverse, y).flatten(2, 3)[:, :, :time] + bias
    return y.permute(0, 3, 1, 2)


def _blocks(x: Tensor, kernel_frames: int, padding: int, time: int) -> Tensor:
    """Split time into overlapping blocks: (batch, bins, blocks, BLOCK, maps)."""
    new = BLOCK - kernel_frames + 1
    count = -(-time // new)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, (count + 1) * new - padding - x.shape[3]))
    pieces = torch.unflatten(x, 2, (count + 1, new))
    return torch.cat([pieces[:, :, :-1], pieces[:, :, 1:, : kernel_frames - 1]], dim=3)


def _transforms(like: Tensor, new: int) -> tuple[Tensor, Tensor]:
    """Make the matrices of the real Fourier transform, with interleaved real and imaginary parts.

    They have the type and the device of `like`.

    Returns:
        forward (BLOCK + 2, BLOCK), and inverse (new, BLOCK + 2), which only yields the first
        `new` frames.
    """
    size = BLOCK // 2 + 1
    forward = torch.view_as_real(torch.fft.rfft(torch.eye(BLOCK).to(like)))
    units = torch.view_as_complex(torch.eye(2 * size).to(like).view(-1, size, 2))
    inverse = torch.fft.irfft(units, BLOCK)[:, :new]
    return forward.permute(1, 2, 0).reshape(2 * size, BLOCK), inverse.T.contiguous()


def _kernels(weight: Tensor) -> Tensor:
    """Make real kernels that multiply by the conjugate, for each coefficient.

    Returns:
        (coefficients * 2 * new maps, 2 * maps, kernel bins, 1): real parts, then imaginary parts.
    """
    spectrum = torch.fft.rfft(weight, BLOCK)
    real, imaginary = spectrum.real, spectrum.imag
    of_real = torch.cat([real, imaginary], dim=1)
    of_imaginary = torch.cat([-imaginary, real], dim=1)
    rows = torch.cat([of_real, of_imaginary])  # (2 * new maps, 2 * maps, bins, coefficients)
    return rows.permute(3, 0, 1, 2).flatten(0, 1)[..., None]
