"""Convolutions of the network that train faster than torch's on a CPU in float32.

* The input of the first layer has a single map, for which oneDNN has no fast kernel of the weight
  gradient on some processors: for eight utterances of 5 s it takes 32 ms on two cores of an AMD
  Zen 4, but 250 ms on a Zen 3. Here it is a matrix product for each bin, which takes 33 ms on the
  Zen 4.
* The second layer, which has most of the operations, uses a Fourier transform: forward and
  backward pass take 0.22 s, and 0.48 s with torch (the same batch, on the Zen 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FourierConv2d(nn.Conv2d):
    """Replacement of `torch.nn.Conv2d` that trains faster on a CPU in float32.

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
        if not self._is_trained_on_a_cpu(input):
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

    def _is_trained_on_a_cpu(self, x: Tensor) -> bool:
        in_float32 = x.dtype == self.weight.dtype == torch.float32
        if not in_float32 or torch.is_autocast_enabled("cpu"):
            return False
        return x.device.type == "cpu" and torch.is_grad_enabled()


class _OfOneMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
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


def _grad_weight(
    grad_output: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any
) -> Tensor:
    """Compute the weight gradient with one matrix product for each bin of the output."""
    maps, _, kernel_bins, kernel_frames = weight.shape
    batch, _, bins, time = grad_output.shape
    x = F.pad(x[:, 0], (padding[1], padding[1], padding[0], padding[0])).contiguous()
    _, all_bins, all_time = x.shape
    # Input frames for each frame of the kernel: (bins, kernel frames, batch, time'). With those of
    # neighbouring bins, the input of an output bin is contiguous in memory.
    seen = x.as_strided(
        (all_bins, kernel_frames, batch, time),
        (all_time, 1, all_bins * all_time, stride[1]),
    ).contiguous()
    of_bin = kernel_frames * batch * time
    seen = seen.as_strided(
        (bins, kernel_bins * kernel_frames, batch * time), (stride[0] * of_bin, batch * time, 1)
    )
    grad_output = grad_output.permute(2, 0, 3, 1).reshape(bins, batch * time, maps)
    return torch.bmm(seen, grad_output).sum(0).T.reshape(weight.shape)


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
        x: (batch, maps, bins, time) float32; fastest in channels-last.
        weight: (new maps, maps, kernel bins, kernel frames), at most `MOST_FRAMES` kernel frames.
        bias: (new maps,).
        stride: stride over bins.
        padding: number of zeros on either side of the bins and of time.

    Returns:
        (batch, new maps, bins', time') float32, in channels-last.
    """
    new_maps, kernel_frames = len(weight), weight.shape[3]
    time = x.shape[3] + 2 * padding[1] - kernel_frames + 1
    forward, inverse = _transforms(x.device, BLOCK - kernel_frames + 1)
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


def _transforms(device: torch.device, new: int) -> tuple[Tensor, Tensor]:
    """Make the matrices of the real Fourier transform, with interleaved real and imaginary parts.

    Returns:
        forward (BLOCK + 2, BLOCK), and inverse (new, BLOCK + 2), which only yields the first
        `new` frames.
    """
    size = BLOCK // 2 + 1
    forward = torch.view_as_real(torch.fft.rfft(torch.eye(BLOCK, device=device)))
    units = torch.view_as_complex(torch.eye(2 * size, device=device).view(-1, size, 2))
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
