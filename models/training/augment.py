"""Adaptive discriminator augmentation: random, differentiable changes of images that a discriminator is shown.

Karras et al., "Training Generative Adversarial Networks with Limited Data" (arXiv:2006.06676), section 2.2 and
appendix B. Arguments and buffers have the official names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.training.augment_wavelets import NUM_BANDS, amplify_bands, band_filters, warp, warp_filter

_BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # of natural images, roughly 1 / f
_GREY_AXIS = tuple((1 / 3,) * 3 for _ in range(3))  # projects colours on their luma


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """What a pipe may do. The chance of a change is its strength times the pipe's `p`; strength 0 leaves it out."""

    xflip: float = 0  # pixel blitting
    rotate90: float = 0
    xint: float = 0
    xint_max: float = 0.125  # shift, as a part of the image
    scale: float = 0  # geometry
    rotate: float = 0
    aniso: float = 0
    xfrac: float = 0
    scale_std: float = 0.2  # of the base-2 logarithm
    rotate_max: float = 1  # half turns
    aniso_std: float = 0.2
    xfrac_std: float = 0.125
    brightness: float = 0  # colours
    contrast: float = 0
    lumaflip: float = 0
    hue: float = 0
    saturation: float = 0
    brightness_std: float = 0.2
    contrast_std: float = 0.5
    hue_max: float = 1
    saturation_std: float = 1
    imgfilter: float = 0  # frequency bands, lowest first
    imgfilter_bands: Sequence[float] = (1, 1, 1, 1)
    imgfilter_std: float = 1
    noise: float = 0  # corruptions
    cutout: float = 0
    noise_std: float = 0.1
    cutout_size: float = 0.5

    def __post_init__(self) -> None:
        if len(self.imgfilter_bands) != NUM_BANDS:
            raise ValueError(f"imgfilter_bands {self.imgfilter_bands!r}; allowed are {NUM_BANDS} strengths")


