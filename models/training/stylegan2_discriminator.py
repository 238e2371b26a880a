"""The StyleGAN2 and StyleGAN2-ADA discriminator: resnet, skip or orig, conditional or not.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv:1912.04958), section 4.1, and "Training
Generative Adversarial Networks with Limited Data" (arXiv:2006.06676), appendix C. Parameters and buffers have the
names of the official PyTorch networks, so that their state dicts load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from kernels.bias_act import Activation, bias_act
from kernels.conv2d_resample import ResampledConv, conv2d_resample
from kernels.minibatch_std import minibatch_std
from kernels.upfirdn2d import downsample2d, setup_filter
from models.layers import FIR_TAPS, FullyConnectedLayer, ResampledSkip, fill_normal, normalize_2nd_moment

Architecture = Literal["resnet", "skip", "orig"]


@dataclass(frozen=True, slots=True)
class DiscriminatorConfig:
    """Everything that decides the shapes and the arithmetic of a discriminator; the defaults are config F."""

    resolution: int
    num_classes: int = 0
    channel_base: int = 32768
    channel_max: int = 512
    architecture: Architecture = "resnet"
    conv_clamp: float | None = None
    mapping_layers: int = 8
    mapping_lr_multiplier: float = 0.01
    mbstd_group_size: int | None = 4  # None: the whole batch
    mbstd_num_channels: int = 1

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution {self.resolution} is not a power of two from 8 on")
        if self.architecture not in get_args(Architecture):
            raise ValueError(f"architecture {self.architecture!r} is not one of {', '.join(get_args(Architecture))}")

    @property
    def resolutions(self) -> list[int]:
        """The resolution that each block takes: the image's, half of it, ... down to 8."""
        return [2**i for i in range(self.resolution.bit_length() - 1, 2, -1)]

    def channels(self, resolution: int) -> int:
        """Width of the block at `resolution`."""
        return min(self.channel_base // resolution, self.channel_max)


class Convolution(nn.Module):
    """Convolution with equalised learning rate, bias and leaky ReLU; halves the resolution where `down` is 2."""

    resample_filter: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, down: int = 1, clamp: float | None = None
    ) -> None:
        super().__init__()
        self.conv = ResampledConv(down=down, padding=kernel_size // 2)
        self.clamp = clamp
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("resample_filter", setup_filter(FIR_TAPS))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill_normal(self.weight, rng)
        self.bias.zero_()

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, H / down, W / down]`."""
        weight = self.weight / math.sqrt(self.weight[0].numel())
        clamp = None if self.clamp is None else self.clamp * gain
        activation = Activation("lrelu", gain=math.sqrt(2) * gain, clamp=clamp)
        return bias_act(conv2d_resample(x, weight, self.resample_filter, self.conv), self.bias, activation)


class DiscriminatorBlock(nn.Module):
    """The layers of one resolution; the output has half of it."""

    resample_filter: Tensor

    def __init__(self, config: DiscriminatorConfig, resolution: int) -> None:
        super().__init__()
        self.architecture = config.architecture
        self.has_rgb = config.architecture == "skip" or resolution == config.resolution
        channels, out_channels = config.channels(resolution), config.channels(resolution // 2)
        if self.has_rgb:
            self.fromrgb = Convolution(3, channels, 1, clamp=config.conv_clamp)
        self.conv0 = Convolution(channels, channels, 3, clamp=config.conv_clamp)
        self.conv1 = Convolution(channels, out_channels, 3, down=2, clamp=config.conv_clamp)
        if config.architecture == "resnet":
            self.skip = ResampledSkip(channels, out_channels, ResampledConv(down=2))
        self.register_buffer("resample_filter", setup_filter(FIR_TAPS))

    def forward(self, x: Tensor | None, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (None in the first block) and image of this resolution to those of half of it.

        The image is passed on as it is unless the architecture is "skip", the only one that reads it again.
        """
        if self.has_rgb:
            features = self.fromrgb(image)
            x = features if x is None else x + features
        if self.architecture == "resnet":
            gain = math.sqrt(0.5)
            return self.skip(x, gain) + self.conv1(self.conv0(x), gain), image
        x = self.conv1(self.conv0(x))
        return x, downsample2d(image, self.resample_filter) if self.architecture == "skip" else image


class DiscriminatorEpilogue(nn.Module):
    """The 4x4 block: minibatch standard deviation, convolution and two fully connected layers."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels(4)
        if config.architecture == "skip":
            self.fromrgb = Convolution(3, channels, 1)
        self.conv = Convolution(channels + config.mbstd_num_channels, channels, 3, clamp=config.conv_clamp)
        self.fc = FullyConnectedLayer(channels * 16, channels, "lrelu")
        self.out = FullyConnectedLayer(channels, channels if config.num_classes else 1)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Map `[N, C, 4, 4]` to logits `[N, 1]`, or to `[N, C]`, which labels are yet to be projected on."""
        if self.config.architecture == "skip":
            x = x + self.fromrgb(image)
        x = minibatch_std(x, self.config.mbstd_group_size, self.config.mbstd_num_channels)
        return cast("Tensor", self.out(self.fc(self.conv(x).flatten(1))))


class LabelMapping(nn.Module):
    """One-hot labels `[N, num_classes]` to the vectors `[N, C]` that the output is projected on."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = config.channels(4)
        self.embed = FullyConnectedLayer(config.num_classes, width)
        self.layers = [f"fc{i}" for i in range(config.mapping_layers)]
        for name in self.layers:
            self.add_module(name, FullyConnectedLayer(width, width, "lrelu", config.mapping_lr_multiplier))

    def forward(self, c: Tensor) -> Tensor:
        """Apply the network."""
        y: Tensor = normalize_2nd_moment(self.embed(c))
        for name in self.layers:
            y = self.get_submodule(name)(y)
        return y


class StyleGAN2Discriminator(nn.Module):
    """Images and labels to logits: high for what looks real. All weights are zero until set."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        for resolution in config.resolutions:
            self.add_module(f"b{resolution}", DiscriminatorBlock(config, resolution))
        if config.num_classes:
            self.mapping = LabelMapping(config)
        self.b4 = DiscriminatorEpilogue(config)

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """Judge images `[N, 3, H, W]` of [-1, 1] under one-hot labels `[N, num_classes]`; logits `[N, 1]`.

        Raises:
            ValueError: labels are missing, or given to an unconditional discriminator.
        """
        classes = self.config.num_classes
        if (c is not None) != bool(classes):
            raise ValueError(f"{'no labels' if c is None else 'labels'} for a discriminator of {classes} classes")
        x = None
        for resolution in self.config.resolutions:
            x, images = self.get_submodule(f"b{resolution}")(x, images)
        y: Tensor = self.b4(x, images)
        if c is None:
            return y
        projected: Tensor = (y * self.mapping(c)).sum(dim=1, keepdim=True)  # Miyato and Koyama, arXiv:1802.05637
        return projected / math.sqrt(y.shape[1])


_RENAMED = {
    "img_resolution": "resolution",
    "c_dim": "num_classes",
    "num_layers": "mapping_layers",
    "lr_multiplier": "mapping_lr_multiplier",
}


def official_discriminator_config(kwargs: Mapping[str, Any]) -> DiscriminatorConfig:
    """Translate the keyword arguments of StyleGAN2-ADA's discriminator; its float16 blocks run in float32 here.

    Raises:
        ValueError: an argument, or its value, is none that this discriminator has.
    """
    flat = {name: value for name, value in kwargs.items() if name not in {"mapping_kwargs", "epilogue_kwargs"}}
    flat |= {**kwargs.get("mapping_kwargs", {}), **kwargs.get("epilogue_kwargs", {})}
    flat.pop("num_fp16_res", None)
    if (channels := flat.pop("img_channels", 3)) != 3:
        raise ValueError(f"img_channels={channels} is not supported, only 3")
    flat = {_RENAMED.get(name, name): value for name, value in flat.items()}
    known = set(DiscriminatorConfig.__dataclass_fields__)
    if unknown := sorted(set(flat) - known):
        raise ValueError(f"unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return DiscriminatorConfig(**flat)
