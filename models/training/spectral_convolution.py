"""Convolutions with spectral normalisation as torch does it: both singular vectors are stored, and used in evaluation.

Miyato et al., "Spectral Normalization for Generative Adversarial Networks" (arXiv:1802.05957), algorithm 1. Tensors
have the names of torch's own `spectral_norm` hook, whose modules can't be copied once they ran.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import fill_normal
from models.spectral_norm import fill_uniform

_EPSILON = 1e-12


class SpectralConvolution(nn.Module):
    """A weight `[out, in, *kernel]` that is divided by its largest singular value, and perhaps a bias `[out]`."""

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, shape: tuple[int, ...], *, bias: bool) -> None:
        super().__init__()
        self.weight_orig = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.register_buffer("weight_u", torch.zeros(shape[0]))
        self.register_buffer("weight_v", torch.zeros(math.prod(shape[1:])))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        reset_convolution(self.weight_orig, self.bias, rng)
        for vector in (self.weight_u, self.weight_v):
            fill_normal(vector, rng)
            vector.copy_(F.normalize(vector, dim=0, eps=_EPSILON))

    def normalized_weight(self) -> Tensor:
        """The weight over its norm; in training the singular vectors are improved first."""
        matrix = self.weight_orig.flatten(1)
        u, v = self.weight_u, self.weight_v
        if self.training:
            with torch.no_grad():
                v = F.normalize(matrix.t() @ u, dim=0, eps=_EPSILON)
                u = F.normalize(matrix @ v, dim=0, eps=_EPSILON)
                self.weight_v.copy_(v)
                self.weight_u.copy_(u)
        return self.weight_orig / torch.dot(u, matrix @ v)


class SpectralConv2d(SpectralConvolution):
    """Square convolution of `[N, Cin, H, W]`."""

    def __init__(
        self, channels: tuple[int, int], kernel_size: int, stride: int = 1, padding: int = 0, *, bias: bool
    ) -> None:
        super().__init__((channels[1], channels[0], kernel_size, kernel_size), bias=bias)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution."""
        return F.conv2d(x, self.normalized_weight(), self.bias, self.stride, self.padding)


class CircularSpectralConv1d(SpectralConvolution):
    """Convolution of `[N, Cin, T]` that keeps T: the ends of the sequence are neighbours."""

    def __init__(self, channels: tuple[int, int], kernel_size: int) -> None:
        super().__init__((channels[1], channels[0], kernel_size), bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution."""
        reach = self.weight_orig.shape[2] // 2
        if reach:
            x = F.pad(x, (reach, reach), mode="circular")
        return F.conv1d(x, self.normalized_weight(), self.bias)


def reset_convolution(weight: Tensor, bias: Tensor | None, rng: np.random.Generator) -> None:
    """Draw weight `[out, in, *kernel]` and bias from U(-1 / sqrt(n), 1 / sqrt(n)), n = in * kernel: PyTorch's start."""
    bound = 1 / math.sqrt(weight[0].numel())
    for tensor in (weight, bias):
        if tensor is not None:
            fill_uniform(tensor, bound, rng)
