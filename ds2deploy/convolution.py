"""The network's convolutions, trained on a CPU in float32 without waiting for torch's.

* The first layer sees a single map, for which oneDNN's gradient of the weights has no fast kernel
  everywhere: of eight utterances of 5 s it takes 32 ms on two cores of an AMD Zen 4, but 250 ms on
  a Zen 3. Here it is a product of matrices for each bin, which takes 33 ms on the Zen 4.
* The second layer, where most of the operations are, goes through a Fourier transform: forward and
  backward 0.22 s, against 0.48 by torch (the same batch, on the Zen 4).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds2deploy import fourier


class Convolution(nn.Conv2d):
    """`torch.nn.Conv2d`, but for the time that it takes to train on a CPU, in float32.

    Padding is of zeros, and neither dilation nor groups are known.
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
        """(batch, maps, bins, time) to the same with its own maps."""
        if not self._is_trained_on_a_cpu(input):
            return super().forward(input)
        if self.in_channels == 1:
            found: Tensor = _OfOneMap.apply(  # type: ignore[no-untyped-call]
                input, self.weight, self.bias, self.stride, self.padding
            )
            return found
        if self.stride[1] == 1 and self.kernel_size[1] <= fourier.MOST_FRAMES:
            assert self.bias is not None
            return fourier.convolve(input, self.weight, self.bias, self.stride[0], self.padding)
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
    """For each bin of the output a product over all frames of all utterances."""
    maps, _, kernel_bins, kernel_frames = weight.shape
    batch, _, bins, time = grad_output.shape
    x = F.pad(x[:, 0], (padding[1], padding[1], padding[0], padding[0])).contiguous()
    _, all_bins, all_time = x.shape
    # What the kernel's frames look at, one after the other: (bins, kernel frames, batch, time').
    # With the frames of neighbouring bins that is all that a bin of the output needs, in one piece.
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
