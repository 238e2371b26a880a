"""What the BigGANs share: convolution of upsampled images, normalisation by class, attention, truncated latents.

Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (arXiv:1809.11096), appendix B.
"""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import scipy.special
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.spectral_norm import SpectralWeight, WeightSpec

NormKind = Literal["bn", "mybn", "cross_replica", "in", "nonorm"]
MOMENTUM = 0.1


class SpectralConv2d(SpectralWeight):
    """Convolution that keeps the size; with `up`, of images upsampled to twice the size."""

    def __init__(self, shape: tuple[int, int, int], spec: WeightSpec, *, bias: bool = True, up: bool = False) -> None:
        in_channels, out_channels, kernel_size = shape
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), spec, bias=bias)
        self.up = up

    def to_keep(self, weight: Tensor) -> Tensor:
        """Where `up`, weights for the pixels before upsampling."""
        return phase_weights(weight) if self.up else weight

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `[N, Cin, H, W]`."""
        return convolve(x, self.prepared(), self.bias, up=self.up)


def phase_weights(weight: Tensor) -> Tensor:
    """The 3x3 weights `[O, I, 3, 3]` after upsampling by repetition as 2x2 weights before it, `[2, 2, O, I, 2, 2]`.

    The first two dimensions are the row and column of an output pixel in its pair: taps that fall on copies of one
    pixel are added up, which leaves 4 of 9 multiplications.
    """
    top, middle, bottom = weight.unbind(2)
    rows = torch.stack((torch.stack((top, middle + bottom), 2), torch.stack((top + middle, bottom), 2)))
    left, centre, right = rows.unbind(-1)
    return torch.stack((torch.stack((left, centre + right), -1), torch.stack((left + centre, right), -1)), 1)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, up: bool) -> Tensor:
    """Convolve `[N, I, H, W]`, upsampled by repetition first where `up`, with zeros around it.

    `weight` is `[O, I, k, k]`, or what `phase_weights` makes of it for `up`: making that pays where it can be kept.
    """
    if not up or weight.ndim == 4:
        return F.conv2d(upsample(x) if up else x, weight, bias, padding=weight.shape[-1] // 2)
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    windows = [padded[:, :, i : i + height + 1, j : j + width + 1] for i in (0, 1) for j in (0, 1)]
    parts = [F.conv2d(window, phase, bias) for window, phase in zip(windows, weight.flatten(0, 1), strict=True)]
    return F.pixel_shuffle(torch.stack(parts, 2).flatten(1, 2), 2)


def upsample(x: Tensor) -> Tensor:
    """Repeat every pixel of `[N, C, H, W]` in both directions."""
    return F.interpolate(x, scale_factor=2.0)


class _Moments(nn.Module):
    """Normalisation of `[N, C, H, W]` with a given gain and shift; the statistics carry the official names.

    "bn": running averages of mean and unbiased variance. "mybn": of the biased variance. "cross_replica": the
    official class adds the gain where there is one process, and in evaluation; it does so here. "in": of one image
    each. "nonorm": none.
    """

    def __init__(self, channels: int, kind: NormKind, eps: float) -> None:
        super().__init__()
        self.kind, self.eps, self.momentum = kind, eps, MOMENTUM
        separate = kind in ("mybn", "cross_replica")
        self._prefix = "running" if kind == "cross_replica" else "stored"
        self._has_statistics = kind != "nonorm"
        if separate:
            self.bn = nn.Module()
        holder = self.bn if separate else self
        if self._has_statistics:
            holder.register_buffer(f"{self._prefix}_mean", torch.zeros(channels))
            holder.register_buffer(f"{self._prefix}_var", torch.ones(channels))
        if kind == "mybn":
            holder.register_buffer("accumulation_counter", torch.zeros(1))
        elif kind == "cross_replica":
            holder.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    @property
    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """Running mean and variance, `[C]` each, if this kind has any."""
        if not self._has_statistics:
            return None
        holder = self.bn if self.kind in ("mybn", "cross_replica") else self
        return holder.get_buffer(f"{self._prefix}_mean"), holder.get_buffer(f"{self._prefix}_var")

    def reset_statistics(self) -> None:
        """Forget what was averaged."""
        if self.statistics:
            self.statistics[0].zero_()
            self.statistics[1].fill_(1)

    def normalise(self, x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """Normalise, multiply by `gain` and add `shift`, `[N, C]` or `[1, C]`."""
        if self.kind == "nonorm":
            return _affine(x, gain, shift)
        mean, var = self._moments(x)
        scale = (var + self.eps).rsqrt()
        if self.kind == "cross_replica":
            return _affine(x, scale.expand_as(gain), gain + shift - mean * scale)
        scale = scale * gain
        return _affine(x, scale, shift - mean * scale)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        statistics = cast("tuple[Tensor, Tensor]", self.statistics)
        if not self.training:
            return statistics
        dims = (2, 3) if self.kind == "in" else (0, 2, 3)
        var, mean = torch.var_mean(x, dims, correction=0)
        count = x.numel() // mean.numel()
        unbiased = var if self.kind == "mybn" else var * (count / max(count - 1, 1))
        with torch.no_grad():
            for running, now in zip(statistics, (mean, unbiased), strict=True):
                running.lerp_(now.detach().reshape(-1, x.shape[1]).mean(0), self.momentum)
        return mean, var


class ConditionalNorm(_Moments):
    """Normalisation with gain and shift of each sample made from its condition (arXiv:1707.00683)."""

    def __init__(self, channels: int, gain: nn.Module, bias: nn.Module, kind: NormKind, eps: float) -> None:
        super().__init__(channels, kind, eps)
        self.gain, self.bias = gain, bias

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Forget the statistics."""
        self.reset_statistics()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Normalise `[N, C, H, W]` under conditions `[N, D]`."""
        return self.normalise(x, 1 + self.gain(y), self.bias(y))


class Norm(_Moments):
    """Normalisation with a learned gain and shift."""

    def __init__(self, channels: int, kind: NormKind, eps: float = 1e-5) -> None:
        super().__init__(channels, kind, eps)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Set the start of training."""
        self.reset_statistics()
        self.gain.fill_(1)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[N, C, H, W]`."""
        return self.normalise(x, self.gain[None], self.bias[None])


class SelfAttention(nn.Module):
    """Every pixel attends to the pixels of the image at half the resolution (arXiv:1805.08318, section 3)."""

    def __init__(self, channels: int, spec: WeightSpec) -> None:
        super().__init__()
        self.theta = SpectralConv2d((channels, channels // 8, 1), spec, bias=False)
        self.phi = SpectralConv2d((channels, channels // 8, 1), spec, bias=False)
        self.g = SpectralConv2d((channels, channels // 2, 1), spec, bias=False)
        self.o = SpectralConv2d((channels // 2, channels, 1), spec, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Start without attention."""
        self.gamma.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Add to `[N, C, H, W]` what its pixels attend to."""
        attended: Tensor = self.o(attend(self.theta(x), self.phi(x), self.g(x)))
        return x + self.gamma * attended


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Mean of the values `[N, V, H, W]` for each query `[N, K, H, W]`; keys and values are max-pooled to half size."""
    keys, values = (F.max_pool2d(x, 2).flatten(2) for x in (keys, values))
    weights = (queries.flatten(2).transpose(1, 2) @ keys).softmax(-1)
    return (values @ weights.transpose(1, 2)).view(*values.shape[:2], *queries.shape[2:])


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


def truncated_normal(rng: np.random.Generator, threshold: float, size: int) -> Tensor:
    """Draw float32 `[size]` from N(0, 1) without what is farther than `threshold` from zero (arXiv:1809.11096, 3.1)."""
    low, high = scipy.special.ndtr((-threshold, threshold))
    return torch.from_numpy(scipy.special.ndtri(rng.uniform(low, high, size)).astype(np.float32))
