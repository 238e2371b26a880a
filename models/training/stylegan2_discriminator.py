"""The StyleGAN2 and StyleGAN2-ADA discriminator: resnet, skip or orig, conditional or not.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv:1912.04958), section 4.1, and "Training
Generative Adversarial Networks with Limited Data" (arXiv:2006.06676), appendix C. Parameters and buffers have the
names of the official PyTorch networks, so that their state dicts load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from kernels.bias_act import Activation, bias_act
from kernels.conv2d_resample import ResampledConv, conv2d_resample
from kernels.minibatch_std import minibatch_std
from kernels.upfirdn2d import downsample2d, setup_filter
from models.layers import FIR_TAPS, FullyConnectedLayer, ResampledSkip, Taps, fill_normal, scaled
from models.mapping import MappingConfig, MappingNetwork
from models.stylegan2_config import (
    OFFICIAL_MAPPING_NAMES,
    Architecture,
    as_taps,
    check_network,
    is_half,
    official_fields,
)


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
    mbstd_num_channels: int = 1  # 0: without minibatch standard deviation
    num_fp16_res: int = 0  # so many of the highest resolutions run in float16, on CUDA only
    img_channels: int = 3
    cmap_dim: int | None = None  # width of the mapped label; None: that of the 4x4 block
    activation: str = "lrelu"
    epilogue_activation: str = "lrelu"  # of the 4x4 block
    resample_filter: Taps = FIR_TAPS
    freeze_layers: int = 0  # so many of the first layers are not trained
    mapping_embed_features: int | None = None  # width of the embedded label; None: cmap_dim
    mapping_layer_features: int | None = None  # width of the inner layers; None: cmap_dim
    mapping_activation: str = "lrelu"

    def __post_init__(self) -> None:
        check_network(self.resolution, 8, self.architecture, self.activation, self.epilogue_activation)
        if self.cmap_dim is not None and self.cmap_dim < 1 and self.num_classes:
            raise ValueError(f"cmap_dim {self.cmap_dim} of a conditional discriminator; allowed are 1 or more, or None")
        object.__setattr__(self, "resample_filter", as_taps(self.resample_filter))

    @property
    def resolutions(self) -> list[int]:
        """The resolution that each block takes: the image's, half of it, ... down to 8."""
        return [2**i for i in range(self.resolution.bit_length() - 1, 2, -1)]

    @property
    def mapping(self) -> MappingConfig:
        """The network that turns labels into vectors `[N, cmap_dim]`, which the output is projected on."""
        return MappingConfig(
            z_dim=0,
            num_classes=self.num_classes,
            w_dim=self.channels(4) if self.cmap_dim is None else self.cmap_dim,
            num_ws=None,
            num_layers=self.mapping_layers,
            embed_features=self.mapping_embed_features,
            layer_features=self.mapping_layer_features,
            activation=self.mapping_activation,
            lr_multiplier=self.mapping_lr_multiplier,
            w_avg_beta=None,
        )

    def channels(self, resolution: int) -> int:
        """Width of the block at `resolution`."""
        return min(self.channel_base // resolution, self.channel_max)

    def is_half(self, resolution: int) -> bool:
        """Whether the block at `resolution` may run in float16; the one at 4x4 never does."""
        return is_half(resolution, self.resolution, self.num_fp16_res)


class Convolution(nn.Module):
    """Convolution with equalised learning rate, bias and activation; halves the resolution where `conv` says so."""

    resample_filter: Tensor

    def __init__(
        self, shape: tuple[int, int, int], activation: Activation, down: int = 1, taps: Taps = FIR_TAPS
    ) -> None:
        super().__init__()
        in_channels, out_channels, kernel_size = shape
        self.conv = ResampledConv(down=down, padding=kernel_size // 2)
        self.activation = activation
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("resample_filter", setup_filter(taps))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill_normal(self.weight, rng)
        self.bias.zero_()

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, H / down, W / down]`."""
        weight = (self.weight / math.sqrt(self.weight[0].numel())).to(x.dtype)
        y = conv2d_resample(x, weight, self.resample_filter, self.conv)
        return bias_act(y, self.bias, scaled(self.activation, gain))


class DiscriminatorBlock(nn.Module):
    """The layers of one resolution; the output has half of it."""

    resample_filter: Tensor

    def __init__(self, config: DiscriminatorConfig, resolution: int) -> None:
        super().__init__()
        self.architecture = config.architecture
        self.has_rgb = config.architecture == "skip" or resolution == config.resolution
        self.is_half = config.is_half(resolution)
        channels, out_channels = config.channels(resolution), config.channels(resolution // 2)
        activation, taps = Activation(config.activation, clamp=config.conv_clamp), config.resample_filter
        # officially only layers that resample are told of another filter
        if self.has_rgb:
            self.fromrgb = Convolution((config.img_channels, channels, 1), activation)
        self.conv0 = Convolution((channels, channels, 3), activation)
        self.conv1 = Convolution((channels, out_channels, 3), activation, 2, taps)
        if config.architecture == "resnet":
            self.skip = ResampledSkip(channels, out_channels, ResampledConv(down=2), taps)
        self.register_buffer("resample_filter", setup_filter(taps))

    def forward(self, x: Tensor | None, image: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Map features (None in the first block) and image of this resolution to those of half of it.

        The image is passed on as it is unless the architecture is "skip", the only one that reads it again.
        """
        x = None if x is None else x.to(dtype)
        if self.has_rgb:
            image = image.to(dtype)
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
        channels, name = config.channels(4), config.epilogue_activation
        if config.architecture == "skip":
            self.fromrgb = Convolution((config.img_channels, channels, 1), Activation(name))
        clamped = Activation(name, clamp=config.conv_clamp)
        self.conv = Convolution((channels + config.mbstd_num_channels, channels, 3), clamped)
        self.fc = FullyConnectedLayer(channels * 16, channels, name)
        self.out = FullyConnectedLayer(channels, config.mapping.w_dim if config.num_classes else 1)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Map `[N, C, 4, 4]` to logits `[N, 1]`, or to `[N, cmap_dim]`, which labels are yet to be projected on."""
        if self.config.architecture == "skip":
            x = x + self.fromrgb(image)
        if self.config.mbstd_num_channels:
            x = minibatch_std(x, self.config.mbstd_group_size, self.config.mbstd_num_channels)
        return cast("Tensor", self.out(self.fc(self.conv(x).flatten(1))))


class StyleGAN2Discriminator(nn.Module):
    """Images and labels to logits: high for what looks real. All weights are zero until set."""

    target: ClassVar[str] = "models.training.stylegan2_discriminator:build"

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.resolution, self.num_classes = config.resolution, config.num_classes
        for resolution in config.resolutions:
            self.add_module(f"b{resolution}", DiscriminatorBlock(config, resolution))
        layers = [layer for block in self.children() for layer in block.children()]
        for layer in layers[: config.freeze_layers]:
            _freeze(layer)
        if config.num_classes:
            self.mapping = MappingNetwork(config.mapping)
        self.b4 = DiscriminatorEpilogue(config)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments of `build` that make this discriminator again."""
        return asdict(self.config)

    def forward(self, images: Tensor, c: Tensor | None = None, force_fp32: bool = False) -> Tensor:
        """Judge images `[N, img_channels, H, W]` of [-1, 1] under one-hot labels `[N, num_classes]`; logits `[N, 1]`.

        Float16 runs on CUDA only.

        Raises:
            ValueError: labels are missing, or given to an unconditional discriminator.
        """
        classes = self.config.num_classes
        if (c is not None) != bool(classes):
            raise ValueError(f"{'no labels' if c is None else 'labels'} for a discriminator of {classes} classes")
        wide = images.dtype
        half_may_run = images.is_cuda and wide == torch.float32 and not force_fp32  # float64 copies stay exact
        x = None
        for resolution in self.config.resolutions:
            block = self.get_submodule(f"b{resolution}")
            x, images = block(x, images, torch.float16 if block.is_half and half_may_run else wide)
        assert x is not None
        y: Tensor = self.b4(x.to(wide), images.to(wide))
        if c is None:
            return y
        projected: Tensor = (y * self.mapping(None, c)).sum(dim=1, keepdim=True)  # Miyato and Koyama, arXiv:1802.05637
        return projected / math.sqrt(y.shape[1])


def build(**kwargs: Any) -> StyleGAN2Discriminator:
    """Make a discriminator of these `DiscriminatorConfig` fields; its weights are zero until set."""
    return StyleGAN2Discriminator(DiscriminatorConfig(**kwargs))


def _freeze(layer: nn.Module) -> None:
    """Turn the parameters of a layer into buffers, which no optimiser and no `requires_grad_` reaches."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        delattr(layer, name)
        layer.register_buffer(name, parameter.detach())


# What the official classes take for granted where their keyword arguments are silent.
OFFICIAL_DISCRIMINATOR_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "training.networks.Discriminator": {},  # StyleGAN2-ADA
    "training.networks_stylegan2.Discriminator": {"conv_clamp": 256, "num_fp16_res": 4},  # StyleGAN3
}
# official name: ours, None for what does not change numbers
_OFFICIAL_NAMES: Mapping[str, str | None] = {
    "c_dim": "num_classes",
    "img_resolution": "resolution",
    "img_channels": "img_channels",
    "architecture": "architecture",
    "channel_base": "channel_base",
    "channel_max": "channel_max",
    "num_fp16_res": "num_fp16_res",
    "conv_clamp": "conv_clamp",
    "cmap_dim": "cmap_dim",
    **OFFICIAL_MAPPING_NAMES,
    "block_kwargs.activation": "activation",
    "block_kwargs.resample_filter": "resample_filter",
    "block_kwargs.freeze_layers": "freeze_layers",
    "block_kwargs.fp16_channels_last": None,
    "epilogue_kwargs.activation": "epilogue_activation",
    "epilogue_kwargs.mbstd_group_size": "mbstd_group_size",
    "epilogue_kwargs.mbstd_num_channels": "mbstd_num_channels",
}


def official_discriminator_config(class_name: str, kwargs: Mapping[str, Any]) -> DiscriminatorConfig:
    """Translate the keyword arguments of an official discriminator class.

    Raises:
        ValueError: the class, an argument or the value of an argument is none that this discriminator has.
    """
    if class_name not in OFFICIAL_DISCRIMINATOR_DEFAULTS:
        known = ", ".join(OFFICIAL_DISCRIMINATOR_DEFAULTS)
        raise ValueError(f"{class_name!r} is no StyleGAN2 discriminator; known: {known}")
    fields = official_fields(class_name, kwargs, _OFFICIAL_NAMES)
    return DiscriminatorConfig(**{**OFFICIAL_DISCRIMINATOR_DEFAULTS[class_name], **fields})
