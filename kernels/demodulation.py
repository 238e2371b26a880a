"""Demodulation: the factors that give every output channel of a modulated convolution unit weight norm.

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958), equation 3:
`d_no = (sum_ik (s_ni w_oik)^2 + eps)^(-1/2)`, which is the matrix product `s^2 @ W2^T` with `W2_oi = sum_k w_oik^2`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import select

EPSILON = 1e-8


def demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """Return the factors `[N, O]` for `weight` `[O, I, k, k]` and `styles` `[N, I]`. Twice differentiable."""
    return select("demodulation", weight, styles)(weight, styles)


def weight_energy(weight: Tensor) -> Tensor:
    """Return `sum_k weight^2` `[O, I]`, in float32 or wider; it needs to be made anew only when the weight changes."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32)).square().sum((2, 3))


def demodulation_reference(weight: Tensor, styles: Tensor) -> Tensor:
    """PyTorch implementation of `demodulation`."""
    energy = weight_energy(weight)
    return (styles.to(energy.dtype).square() @ energy.T + EPSILON).rsqrt().to(styles.dtype)


def demodulation_naive(weight: Tensor, styles: Tensor) -> Tensor:
    """The same by making the weights `[N, O, I, k, k]` of all samples. The baseline that speed-ups divide by."""
    modulated = weight[None] * styles[:, None, :, None, None]
    return (modulated.square().sum((2, 3, 4)) + EPSILON).rsqrt()
