"""The configuration of a StyleGAN (2018) generator, and how official keyword arguments translate to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FusedScale = bool | Literal["auto"]
FUSED_SCALES: tuple[FusedScale, ...] = (True, False, "auto")
NoiseType = Literal["spatial", "channel"]
NOISE_TYPES: tuple[NoiseType, ...] = ("spatial", "channel")
FUSED_FROM_RESOLUTION = 128  # of the output; "auto" fuses resampling and convolution from here on


@dataclass(frozen=True, slots=True)
class Scaling:
    """How stored weights turn into those of a layer (equalised learning rate: arXiv:1710.10196, section 4.1)."""

    gain: float = math.sqrt(2)  # of the weight; the leaky ReLU of StyleGAN has none
    lr_multiplier: float = 1.0
    equalized: bool = True  # False: scaled once, when they are drawn

    def factor(self, fan_in: int) -> float:
        """What a stored weight is multiplied by when used."""
        return self.lr_multiplier * (self.gain / math.sqrt(fan_in) if self.equalized else 1.0)

    def initial_std(self, fan_in: int) -> float:
        """Standard deviation of stored weights at the start of training."""
        return (1.0 if self.equalized else self.gain / math.sqrt(fan_in)) / self.lr_multiplier


@dataclass(frozen=True, slots=True)
class StyleGAN1Config:
    """Everything that decides the shapes and the arithmetic of a generator; the defaults are the paper's config F."""

    resolution: int
    num_classes: int = 0
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    mapping_features: int = 512
    mapping_lr_multiplier: float = 0.01
    w_avg_beta: float = 0.995
    channel_base: int = 16384
    channel_max: int = 512
    img_channels: int = 3
    repeat_w: bool = True  # False: the mapping network makes one vector for each layer
    final_tanh: bool = False
    const_input: bool = True  # False: the first style vector is the input of the synthesis network too
    fused_scale: FusedScale = "auto"
    equalized: bool = True
    noise_type: NoiseType = "spatial"  # "channel": one number a channel, weighted by a map of the pixels

    def __post_init__(self) -> None:
        check_resolution(self.resolution)
        check_choice("fused_scale", self.fused_scale, FUSED_SCALES)
        check_choice("noise_type", self.noise_type, NOISE_TYPES)

    @property
    def resolutions(self) -> list[int]:
        """The resolution of each pair of layers: 4, 8, ... up to the image's."""
        return [2**i for i in range(2, self.resolution.bit_length())]

    @property
    def layer_resolutions(self) -> list[int]:
        """The resolution of each layer, in the order in which they run."""
        return [resolution for resolution in self.resolutions for _ in range(2)]

    @property
    def num_ws(self) -> int:
        """How many style vectors an image takes: one for each layer; ToRGB takes none."""
        return len(self.layer_resolutions)

    @property
    def mapping_widths(self) -> list[int]:
        """Width of the mapping network's input and of the output of each of its layers."""
        inputs = self.z_dim * 2 if self.num_classes else self.z_dim
        outputs = self.w_dim if self.repeat_w else self.w_dim * self.num_ws
        return [inputs, *[self.mapping_features] * (self.mapping_layers - 1), outputs]

    @property
    def noise_shapes(self) -> list[tuple[int, int, int]]:
        """Shape of one sample's noise in each layer."""
        return [self.noise_shape(resolution) for resolution in self.layer_resolutions]

    def noise_shape(self, resolution: int) -> tuple[int, int, int]:
        """Shape of one sample's noise in a layer; it is repeated along the dimensions of size 1."""
        if self.noise_type == "spatial":
            return 1, resolution, resolution
        return self.channels(resolution), 1, 1

    def channels(self, resolution: int) -> int:
        """Width of the layers at `resolution`."""
        return min(self.channel_base // resolution, self.channel_max)

    def is_fused(self, resolution: int) -> bool:
        """Whether the layer that doubles to `resolution` is fused with its convolution, which mirrors the kernel."""
        return is_fused(self.fused_scale, resolution)


def is_fused(fused_scale: FusedScale, resolution: int) -> bool:
    """Whether `fused_scale` fuses the resampling from or to the higher `resolution`."""
    return resolution >= FUSED_FROM_RESOLUTION if fused_scale == "auto" else bool(fused_scale)


def check_resolution(resolution: int) -> None:
    """Raise ValueError unless the resolution is one that a network of doublings from 4 has."""
    if resolution < 8 or resolution & (resolution - 1):
        raise ValueError(f"resolution {resolution} is not a power of two from 8 on")


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(map(str, allowed))}")


def renamed(class_name: str, kwargs: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Official keyword arguments under our names.

    Raises:
        ValueError: an argument is none that the class has.
    """
    if unknown := sorted(set(kwargs) - set(names)):
        raise ValueError(f"{class_name}: unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(names))}")
    return {names[name]: value for name, value in kwargs.items()}


GENERATOR_CLASS = "models.stylegan_generator.StyleGANGenerator"
_GENERATOR_NAMES = {
    "resolution": "resolution",
    "label_size": "num_classes",
    "z_space_dim": "z_dim",
    "w_space_dim": "w_dim",
    "mapping_layers": "mapping_layers",
    "mapping_fmaps": "mapping_features",
    "mapping_lr_mul": "mapping_lr_multiplier",
    "fmaps_base": "channel_base",
    "fmaps_max": "channel_max",
    "image_channels": "img_channels",
    "repeat_w": "repeat_w",
    "final_tanh": "final_tanh",
    "const_input": "const_input",
    "fused_scale": "fused_scale",
    "use_wscale": "equalized",
    "noise_type": "noise_type",
}


def official_config(class_name: str, kwargs: Mapping[str, Any]) -> StyleGAN1Config:
    """Translate the keyword arguments of genforce's PyTorch generator, whose weights have the names of ours.

    Raises:
        ValueError: the class, an argument or the value of an argument is none that this generator has.
    """
    if class_name != GENERATOR_CLASS:
        raise ValueError(f"{class_name!r} is no StyleGAN generator; known: {GENERATOR_CLASS}")
    fields = renamed(class_name, kwargs, _GENERATOR_NAMES)
    if "noise_type" in fields:
        fields["noise_type"] = str(fields["noise_type"]).lower()  # official code takes either case
    return StyleGAN1Config(**fields)
