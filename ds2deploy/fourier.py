"""Convolution over frequency and time, its sums over time by Fourier transform.

Over the 11 frames that the second kernel of DeepSpeech 2 sees, a product in the frequency domain
needs a quarter of the multiplications (Mathieu, Henaff and LeCun, *Fast Training of Convolutional
Networks through FFTs*, 2014). Time is cut into overlapping blocks (overlap-save), which are
transformed by a small matrix; what is left is a convolution over frequency bins, of each
coefficient by itself, for which torch has a fast kernel. All of it is differentiable as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Frames of a block. Blocks of 32, two thirds of which are new to a kernel of 11 frames, took a
quarter more time (two cores, AMD Zen 4)."""

MOST_FRAMES = BLOCK // 2 + 1
"""Of a kernel: a block overlaps with its neighbour alone."""


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: Sequence[Any]
) -> Tensor:
    """What `torch.nn.functional.conv2d` gives, with a stride of 1 over time.

    Args:
        x: (batch, maps, bins, time) float32; fastest in channels-last.
        weight: (new maps, maps, kernel bins, kernel frames), of at most `MOST_FRAMES`.
        bias: (new maps,).
        stride: over bins.
        padding: zeros on either side of the bins and of time.

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
    """Overlapping pieces of time: (batch, bins, blocks, BLOCK, maps)."""
    new = BLOCK - kernel_frames + 1
    count = -(-time // new)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, (count + 1) * new - padding - x.shape[3]))
    pieces = torch.unflatten(x, 2, (count + 1, new))
    return torch.cat([pieces[:, :, :-1], pieces[:, :, 1:, : kernel_frames - 1]], dim=3)


def _transforms(device: torch.device, new: int) -> tuple[Tensor, Tensor]:
    """Matrices of the real Fourier transform, real and imaginary parts in turns.

    forward (BLOCK + 2, BLOCK), and inverse (new, BLOCK + 2), which gives the first frames alone.
    """
    size = BLOCK // 2 + 1
    forward = torch.view_as_real(torch.fft.rfft(torch.eye(BLOCK, device=device)))
    units = torch.view_as_complex(torch.eye(2 * size, device=device).view(-1, size, 2))
    inverse = torch.fft.irfft(units, BLOCK)[:, :new]
    return forward.permute(1, 2, 0).reshape(2 * size, BLOCK), inverse.T.contiguous()


def _kernels(weight: Tensor) -> Tensor:
    """For each coefficient the conjugate's product in real numbers, over bins.

    (coefficients * 2 * new maps, 2 * maps, kernel bins, 1): real parts, then imaginary ones.
    """
    spectrum = torch.fft.rfft(weight, BLOCK)
    real, imaginary = spectrum.real, spectrum.imag
    of_real = torch.cat([real, imaginary], dim=1)
    of_imaginary = torch.cat([-imaginary, real], dim=1)
    rows = torch.cat([of_real, of_imaginary])  # (2 * new maps, 2 * maps, bins, coefficients)
    return rows.permute(3, 0, 1, 2).flatten(0, 1)[..., None]
