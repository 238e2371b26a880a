"""The projected discriminator of StyleGAN-XL: small convolutional heads on mixed features of frozen networks.

Sauer et al., "Projected GANs Converge Faster" (arXiv:2111.01007), section 3, and "StyleGAN-XL: Scaling StyleGAN to
Large Diverse Datasets" (arXiv:2202.00273), sections 3.1 and 3.2. Parameters and buffers have the official names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import FullyConnectedLayer, fill_normal
from models.training.diffaug import diff_augment, draw_augmentation
from models.training.feature_networks import build_feature_network
from models.training.spectral_convolution import SpectralConv2d, reset_convolution

LEVELS = 4  # feature maps of a backbone, at 1/4 to 1/32 of the resolution
Projection = Literal[0, 1, 2]  # none; across channels; across channels and scales

_RESIZED = 224
_LAST_SIZE = 8  # heads halve the resolution down to this
_WIDTHS = {4: 512, 8: 512, 16: 256, 32: 128, 64: 64, 128: 64, 256: 32, 512: 16, 1024: 8}  # of heads, by resolution


@dataclass(frozen=True, slots=True)
class ProjectionConfig:
    """How the maps of one backbone are mixed."""

    channels: tuple[int, ...]  # of the four maps, the largest map first
    width: int = 64  # of the largest map after mixing
    expand: bool = True  # twice the channels at each lower resolution
    kind: Projection = 2

    def __post_init__(self) -> None:
        if len(self.channels) != LEVELS:
            raise ValueError(f"channels {self.channels}: {len(self.channels)} maps, a backbone gives {LEVELS}")
        if self.kind not in get_args(Projection):
            raise ValueError(f"projection {self.kind!r} is not 0 (none), 1 (channels) or 2 (channels and scales)")

    @property
    def mixed_channels(self) -> tuple[int, ...]:
        """Widths after mixing across channels."""
        return tuple(self.width << i if self.expand else self.width for i in range(LEVELS))

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Widths of what the heads get."""
        if self.kind == 0:
            return self.channels
        mixed = self.mixed_channels
        return mixed if self.kind == 1 else (mixed[0], *mixed[:-1])


@dataclass(frozen=True, slots=True)
class HeadsConfig:
    """The heads of one backbone."""

    channels: tuple[int, ...]
    resolutions: tuple[int, ...]  # what the depth of each head is made for; it takes others too
    num_heads: int = LEVELS
    num_classes: int = 0
    embedding_shape: tuple[int, int] = (1000, 320)  # classes and width of the pretrained table
    label_width: int = 64
    width: int | None = None  # None: by resolution
    patch: bool = False  # judges many small patches: one halving, whatever the resolution, and a 1x1 convolution

    def __post_init__(self) -> None:
        if self.num_classes > self.embedding_shape[0]:
            raise ValueError(f"{self.num_classes} classes, the table of embeddings has rows for {self.embedding_shape}")

    def widths(self, level: int) -> list[int]:
        """Channels before and after each layer that halves the resolution of a level."""
        wanted = 2 * _LAST_SIZE if self.patch else self.resolutions[level]
        start = min(_WIDTHS, key=lambda size: abs(size - wanted))
        halved = [start >> i for i in range(1, start.bit_length()) if start >> i >= _LAST_SIZE]
        return [self.channels[level], *(self.width or _WIDTHS[size] for size in halved)]


@dataclass(frozen=True, slots=True)
class ProjectedDiscriminatorConfig:
    """Everything that decides shapes and arithmetic; the defaults are those of the ImageNet models."""

    num_classes: int = 0
    backbones: tuple[str, ...] = ("deit_base_distilled_patch16_224", "tf_efficientnet_lite0")
    augment: bool = True
    resize: bool = True  # all images to 224 pixels, as is done to smaller ones; else only for transformers
    width: int = 64
    expand: bool = True
    projection: Projection = 2
    num_heads: int = LEVELS
    resolution: int = 256  # of the images that the depth of the heads is made for
    label_width: int = 64
    embedding_shape: tuple[int, int] = (1000, 320)
    patch: bool = False  # heads that judge many small patches

    def heads(self, channels: tuple[int, ...]) -> HeadsConfig:
        """The heads for maps of these channels."""
        largest = self.resolution // (2 if self.projection == 2 else 4)
        return HeadsConfig(
            channels=channels,
            resolutions=tuple(largest >> i for i in range(LEVELS)),
            num_heads=self.num_heads,
            num_classes=self.num_classes,
            embedding_shape=self.embedding_shape,
            label_width=self.label_width,
            patch=self.patch,
        )