_BLIT = ("xflip", "rotate90", "xint")
_GEOM = ("scale", "rotate", "aniso", "xfrac")
_COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
_PIPES = {
    "blit": _BLIT,
    "geom": _GEOM,
    "color": _COLOR,
    "filter": ("imgfilter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
    "bg": _BLIT + _GEOM,
    "bgc": _BLIT + _GEOM + _COLOR,
    "bgcf": (*_BLIT, *_GEOM, *_COLOR, "imgfilter"),
    "bgcfn": (*_BLIT, *_GEOM, *_COLOR, "imgfilter", "noise"),
    "bgcfnc": (*_BLIT, *_GEOM, *_COLOR, "imgfilter", "noise", "cutout"),
}


def named_augment_config(name: str) -> AugmentConfig:
    """The pipe of a name of the paper (figure 4): "bgc" is blitting, geometry and colours, all at full strength.

    Raises:
        ValueError: there is no pipe of that name.
    """
    if name not in _PIPES:
        raise ValueError(f"unknown augmentation pipe {name!r}; known are {', '.join(_PIPES)}")
    return official_augment_config(dict.fromkeys(_PIPES[name], 1))


def official_augment_config(kwargs: Mapping[str, Any]) -> AugmentConfig:
    """Translate the keyword arguments of the official pipe, which are ours.

    Raises:
        ValueError: an argument, or its value, is none that the pipe has.
    """
    known = AugmentConfig.__dataclass_fields__
    if unknown := sorted(kwargs.keys() - known.keys()):
        raise ValueError(f"unknown augmentation arguments {', '.join(unknown)}; known: {', '.join(known)}")
    bands = tuple(kwargs.get("imgfilter_bands", (1,) * NUM_BANDS))
    return AugmentConfig(**{**kwargs, "imgfilter_bands": bands})


class AugmentPipe(nn.Module):
    """Images to images of the same size, changed at random; differentiable twice, as R1 regularisation needs it."""

    p: Tensor
    Hz_geom: Tensor
    Hz_fbank: Tensor

    def __init__(self, config: AugmentConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("p", torch.ones(()))
        self.register_buffer("Hz_geom", warp_filter())
        self.register_buffer("Hz_fbank", band_filters())

    def forward(
        self, images: Tensor, generator: torch.Generator | None = None, debug_percentile: float | None = None
    ) -> Tensor:
        """Change images `[N, C, H, W]` of [-1, 1]; at `p` 0 these are returned as they are.

        Random numbers come from `generator` on its own device, so that a CPU generator gives the same changes
        everywhere; None is torch's own. A `debug_percentile` of 0 to 1 makes all changes that have a strength, each by
        that percentile of its distribution.

        Raises:
            ValueError: colours of images that have neither one nor three channels, or images too small for a filter.
        """
        if debug_percentile is None and not self.p:
            return images
        draws = _Draws(images, self.p, generator, debug_percentile)
        if inverses := _inverse_geometry(self.config, draws):
            images = warp(images, reduce(torch.matmul, inverses), self.Hz_geom)
        images = _change_colors(images, self.config, draws)
        if self.config.imgfilter:
            images = amplify_bands(images, _band_gains(self.config, draws), self.Hz_fbank)
        if self.config.noise:
            images = images + draws.noise(images.shape) * _noise_levels(self.config, draws)[:, None, None, None]
        return images * _cutout_mask(self.config, draws) if self.config.cutout else images


class _Draws:
    """The random numbers of one call: one a sample, or all at the same percentile of their distribution."""

    def __init__(self, images: Tensor, p: Tensor, generator: torch.Generator | None, percentile: float | None) -> None:
        self.images, self.p, self.generator, self.percentile = images, p.to(images), generator, percentile
        self.device = images.device if generator is None else generator.device

    def noise(self, shape: Sequence[int]) -> Tensor:
        """N(0, 1) of this shape, whatever the percentile."""
        return torch.randn(shape, generator=self.generator, device=self.device).to(self.images)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers `[N, *shape]` of [0, 1)."""
        full = (len(self.images), *shape)
        if self.percentile is not None:
            return self.images.new_full(full, self.percentile)
        return torch.rand(full, generator=self.generator, device=self.device).to(self.images)

    def signed(self, *shape: int) -> Tensor:
        """Numbers `[N, *shape]` of [-1, 1)."""
        return self.uniform(*shape) * 2 - 1

    def integers(self, count: int) -> Tensor:
        """Whole numbers `[N]` from 0 to `count` - 1."""
        return (self.uniform() * count).floor()

    def normal(self, *shape: int) -> Tensor:
        """Numbers `[N, *shape]` of N(0, 1); those of a percentile lack, as the official ones do, a factor sqrt(2)."""
        if self.percentile is not None:
            return self.signed(*shape).erfinv()
        return self.noise((len(self.images), *shape))

    def half_normal(self) -> Tensor:
        """Magnitudes `[N]` of N(0, 1)."""
        return self.normal().abs() if self.percentile is None else self.uniform().erfinv()

    def gated(self, values: Tensor, strength: float | Tensor, neutral: float = 0.0) -> Tensor:
        """Keep the values `[N, ...]` of a sample with probability `strength * p`, else give it the neutral one."""
        return self.kept(values, strength * self.p, neutral)

    def kept(self, values: Tensor, chance: Tensor, neutral: float = 0.0) -> Tensor:
        """Keep the values `[N, ...]` of a sample with this probability, else give it the neutral one."""
        if self.percentile is not None:
            return values
        keep = (self.uniform() < chance).reshape(-1, *[1] * (values.ndim - 1))
        return torch.where(keep, values, neutral)


def _inverse_geometry(config: AugmentConfig, draws: _Draws) -> list[Tensor]:
    """Matrices `[N, 3, 3]`, whose product maps output pixels, counted from the centre, to input pixels."""
    return _inverse_blitting(config, draws) + _inverse_deformation(config, draws)


def _inverse_blitting(config: AugmentConfig, draws: _Draws) -> list[Tensor]:
    inverses = []
    if config.xflip:
        mirrored = draws.gated(draws.integers(2), config.xflip)
        inverses.append(_scaling(1 - 2 * mirrored, torch.ones_like(mirrored)))
    if config.rotate90:
        quarters = draws.gated(draws.integers(4), config.rotate90)
        inverses.append(_rotation(quarters * (math.pi / 2)))
    if config.xint:
        shift = draws.gated(draws.signed(2) * config.xint_max, config.xint)
        inverses.append(_translation(-(shift * _width_and_height(draws)).round()))
    return inverses


def _inverse_deformation(config: AugmentConfig, draws: _Draws) -> list[Tensor]:
    inverses = []
    if config.scale:
        factor = draws.gated((draws.normal() * config.scale_std).exp2(), config.scale, 1.0)
        inverses.append(_scaling(1 / factor, 1 / factor))
    # two rotations, of which at least one happens with the probability of all other changes
    once = 1 - (1 - config.rotate * draws.p).clamp(0, 1).sqrt()
    if config.rotate:
        angle = draws.kept(draws.signed() * (math.pi * config.rotate_max), once)
        inverses.append(_rotation(angle))
    if config.aniso:
        factor = draws.gated((draws.normal() * config.aniso_std).exp2(), config.aniso, 1.0)
        inverses.append(_scaling(1 / factor, factor))
    if config.rotate and draws.percentile is None:
        angle = draws.kept(draws.signed() * (math.pi * config.rotate_max), once)
        inverses.append(_rotation(angle))
    if config.xfrac:
        shift = draws.gated(draws.normal(2) * config.xfrac_std, config.xfrac)
        inverses.append(_translation(-shift * _width_and_height(draws)))
    return inverses


def _change_colors(images: Tensor, config: AugmentConfig, draws: _Draws) -> Tensor:
    """Map colours by `M (x + b)`, one matrix and one brightness a sample; of grey images all three channels are one."""
    if not any(getattr(config, name) for name in _COLOR):
        return images
    channels = images.shape[1]
    if channels not in (1, 3):
        raise ValueError(f"images of {channels} channels; colours are changed of 1 or 3, set {', '.join(_COLOR)} to 0")
    shifted = images
    if config.brightness:
        shift = draws.gated(draws.normal() * config.brightness_std, config.brightness)
        shifted = images + shift[:, None, None, None]
    matrix = _color_matrix(config, draws)
    if channels == 1:
        return shifted * matrix.sum(2).mean(1)[:, None, None, None]
    return (matrix @ shifted.flatten(2)).reshape(images.shape)


def _color_matrix(config: AugmentConfig, draws: _Draws) -> Tensor:
    """Matrices `[N, 3, 3]` that scale colours, mirror, rotate about and stretch from the grey axis."""
    like = draws.images
    eye, grey = torch.eye(3).to(like), like.new_tensor(_GREY_AXIS)
    matrix = eye.expand(len(like), 3, 3)
    if config.contrast:
        matrix = matrix * _column(draws.gated((draws.normal() * config.contrast_std).exp2(), config.contrast, 1.0))
    if config.lumaflip:
        matrix = (eye - 2 * grey * _column(draws.gated(draws.integers(2), config.lumaflip))) @ matrix
    if config.hue:
        angle = _column(draws.gated(draws.signed() * (math.pi * config.hue_max), config.hue))
        cross = like.new_tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        matrix = (eye + (angle.cos() - 1) * (eye - grey) + angle.sin() * cross) @ matrix  # Rodrigues' formula
    if config.saturation:
        factor = draws.gated((draws.normal() * config.saturation_std).exp2(), config.saturation, 1.0)
        matrix = (eye + (_column(factor) - 1) * (eye - grey)) @ matrix
    return matrix


def _band_gains(config: AugmentConfig, draws: _Draws) -> Tensor:
    """Factors `[N, 4]` of the frequency bands that keep the expected power of an image."""
    power = draws.images.new_tensor(_BAND_POWER)
    gains = torch.ones_like(power).expand(len(draws.images), -1)
    for band, strength in enumerate(config.imgfilter_bands):
        if not strength:
            continue
        factor = draws.gated((draws.normal() * config.imgfilter_std).exp2(), config.imgfilter * strength, 1.0)
        changed = torch.where(torch.arange(NUM_BANDS, device=factor.device) == band, factor[:, None], 1.0)
        gains = gains * changed / (power * changed.square()).sum(1, keepdim=True).sqrt()
    return gains


def _noise_levels(config: AugmentConfig, draws: _Draws) -> Tensor:
    return draws.gated(draws.half_normal() * config.noise_std, config.noise)


def _cutout_mask(config: AugmentConfig, draws: _Draws) -> Tensor:
    """`[N, 1, H, W]`: zero within a box of part `cutout_size` of each side, one elsewhere."""
    like = draws.images
    half = draws.gated(like.new_full((len(like),), config.cutout_size), config.cutout) / 2
    centre = draws.uniform(2)
    height, width = ((torch.arange(size, device=like.device).to(like) + 0.5) / size for size in like.shape[2:])
    outside_x = (width - centre[:, :1]).abs() >= half[:, None]
    outside_y = (height - centre[:, 1:]).abs() >= half[:, None]
    return (outside_x[:, None, None, :] | outside_y[:, None, :, None]).to(like)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None]


def _width_and_height(draws: _Draws) -> Tensor:
    height, width = draws.images.shape[2:]
    return draws.images.new_tensor([width, height])


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    matrix: Tensor = torch.stack([x, y, torch.ones_like(x)], dim=1).diag_embed()
    return matrix


def _rotation(angle: Tensor) -> Tensor:
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    matrix: Tensor = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).unflatten(1, (3, 3))
    return matrix


def _translation(shift: Tensor) -> Tensor:
    """`[N, 2]` as (x, y) to `[N, 3, 3]`."""
    column = F.pad(shift, (0, 1))[:, :, None]
    return torch.eye(3).to(shift) + F.pad(column, (2, 0))
