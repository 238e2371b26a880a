"""Standard deviation over groups of samples, which lets a discriminator see variety.

Karras et al. 2018, "Progressive Growing of GANs" (arXiv 1710.10196), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import select

EPSILON = 1e-8


def minibatch_std(x: Tensor, group_size: int | None, num_channels: int = 1) -> Tensor:
    """Append to `x` `[N, C, H, W]` the standard deviation over groups, giving `[N, C + num_channels, H, W]`.

    A group is `group_size` samples (None, or more than N: all), N / group_size apart; N must be a multiple of it.
    """
    return select("minibatch_std", x)(x, group_size, num_channels)


def minibatch_std_reference(x: Tensor, group_size: int | None, num_channels: int = 1) -> Tensor:
    """PyTorch implementation of `minibatch_std`."""
    n, c, h, w = x.shape
    group = n if group_size is None else min(group_size, n)
    if n % group or c % num_channels:
        raise ValueError(
            f"minibatch_std: batch {n} with group_size {group_size}, {c} channels with num_channels {num_channels}; "
            "allowed is a batch that is a multiple of the group and channels that are a multiple of num_channels"
        )
    grouped = x.reshape(group, n // group, num_channels, c // num_channels, h, w)
    variance = (grouped - grouped.mean(0)).square().mean(0)
    deviation = (variance + EPSILON).sqrt().mean((2, 3, 4))  # [n / group, num_channels]
    return torch.cat([x, deviation[:, :, None, None].repeat(group, 1, h, w)], dim=1)