class CrossScaleMixing(nn.Module):
    """Adds a map to that of the next lower resolution, doubles the resolution and changes the width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, lower: Tensor | None) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, 2 H, 2 W]`."""
        x = x if lower is None else x + lower
        # officially in the other order; a 1x1 convolution and an interpolation commute, and this one costs a quarter
        return F.interpolate(self.out_conv(x), scale_factor=2, mode="bilinear", align_corners=True)


class RandomProjection(nn.Module):
    """Fixed random mixing of the four maps of a backbone, across channels and then across scales."""

    def __init__(self, config: ProjectionConfig) -> None:
        super().__init__()
        self.config = config
        mixed = config.mixed_channels
        for i in range(LEVELS):
            if config.kind >= 1:
                self.add_module(f"layer{i}_ccm", nn.Conv2d(config.channels[i], mixed[i], 1))
            if config.kind == 2:
                self.add_module(f"layer{i}_csm", CrossScaleMixing(mixed[i], config.out_channels[i]))
        self.requires_grad_(False)

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the projection."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                reset_convolution(layer.weight, layer.bias, rng)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Mix maps `[N, C, H / 2^i, W / 2^i]`, i = 0 to 3; mixing across scales doubles their resolution."""
        mixed = list(features)
        if self.config.kind >= 1:
            mixed = [self.get_submodule(f"layer{i}_ccm")(x) for i, x in enumerate(mixed)]
        if self.config.kind == 2:
            lower = None
            for i in reversed(range(LEVELS)):
                lower = mixed[i] = self.get_submodule(f"layer{i}_csm")(mixed[i], lower)
        return mixed


class ProjectedFeatures(nn.Module):
    """A backbone and the projection of its maps; neither is trained."""

    def __init__(self, name: str, config: ProjectedDiscriminatorConfig) -> None:
        super().__init__()
        self.pretrained = build_feature_network(name)
        channels = self.pretrained.channels
        self.scratch = RandomProjection(ProjectionConfig(channels, config.width, config.expand, config.projection))

    def forward(self, images: Tensor, resize: bool) -> list[Tensor]:
        """Turn images `[N, 3, H, W]` of [0, 1] into four mixed maps."""
        images = self.pretrained.normalize(images)
        size = _RESIZED if resize else self.pretrained.input_size
        if size is not None:
            images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
        return cast("list[Tensor]", self.scratch(self.pretrained(images)))


class DownBlock(nn.Module):
    """Halves the resolution: convolution, normalisation over the batch, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        convolution = SpectralConv2d((in_channels, out_channels), 4, stride=2, padding=1, bias=True)
        self.main = nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2))

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Forget the statistics and the scales."""
        cast("nn.BatchNorm2d", self.main[1]).reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, H / 2, W / 2]`."""
        return cast("Tensor", self.main(x))


class PatchDownBlock(nn.Module):
    """Halves the resolution, then mixes the channels of each pixel once more."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        mixing = SpectralConv2d((out_channels, out_channels), 1, bias=False)
        down = DownBlock(in_channels, out_channels)
        self.main = nn.Sequential(down, mixing, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2))

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Forget the statistics and the scales."""
        cast("nn.BatchNorm2d", self.main[2]).reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, H / 2, W / 2]`."""
        return cast("Tensor", self.main(x))


class DiscriminatorHead(nn.Module):
    """The judge of one map: a logit for each patch, under a label or not."""

    def __init__(self, config: HeadsConfig, level: int) -> None:
        super().__init__()
        self.config = config
        widths = config.widths(level)
        block = PatchDownBlock if config.patch else DownBlock
        blocks: list[nn.Module] = [block(*pair) for pair in pairwise(widths)]
        if not config.num_classes:
            blocks.append(SpectralConv2d((widths[-1], 1), 4, bias=False))
        self.main = nn.Sequential(*blocks)
        if config.num_classes:
            self.cls = SpectralConv2d((widths[-1], config.label_width), 4, bias=False)
            self.embed = nn.Embedding(*config.embedding_shape)
            self.embed_proj = FullyConnectedLayer(config.embedding_shape[1], config.label_width, "lrelu")

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the embeddings, for want of the official ones: mean features of each class in EfficientNet-lite0."""
        if self.config.num_classes:
            fill_normal(self.embed.weight, rng)

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Map `[N, C, H, W]` and one-hot labels `[N, num_classes]` to logits `[N, L]`."""
        x = self.main(x)
        if c is not None:
            label: Tensor = self.embed_proj(self.embed(c.argmax(dim=1)))
            x = (self.cls(x) * label[:, :, None, None]).sum(dim=1) / math.sqrt(label.shape[1])
        return x.flatten(1)


class MultiScaleHeads(nn.Module):
    """One head for each of the larger maps of a backbone."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config = config
        heads = {str(i): DiscriminatorHead(config, i) for i in range(min(config.num_heads, LEVELS))}
        self.mini_discs = nn.ModuleDict(heads)

    def forward(self, features: Sequence[Tensor], c: Tensor | None = None) -> Tensor:
        """Judge four maps under one-hot labels `[N, num_classes]`; logits `[N, L]` of all patches of all heads.

        Raises:
            ValueError: labels are missing or of another number of classes, or given to unconditional heads.
        """
        given, wanted = 0 if c is None else c.shape[1], self.config.num_classes
        if given != wanted:
            raise ValueError(f"labels of {given} classes for a discriminator of {wanted} classes")
        judged = zip(self.mini_discs.values(), features, strict=False)
        return torch.cat([head(x, c) for head, x in judged], dim=1)


