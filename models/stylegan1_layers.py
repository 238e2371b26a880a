"""The layers of StyleGAN (2018): equalised weights, blur, noise, adaptive instance normalisation.

Karras et al., "A Style-Based Generator Architecture for Generative Adversarial Networks" (arXiv:1812.04958). The gain
of the leaky ReLU sits in the weights; both are applied where it costs no pass over weights or images.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.bias_act import Activation, activate, bias_act
from kernels.conv2d_resample import ResampledConv, conv2d_resample
from kernels.upfirdn2d import Resampling, filter2d, setup_filter
from models.layers import fill_normal
from models.stylegan1_config import Scaling, StyleGAN1Config

BLUR_TAPS = (1, 2, 1)
LRELU = Activation("lrelu", gain=1.0)
NORM_EPSILON = 1e-8
_CHUNK = 2**18  # elements; a temporary of this size stays in the cache


class Dense(nn.Module):
    """`[N, in] -> [N, out]` with equalised learning rate."""

    def __init__(self, in_features: int, out_features: int, scaling: Scaling, activation: str = "lrelu") -> None:
        super().__init__()
        self.scaling, self.activation = scaling, activation
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill_normal(self.weight, rng, self.scaling.initial_std(self.weight.shape[1]))
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        factor = self.scaling.factor(self.weight.shape[1])
        bias = self.bias * (self.scaling.lr_multiplier / factor)
        # leaky ReLU is homogeneous: scaling its result is scaling the weight, and costs no pass over memory
        return bias_act(F.linear(x, self.weight), bias, Activation(self.activation, gain=factor))


class Convolution(nn.Module):
    """1x1 or 3x3 convolution with equalised learning rate, bias and activation."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, scaling: Scaling, activation: str
    ) -> None:
        super().__init__()
        self.scaling, self.activation = scaling, activation
        self.conv = ResampledConv(padding=kernel_size // 2)
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill_normal(self.weight, rng, self.scaling.initial_std(self.weight[0].numel()))
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, H, W]`."""
        return self.convolved(x)

    def convolved(self, x: Tensor, fir: Tensor | None = None) -> Tensor:
        """Apply the layer; `fir` is the filter where it resamples."""
        factor = self.scaling.factor(self.weight[0].numel())
        y = conv2d_resample(x, self.weight, fir, self.conv)
        return bias_act(y, self.bias / factor, Activation(self.activation, gain=factor))


class Blur(nn.Module):
    """The binomial filter [1, 2, 1] along both axes; what lies outside the image is zero."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("kernel", setup_filter(BLUR_TAPS).expand(channels, 1, 3, 3).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Filter `[N, C, H, W]`."""
        return filter2d(x, self.kernel[0, 0], Resampling(flip_filter=True))


def box_filter(like: Tensor) -> Tensor:
    """The mean of 2x2 pixels, which makes nearest-neighbour upsampling of zero-stuffing, and pooling of decimation."""
    return like.new_full((2, 2), 0.25)


class Noise(nn.Module):
    """Adds noise in proportion to a learned weight: one map `[r, r]`, weighted for each channel, or the reverse."""

    noise: Tensor

    def __init__(self, config: StyleGAN1Config, resolution: int) -> None:
        super().__init__()
        spatial, channels = config.noise_type == "spatial", config.channels(resolution)
        self.weight = nn.Parameter(torch.zeros(channels) if spatial else torch.zeros(resolution, resolution))
        self.register_buffer("noise", torch.zeros(1, *config.noise_shape(resolution)))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the fixed noise; training starts without its influence."""
        fill_normal(self.noise, rng)
        self.weight.zero_()

    def forward(self, x: Tensor, noise: Tensor, factor: float) -> Tensor:
        """Add to `[N, C, r, r]` the noise times `factor`; without autograd `x` is overwritten."""
        into = None if torch.is_grad_enabled() else x
        weight = self.weight[:, None, None] if self.weight.ndim == 1 else self.weight
        return torch.addcmul(x, noise, weight * factor, out=into)


class SynthesisLayer(nn.Module):
    """What all layers have: noise, bias, leaky ReLU, instance normalisation and style, after features of their own."""

    def __init__(self, config: StyleGAN1Config, resolution: int) -> None:
        super().__init__()
        channels = config.channels(resolution)
        self.scaling = Scaling(equalized=config.equalized)
        self.apply_noise = Noise(config, resolution)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.style = Dense(config.w_dim, 2 * channels, replace(self.scaling, gain=1.0), "linear")

    @abstractmethod
    def features(self, x: Tensor | None, w: Tensor) -> tuple[Tensor, float]:
        """Features `[N, C, r, r]`, which may be overwritten, and what they are yet to be multiplied by."""

    def forward(self, x: Tensor | None, w: Tensor, noise: Tensor | None) -> Tensor:
        """Apply the layer to `[N, Cin, H, W]` (None in the first) under style vectors `[N, w_dim]`."""
        y, factor = self.features(x, w)
        # the normalisation takes any factor out again: instead of the weight, what is small is scaled
        if noise is not None:
            y = self.apply_noise(y, noise, 1 / factor)
        y = activate(add_bias(y, self.bias / factor), LRELU, inplace=not torch.is_grad_enabled())
        return restyle(y, self.style(w), NORM_EPSILON / factor**2)


class ConstInput(SynthesisLayer):
    """The learned constant that images start from."""

    def __init__(self, config: StyleGAN1Config) -> None:
        super().__init__(config, 4)
        self.const = nn.Parameter(torch.zeros(1, config.channels(4), 4, 4))

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Start at ones."""
        self.const.fill_(1.0)
        self.bias.zero_()

    def features(self, x: Tensor | None, w: Tensor) -> tuple[Tensor, float]:  # noqa: ARG002
        """The constant, once a sample."""
        return self.const.repeat(len(w), 1, 1, 1).contiguous(memory_format=torch.channels_last), 1.0


class WeightedLayer(SynthesisLayer):
    """A layer with a convolution."""

    def __init__(self, config: StyleGAN1Config, resolution: int, in_channels: int, kernel_size: int = 3) -> None:
        super().__init__(config, resolution)
        self.weight = nn.Parameter(torch.zeros(config.channels(resolution), in_channels, kernel_size, kernel_size))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill_normal(self.weight, rng, self.scaling.initial_std(self.weight[0].numel()))
        self.bias.zero_()

    @property
    def factor(self) -> float:
        """What the stored weight is multiplied by."""
        return self.scaling.factor(self.weight[0].numel())


class StyleInput(WeightedLayer):
    """The first style vector, spread out over 4x4 pixels, as the input: config A to C of the paper's table 1."""

    def __init__(self, config: StyleGAN1Config) -> None:
        super().__init__(config, 4, config.w_dim, kernel_size=4)

    def features(self, x: Tensor | None, w: Tensor) -> tuple[Tensor, float]:  # noqa: ARG002
        """The dense layer that a 4x4 convolution of one pixel is."""
        return F.conv2d(w[:, :, None, None], self.weight, padding=3), self.factor


class SynthesisConv(WeightedLayer):
    """3x3 convolution."""

    def __init__(self, config: StyleGAN1Config, resolution: int) -> None:
        super().__init__(config, resolution, config.channels(resolution))

    def features(self, x: Tensor | None, w: Tensor) -> tuple[Tensor, float]:  # noqa: ARG002
        """The convolved input."""
        assert x is not None
        return conv2d_resample(x, self.weight, None, ResampledConv(padding=1)), self.factor


class SynthesisUpConv(WeightedLayer):
    """Nearest-neighbour upsampling by two, 3x3 convolution and blur.

    The fused form of the official code mirrors the kernel; else it is the same operator.
    """

    def __init__(self, config: StyleGAN1Config, resolution: int) -> None:
        super().__init__(config, resolution, config.channels(resolution // 2))
        self.blur = Blur(config.channels(resolution))
        self.conv = ResampledConv(up=2, padding=1, flip_weight=not config.is_fused(resolution))

    def features(self, x: Tensor | None, w: Tensor) -> tuple[Tensor, float]:  # noqa: ARG002
        """The upsampled, convolved and blurred input."""
        assert x is not None
        return self.blur(conv2d_resample(x, self.weight, box_filter(x), self.conv)), self.factor


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """Add `[C]` to `[N, C, H, W]`; without autograd `x` is overwritten."""
    return torch.add(x, bias[:, None, None], out=None if torch.is_grad_enabled() else x)


def restyle(x: Tensor, style: Tensor, epsilon: float) -> Tensor:
    """Adaptive instance normalisation (arXiv:1812.04958, equation 1); without autograd `x` is overwritten.

    Each channel of `[N, C, H, W]` gets mean 0 and variance 1, then the scale and shift of the style `[N, 2 C]`,
    whose scales count from 1.
    """
    into = None if torch.is_grad_enabled() else x
    scale, shift = style.unflatten(1, (2, -1, 1, 1)).unbind(1)
    x = torch.sub(x, x.mean((2, 3), keepdim=True), out=into)
    return torch.addcmul(shift, x, (scale + 1) * (_mean_square(x) + epsilon).rsqrt(), out=into)


def _mean_square(x: Tensor) -> Tensor:
    """`[N, C, H, W]` to `[N, C, 1, 1]`, some rows at a time: a temporary of the size of x costs more than the sum."""
    rows = max(1, _CHUNK // (x[:, :, 0].numel() or 1))
    parts = [part.square().sum((2, 3), keepdim=True) for part in x.split(rows, dim=2)]
    return torch.stack(parts).sum(0) / (x.shape[2] * x.shape[3])


def resolved_lod(lod: float | None, stored: Tensor, highest: int) -> float:
    """How many doublings are still to grow, `stored` where `lod` is None; on the meta device, which has no values, 0.

    Raises:
        ValueError: it is not within 0 to `highest`.
    """
    if lod is None:
        lod = 0.0 if stored.is_meta else stored.item()
    if not 0 <= lod <= highest:
        raise ValueError(f"lod {lod}; allowed are 0 (fully grown) to {highest} (4x4 pixels)")
    return lod
