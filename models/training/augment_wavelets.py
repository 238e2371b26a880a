"""The filters of adaptive augmentation, and the two operations that use them: warping and band-wise amplification.

Karras et al., "Training Generative Adversarial Networks with Limited Data" (arXiv:2006.06676), appendix B.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.padded_conv import padded_conv2d
from kernels.upfirdn2d import Resampling, downsample2d, setup_filter, upsample2d

# Daubechies' least asymmetric wavelet of six vanishing moments ("sym6"), low-pass
_SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
# that of two vanishing moments ("sym2"), which has a closed form
_SYM2 = np.array([1 - math.sqrt(3), 3 - math.sqrt(3), 3 + math.sqrt(3), 1 + math.sqrt(3)]) / (4 * math.sqrt(2))
NUM_BANDS = 4


def warp_filter() -> Tensor:
    """The low-pass `[12]` between which images are warped; its sum is 1."""
    return setup_filter(_SYM6)


def band_filters() -> Tensor:
    """Symmetric filters `[4, 43]` of one frequency band each, lowest first; their sum is the unit impulse."""
    signs = (-1.0) ** np.arange(len(_SYM2))
    low = np.convolve(_SYM2, _SYM2[::-1]) / 2
    high = np.convolve(_SYM2 * signs, (_SYM2 * signs)[::-1]) / 2
    bank = np.eye(NUM_BANDS, 1)
    for band in range(1, NUM_BANDS):
        stuffed = np.zeros((NUM_BANDS, 2 * bank.shape[1] - 1))
        stuffed[:, ::2] = bank
        bank = np.stack([np.convolve(row, low) for row in stuffed])
        start = (bank.shape[1] - len(high)) // 2
        bank[band, start : start + len(high)] += high
    return torch.as_tensor(bank, dtype=torch.float32)


def warp(images: Tensor, inverse: Tensor, fir: Tensor) -> Tensor:
    """Resample `[N, C, H, W]` at the places that `inverse` `[N, 3, 3]` maps output pixels to. Twice differentiable.

    Pixels are counted from the centre of the image, x first. What lies outside is the mirror image, as far as one
    reflection reaches. Between two filterings with `fir` `[n]` the images have twice the resolution.
    """
    height, width = images.shape[2:]
    edge = len(fir) // 4  # output pixels that the filter needs beyond each side
    left, right, top, bottom = _margins(inverse, (width, height), 2 * edge)
    images = F.pad(images, [left, right, top, bottom], mode="reflect")
    images = upsample2d(images, fir, Resampling(up=2))
    # padding moves the centre, and in doubled pixels the even samples, not the centres, are where the pixels were
    to_padded = _translation((left - right) / 2, (top - bottom) / 2)
    to_doubled = _translation(-0.5, -0.5) @ _scaling(2, 2)
    inverse = (to_doubled @ to_padded).to(inverse) @ inverse @ to_doubled.inverse().to(inverse)
    size = (2 * (height + 2 * edge), 2 * (width + 2 * edge))
    # affine_grid has the image from -1 to 1
    from_unit = _scaling(size[1] / 2, size[0] / 2).to(inverse)
    theta = _scaling(2 / images.shape[3], 2 / images.shape[2]).to(inverse) @ inverse @ from_unit
    grid = F.affine_grid(theta[:, :2], [*images.shape[:2], *size], align_corners=False)
    return downsample2d(sample_bilinear(images, grid), fir, Resampling(down=2, padding=-2 * edge, flip_filter=True))


def amplify_bands(images: Tensor, gains: Tensor, bank: Tensor) -> Tensor:
    """Scale each frequency band of `[N, C, H, W]` by its gain, `[N, bands]`; the edges are mirrored.

    Raises:
        ValueError: the images are too small for the filters of `bank`, `[bands, n]`.
    """
    n, channels, height, width = images.shape
    pad = bank.shape[1] // 2
    if min(height, width) <= pad:
        raise ValueError(
            f"imgfilter: images of {width}x{height}; its filters need more than {pad} pixels, set imgfilter=0"
        )
    taps = (gains @ bank.to(gains)).to(images).repeat_interleave(channels, dim=0)[:, None, None, :]
    folded = F.pad(images.reshape(1, n * channels, height, width), [pad] * 4, mode="reflect")
    for weight in (taps, taps.transpose(2, 3)):
        folded = padded_conv2d(folded, weight, (0, 0, 0, 0), groups=n * channels)
    return folded.reshape(images.shape)


def sample_bilinear(images: Tensor, grid: Tensor) -> Tensor:
    """`grid_sample` with zeros outside, `align_corners` off and no gradient to the grid; twice differentiable."""
    sampled: Tensor = _Sample.apply(images, grid)
    return sampled


# Up to torch 2.11 at least, the gradient of grid_sample has no derivative. Both are linear in their first argument and
# adjoint to each other, so each is the other's gradient.
class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return F.grid_sample(images, grid, align_corners=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(grads[0], grid, ctx.shape), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        like = values.new_zeros(()).expand(shape)  # only its shape matters
        bilinear, zeros, align_corners, wanted = 0, 0, False, [True, False]
        spread: Tensor = torch.ops.aten.grid_sampler_2d_backward(
            values, like, grid, bilinear, zeros, align_corners, wanted
        )[0]
        return spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(grads[0], grid), None, None


def _margins(inverse: Tensor, size: tuple[int, int], extra: int) -> tuple[int, int, int, int]:
    """Pixels to pad left, right, above and below, so that all samples of the batch find theirs."""
    centre = (torch.tensor(size, dtype=inverse.dtype) - 1) / 2
    signs = torch.tensor([[-1, 1, -1, 1], [-1, -1, 1, 1]], dtype=inverse.dtype)
    corners = torch.cat([centre[:, None] * signs, torch.ones_like(signs[:1])])
    reached = (inverse.detach().cpu() @ corners)[:, :2].transpose(0, 1).flatten(1)  # [2, N * 4]
    need = torch.stack([-reached.amin(1), reached.amax(1)]) + extra - centre
    (left, top), (right, bottom) = torch.minimum(need.clamp(min=0), 2 * centre).ceil().int().tolist()
    return left, right, top, bottom


def _translation(x: float, y: float) -> Tensor:
    return torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float64)


def _scaling(x: float, y: float) -> Tensor:
    return torch.tensor([[x, 0, 0], [0, y, 0], [0, 0, 1]], dtype=torch.float64)
