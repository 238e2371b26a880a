"""The discriminator of StyleGAN (2018), which is that of progressive growing with blurred downsampling.

Karras et al., "Progressive Growing of GANs" (arXiv:1710.10196), appendix A, and "A Style-Based Generator Architecture
for Generative Adversarial Networks" (arXiv:1812.04958), appendix C. Parameters and buffers have the names of genforce's
PyTorch network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.conv2d_resample import ResampledConv
from kernels.minibatch_std import minibatch_std
from models.stylegan1_config import FUSED_SCALES, Scaling, check_choice, check_resolution, renamed
from models.stylegan1_layers import Blur, Convolution, Dense, box_filter, resolved_lod


@dataclass(frozen=True, slots=True)
class DiscriminatorConfig:
    """Everything that decides the shapes and the arithmetic of a discriminator; the defaults are config F."""

    resolution: int
    num_classes: int = 0
    channel_base: int = 16384
    channel_max: int = 512
    img_channels: int = 3
    equalized: bool = True
    mbstd_group_size: int = 4  # up to 1: no statistics of the batch
    mbstd_num_channels: int = 1

    def __post_init__(self) -> None:
        check_resolution(self.resolution)

    @property
    def resolutions(self) -> list[int]:
        """The resolution that each block takes: the image's, half of it, ... down to 8."""
        return [2**i for i in range(self.resolution.bit_length() - 1, 2, -1)]

    def channels(self, resolution: int) -> int:
        """Width of the block at `resolution`."""
        return min(self.channel_base // resolution, self.channel_max)


class Downsampling(Convolution):
    """Blur, 3x3 convolution and the mean of each 2x2 pixels, bias and leaky ReLU.

    The fused form of the official code is the same operator, so that there is no need to tell them apart.
    """

    def __init__(self, in_channels: int, out_channels: int, scaling: Scaling) -> None:
        super().__init__(in_channels, out_channels, 3, scaling, "lrelu")
        self.conv = ResampledConv(down=2, padding=1)
        self.blur = Blur(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, H / 2, W / 2]`."""
        return self.convolved(self.blur(x), box_filter(x))


class StyleGAN1Discriminator(nn.Module):
    """Images and labels to logits: high for what looks real. All weights are zero until set."""

    target: ClassVar[str] = "models.training.stylegan1_discriminator:build"
    lod: Tensor

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.resolution, self.num_classes = config.resolution, config.num_classes
        scaling = Scaling(equalized=config.equalized)
        self.register_buffer("lod", torch.zeros(()))
        for i, resolution in enumerate([*config.resolutions, 4]):
            channels, out_channels = config.channels(resolution), config.channels(resolution // 2)
            self.add_module(f"input{i}", Convolution(config.img_channels, channels, 1, scaling, "lrelu"))
            if resolution > 4:
                self.add_module(f"layer{2 * i}", Convolution(channels, channels, 3, scaling, "lrelu"))
                self.add_module(f"layer{2 * i + 1}", Downsampling(channels, out_channels, scaling))
        extra = config.mbstd_num_channels if config.mbstd_group_size > 1 else 0
        self.add_module(f"layer{2 * i}", Convolution(channels + extra, channels, 3, scaling, "lrelu"))
        self.add_module(f"layer{2 * i + 1}", Dense(channels * 16, out_channels, scaling))
        outputs = max(config.num_classes, 1)
        self.add_module(f"layer{2 * i + 2}", Dense(out_channels, outputs, replace(scaling, gain=1.0), "linear"))

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments of `build` that make this discriminator again."""
        return asdict(self.config)

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Start with the network fully grown."""
        self.lod.zero_()

    def forward(self, images: Tensor, c: Tensor | None = None, lod: float | None = None) -> Tensor:
        """Judge images `[N, C, H, W]` of [-1, 1] under one-hot labels `[N, num_classes]`; logits `[N, 1]`.

        `lod` counts the halvings that are still to grow, and fades between two of them; None is the stored one.

        Raises:
            ValueError: labels are missing, or given to an unconditional discriminator; a lod that there is not.
        """
        classes = self.config.num_classes
        if (c is not None) != bool(classes):
            raise ValueError(f"{'no labels' if c is None else 'labels'} for a discriminator of {classes} classes")
        x = self._features(images, resolved_lod(lod, self.lod, len(self.config.resolutions)))
        if self.config.mbstd_group_size > 1:
            x = minibatch_std(x, self.config.mbstd_group_size, self.config.mbstd_num_channels)
        first = 2 * len(self.config.resolutions)
        x = self.get_submodule(f"layer{first}")(x).flatten(1)
        y: Tensor = self.get_submodule(f"layer{first + 2}")(self.get_submodule(f"layer{first + 1}")(x))
        return y if c is None else (y * c).sum(dim=1, keepdim=True)

    def _features(self, images: Tensor, lod: float) -> Tensor:
        """Features `[N, C, 4, 4]` of images at the network's full resolution."""
        x: Tensor | None = None
        images = images.contiguous(memory_format=torch.channels_last)
        last = len(self.config.resolutions)
        for i in range(last + 1):
            if i - 1 < lod < i + 1:  # images enter here
                entered = self.get_submodule(f"input{i}")(images)
                x = entered if x is None else x.lerp(entered, lod - (i - 1))
            if lod < i + 1 and i < last:
                x = self.get_submodule(f"layer{2 * i + 1}")(self.get_submodule(f"layer{2 * i}")(x))
            if lod > i:
                images = F.avg_pool2d(images, 2)
        assert x is not None
        return x


DISCRIMINATOR_CLASS = "models.stylegan_discriminator.StyleGANDiscriminator"
_NAMES = {
    "resolution": "resolution",
    "label_size": "num_classes",
    "fmaps_base": "channel_base",
    "fmaps_max": "channel_max",
    "image_channels": "img_channels",
    "use_wscale": "equalized",
    "minibatch_std_group_size": "mbstd_group_size",
    "minibatch_std_channels": "mbstd_num_channels",
    "fused_scale": "fused_scale",
}


def official_discriminator_config(kwargs: Mapping[str, Any]) -> DiscriminatorConfig:
    """Translate the keyword arguments of genforce's PyTorch discriminator.

    Raises:
        ValueError: an argument, or its value, is none that this discriminator has.
    """
    flat = renamed(DISCRIMINATOR_CLASS, kwargs, _NAMES)
    check_choice("fused_scale", flat.pop("fused_scale", "auto"), FUSED_SCALES)  # both forms are the same operator
    return DiscriminatorConfig(**flat)


def build(**kwargs: Any) -> StyleGAN1Discriminator:
    """Make a discriminator of these `DiscriminatorConfig` fields; its weights are zero until set."""
    return StyleGAN1Discriminator(DiscriminatorConfig(**kwargs))