class ProjectedDiscriminator(nn.Module):
    """Images and labels to logits. The weights of all heads are zero until set, those of the backbones random."""

    def __init__(self, config: ProjectedDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        features = {name: ProjectedFeatures(name, config) for name in config.backbones}
        heads = {name: MultiScaleHeads(config.heads(of.scratch.config.out_channels)) for name, of in features.items()}
        self.feature_networks, self.discriminators = nn.ModuleDict(features), nn.ModuleDict(heads)

    def requires_grad_(self, requires_grad: bool = True) -> ProjectedDiscriminator:
        """Start or stop the training of the heads; the feature networks stay as they are."""
        self.discriminators.requires_grad_(requires_grad)
        return self

    def forward(
        self, images: Tensor, c: Tensor | None = None, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Judge images `[N, 3, H, W]` of [-1, 1] under one-hot labels `[N, num_classes]`; logits `[N, L]` a backbone.

        Each backbone sees images that are augmented anew, with random numbers of `generator` (None: torch's own).

        Raises:
            ValueError: labels are missing or of another number of classes, or not wanted.
        """
        logits = []
        for name, network in self.feature_networks.items():
            x = diff_augment(images, draw_augmentation(images, generator)) if self.config.augment else images
            logits.append(self.discriminators[name](network((x + 1) / 2, self.config.resize), c))
        return logits


_RENAMED = {
    "diffaug": "augment",
    "interp224": "resize",
    "cout": "width",
    "expand": "expand",
    "proj_type": "projection",
    "num_discs": "num_heads",
    "patch": "patch",
}
_OTHERS = {"backbones", "c_dim", "cond", "img_channels"}
# the official classes take them and never read them
_UNREAD = {"img_resolution", "im_res", "cmap_dim", "rand_embedding", "separable"}


def official_projected_config(kwargs: Mapping[str, Any]) -> ProjectedDiscriminatorConfig:
    """Translate the keyword arguments of StyleGAN-XL's `ProjectedDiscriminator`.

    Raises:
        ValueError: an argument, or its value, is none that this discriminator has.
    """
    flat = {**kwargs, **kwargs.get("backbone_kwargs", {})}
    flat.pop("backbone_kwargs", None)
    known = _OTHERS | _UNREAD | set(_RENAMED)
    if unknown := sorted(set(flat) - known):
        raise ValueError(f"unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if (channels := flat.get("img_channels", 3)) != 3:
        raise ValueError(f"img_channels={channels} is not supported: the feature networks take 3")
    translated = {_RENAMED[name]: value for name, value in flat.items() if name in _RENAMED}
    if "backbones" in flat:
        translated["backbones"] = tuple(flat["backbones"])
    return ProjectedDiscriminatorConfig(flat.get("c_dim", 1000) if flat.get("cond") else 0, **translated)
