"""Group normalisation: the channels of a group get zero mean and unit variance, then a scale and a shift each.

Wu and He 2018, "Group Normalization" (arXiv 1803.08494), equation 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.dispatch import resolve


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """Number of groups, and what each channel is multiplied by and added to afterwards."""

    groups: int
    weight: Tensor  # [C]
    bias: Tensor  # [C]
    eps: float


def group_norm(x: Tensor, norm: GroupNorm, moments: Tensor | None = None) -> Tensor:
    """Normalise `x` `[N, C, H, W]`, in the precision of the weight, and return it in its own.

    `moments` `[2, N, C]`, mean and variance of each channel, are those that `modulated_conv2d_with_moments` gives:
    then `x` is read once, by a Triton kernel, and there is no gradient.
    """
    if moments is not None:
        factor, shift = _affine(norm, moments)
        return resolve("kernels.group_norm_triton:scale_and_shift_triton")(x, factor, shift)
    wide = x.to(norm.weight.dtype)
    # what is subtracted changes nothing but the rounding: of channels_last images torch takes the mean of squares
    # less the square of the mean, which has no digits left where the mean is large
    with torch.no_grad():
        means = wide.mean((2, 3)).unflatten(1, (norm.groups, -1)).mean(2)
        means = means.repeat_interleave(x.shape[1] // norm.groups, dim=1)
    centred = wide - means[:, :, None, None]
    return F.group_norm(centred, norm.groups, norm.weight, norm.bias, norm.eps).to(x.dtype)


def _affine(norm: GroupNorm, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and shift `[N, C]` of each channel."""
    mean, variance = moments.unflatten(2, (norm.groups, -1))  # [N, groups, channels]
    of_group = mean.mean(2, keepdim=True)
    spread = (variance + (mean - of_group).square()).mean(2, keepdim=True)
    weight, bias = (values.float().view(norm.groups, -1) for values in (norm.weight, norm.bias))
    factor = (spread + norm.eps).rsqrt() * weight
    return factor.flatten(1), (bias - of_group * factor).flatten(1)
