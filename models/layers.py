"""What the StyleGAN families share: the equalised fully connected layer, its random start, labels and pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.bias_act import Activation, bias_act
from kernels.conv2d_resample import ResampledConv, conv2d_resample
from kernels.upfirdn2d import setup_filter
from models.spec import Condition

Taps = tuple[float, ...] | tuple[tuple[float, ...], ...]
FIR_TAPS: Taps = (1, 3, 3, 1)  # of every resampling of StyleGAN2, unless a configuration says otherwise

_checked: ContextVar[bool] = ContextVar("labels_checked", default=False)


@runtime_checkable
class _Resettable(Protocol):
    def reset(self, rng: np.random.Generator) -> None: ...


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Give a network the random weights that training starts from: N(0, 1), scaled when used (arXiv:1710.10196, 4.1).

    The numbers come from numpy's Philox generator on the CPU: one seed means the same weights on every device.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    for layer in module.modules():
        if isinstance(layer, _Resettable):
            layer.reset(rng)


def fill_normal(tensor: Tensor, rng: np.random.Generator, std: float = 1.0) -> None:
    """Overwrite a tensor on any device with N(0, std^2)."""
    tensor.copy_(torch.from_numpy(rng.standard_normal(tuple(tensor.shape), dtype=np.float32)) * std)


def normalize_2nd_moment(x: Tensor) -> Tensor:
    """Scale each row of `[N, C]` to a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def scaled(activation: Activation, gain: float) -> Activation:
    """The activation with its output, clamped or not, multiplied by `gain`."""
    clamp = None if activation.clamp is None else activation.clamp * gain
    return replace(activation, gain=activation.full_gain * gain, clamp=clamp)


class FullyConnectedLayer(nn.Module):
    """`[N, in] -> [N, out]` with equalised learning rate: weights are stored at unit variance and scaled when used."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = Activation(activation)
        self.lr_multiplier, self.bias_init = lr_multiplier, bias_init
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill_normal(self.weight, rng, 1 / self.lr_multiplier)
        self.bias.fill_(self.bias_init)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        weight = self.weight * (self.lr_multiplier / math.sqrt(self.weight.shape[1]))
        return bias_act(F.linear(x, weight), self.bias * self.lr_multiplier, self.activation)


class ResampledSkip(nn.Module):
    """The shortcut of a residual block: 1x1 convolution without bias, to twice or half the resolution."""

    resample_filter: Tensor

    def __init__(self, in_channels: int, out_channels: int, conv: ResampledConv, taps: Taps = FIR_TAPS) -> None:
        super().__init__()
        self.conv = conv
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, 1, 1))
        self.register_buffer("resample_filter", setup_filter(taps))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill_normal(self.weight, rng)

    def forward(self, x: Tensor, gain: float) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, H * up / down, W * up / down]`."""
        weight = (self.weight * (gain / math.sqrt(self.weight.shape[1]))).to(x.dtype)
        return conv2d_resample(x, weight, self.resample_filter, self.conv)


def to_uint8(images: Tensor) -> Tensor:
    """Quantise images of [-1, 1] to contiguous uint8, rounding half up as the StyleGAN papers do."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8, memory_format=torch.contiguous_format)


@contextmanager
def labels_checked() -> Iterator[None]:
    """Let `one_hot` take labels as they are: what is recorded for a GPU to replay can't look at values."""
    token = _checked.set(True)
    try:
        yield
    finally:
        _checked.reset(token)


def one_hot(labels: Condition, num_classes: int, like: Tensor) -> Tensor | None:
    """Turn int64 labels `[N]` into `[N, num_classes]` of the type and device of `like`; None for no classes.

    Raises:
        ValueError: labels are missing, not wanted or out of range, or prompts are given.
    """
    if (labels is not None) != bool(num_classes):
        given = "no labels" if labels is None else "labels"
        raise ValueError(f"{given} for a network of {num_classes} classes")
    if labels is None:
        return None
    if not isinstance(labels, Tensor):
        raise ValueError(f"prompts for a network of {num_classes} classes; it takes int64 labels [N]")
    # tensors of the meta device have shapes and no values
    if not labels.is_meta and labels.numel() and not _checked.get():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels {low} to {high}; allowed are 0 to {num_classes - 1}")
    return (labels.to(like.device)[:, None] == torch.arange(num_classes, device=like.device)).to(like.dtype)
