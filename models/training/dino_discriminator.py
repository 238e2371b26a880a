"""The discriminator of StyleGAN-T: five light heads on the tokens of a frozen DINO transformer.

Sauer et al., "StyleGAN-T: Unlocking the Power of GANs for Fast Large-Scale Text-to-Image Synthesis"
(arXiv:2301.09515), section 3.2. Parameters and buffers have the official names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.layers import FullyConnectedLayer
from models.training.diffaug import diff_augment, draw_augmentation
from models.training.feature_networks import DINO, TAPPED_BLOCKS, DinoFeatures
from models.training.spectral_convolution import CircularSpectralConv1d

_KERNEL_SIZE = 9
_VIRTUAL_BATCH = 8
_EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class DinoDiscriminatorConfig:
    """Everything that decides shapes and arithmetic; the defaults are the paper's."""

    condition_width: int = 0  # of text features; 0: unconditional
    augment: bool = True
    crop_probability: float = 0.5  # of cropping a batch of larger images instead of shrinking it
    label_width: int = 64
    vit: str = DINO
    vit_kwargs: Mapping[str, Any] = field(default_factory=dict)  # what to change in it: img_size, embed_dim, ...


class LocalBatchNorm(nn.Module):
    """Normalises with the statistics of at most eight samples at a time, in evaluation too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Set scales to one and shifts to zero."""
        self.weight.fill_(1)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[N, C, T]` over samples and positions.

        Raises:
            ValueError: N is above eight and can't be cut into equal groups of at most eight.
        """
        groups = math.ceil(len(x) / _VIRTUAL_BATCH)
        if len(x) % groups:
            raise ValueError(
                f"batch of {len(x)} can't be cut into {groups} equal groups for normalisation. "
                f"Use up to {_VIRTUAL_BATCH} images or a multiple of {_VIRTUAL_BATCH}"
            )
        grouped: Tensor = x.unflatten(0, (groups, -1))
        variance, mean = torch.var_mean(grouped, dim=(1, 3), keepdim=True, correction=0)
        normalized: Tensor = ((grouped - mean) / (variance + _EPSILON).sqrt()).flatten(0, 1)
        return normalized * self.weight[:, None] + self.bias[:, None]


class ResidualBlock(nn.Module):
    """Adds the input to what `fn` makes of it, and keeps the variance."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, T]` to the same shape."""
        y: Tensor = self.fn(x)
        return (y + x) / math.sqrt(2)


class DiscriminatorHead(nn.Module):
    """The judge of one sequence of tokens: a logit for each patch, under a text or not."""

    def __init__(self, channels: int, condition_width: int, label_width: int = 64) -> None:
        super().__init__()
        self.main = nn.Sequential(_block(channels, 1), ResidualBlock(_block(channels, _KERNEL_SIZE)))
        self.cls = CircularSpectralConv1d((channels, label_width if condition_width else 1), 1)
        if condition_width:
            self.cmapper = FullyConnectedLayer(condition_width, label_width)

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Map `[N, C, T]` and text features `[N, condition_width]` to logits `[N, T]`."""
        x = self.cls(self.main(x))
        if c is not None:
            label: Tensor = self.cmapper(c)
            x = (x * label.unsqueeze(2)).sum(dim=1) / math.sqrt(label.shape[1])
        return x.flatten(1)


class DinoDiscriminator(nn.Module):
    """Images and text features to logits. The weights of all heads are zero until set, those of DINO random."""

    def __init__(self, config: DinoDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.dino = DinoFeatures(config.vit, config.vit_kwargs)
        sequences = range(len(TAPPED_BLOCKS) + 1)
        channels = self.dino.channels
        heads = {str(i): DiscriminatorHead(channels, config.condition_width, config.label_width) for i in sequences}
        self.heads = nn.ModuleDict(heads)

    def requires_grad_(self, requires_grad: bool = True) -> DinoDiscriminator:
        """Start or stop the training of the heads; DINO stays as it is."""
        self.heads.requires_grad_(requires_grad)
        return self

    def forward(self, images: Tensor, c: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Judge images `[N, 3, H, W]` of [-1, 1] under text features `[N, condition_width]`; logits `[N, L]`.

        Augmentation and cropping take their random numbers from `generator` (None: torch's own).

        Raises:
            ValueError: features are missing, of another width or not wanted, or N is above 8 and no multiple of it.
        """
        given, wanted = 0 if c is None else c.shape[1], self.config.condition_width
        if given != wanted:
            raise ValueError(f"text features of width {given} for a discriminator that takes width {wanted}")
        if self.config.augment:
            images = diff_augment(images, draw_augmentation(images, generator))
        features = self.dino(self._cropped((images + 1) / 2, generator))
        return torch.cat([head(x, c) for head, x in zip(self.heads.values(), features, strict=True)], dim=1)

    def _cropped(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Perhaps cut the same square, of the size that DINO takes, out of all images that are larger."""
        size, (height, width) = self.dino.input_size, images.shape[2:]
        device = "cpu" if generator is None else generator.device
        if width <= size or torch.rand((), generator=generator, device=device).item() >= self.config.crop_probability:
            return images
        top, left = (
            int(torch.randint(extent - size + 1, (), generator=generator, device=device)) for extent in (height, width)
        )
        return images[:, :, top : top + size, left : left + size]


def _block(channels: int, kernel_size: int) -> nn.Sequential:
    convolution = CircularSpectralConv1d((channels, channels), kernel_size)
    return nn.Sequential(convolution, LocalBatchNorm(channels), nn.LeakyReLU(0.2))


_RENAMED = {"c_dim": "condition_width", "diffaug": "augment", "p_crop": "crop_probability"}


def official_dino_config(
    kwargs: Mapping[str, Any], vit_kwargs: Mapping[str, Any] | None = None
) -> DinoDiscriminatorConfig:
    """Translate the keyword arguments of StyleGAN-T's `ProjectedDiscriminator`.

    Raises:
        ValueError: an argument is none that this discriminator has.
    """
    if unknown := sorted(set(kwargs) - set(_RENAMED)):
        raise ValueError(f"unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(_RENAMED))}")
    translated = {_RENAMED[name]: value for name, value in kwargs.items()}
    return DinoDiscriminatorConfig(**translated, vit_kwargs=vit_kwargs or {})
