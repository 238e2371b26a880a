"""The configuration of a StyleGAN2 generator, and how official keyword arguments translate to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from models.layers import FIR_TAPS

Architecture = Literal["skip", "resnet", "orig"]


@dataclass(frozen=True, slots=True)
class StyleGAN2Config:
    """Everything that decides the shapes and the arithmetic of a generator; the defaults are config F."""

    resolution: int
    num_classes: int = 0
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    mapping_lr_multiplier: float = 0.01
    w_avg_beta: float = 0.995
    channel_base: int = 32768
    channel_max: int = 512
    architecture: Architecture = "skip"
    conv_clamp: float | None = None
    num_fp16_res: int = 0  # so many of the highest resolutions run in float16, on CUDA only

    def __post_init__(self) -> None:
        if self.resolution < 4 or self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution {self.resolution} is not a power of two from 4 on")
        if self.architecture not in get_args(Architecture):
            raise ValueError(f"architecture {self.architecture!r} is not one of {', '.join(get_args(Architecture))}")

    @property
    def resolutions(self) -> list[int]:
        """The resolution of each block: 4, 8, ... up to the image's."""
        return [2**i for i in range(2, self.resolution.bit_length())]

    @property
    def noise_resolutions(self) -> list[int]:
        """The resolution of each layer that adds noise, in the order in which they run."""
        return [4] + [r for r in self.resolutions[1:] for _ in range(2)]

    @property
    def num_ws(self) -> int:
        """How many style vectors an image takes: one for each convolution, one for the last ToRGB."""
        return len(self.noise_resolutions) + 1

    def channels(self, resolution: int) -> int:
        """Width of the block at `resolution`."""
        return min(self.channel_base // resolution, self.channel_max)

    def is_half(self, resolution: int) -> bool:
        """Whether the block at `resolution` may run in float16; never below 8x8."""
        return self.num_fp16_res > 0 and resolution >= max(self.resolution >> (self.num_fp16_res - 1), 8)


# What the official classes take for granted where their keyword arguments are silent.
OFFICIAL_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "training.networks.Generator": {},  # StyleGAN2-ADA
    "training.networks_stylegan2.Generator": {"w_avg_beta": 0.998, "conv_clamp": 256, "num_fp16_res": 4},  # StyleGAN3
}
_OFFICIAL_NAMES = {"img_resolution": "resolution", "c_dim": "num_classes"}
_OFFICIAL_MAPPING_NAMES = {"num_layers": "mapping_layers", "lr_multiplier": "mapping_lr_multiplier"}
_OFFICIAL_CONSTANTS = {"img_channels": 3, "activation": "lrelu", "resample_filter": list(FIR_TAPS), "use_noise": True}


def official_config(class_name: str, kwargs: Mapping[str, Any]) -> StyleGAN2Config:
    """Translate the keyword arguments of an official generator class.

    Raises:
        ValueError: the class, an argument or the value of an argument is none that this generator has.
    """
    if class_name not in OFFICIAL_DEFAULTS:
        raise ValueError(f"{class_name!r} is no StyleGAN2 generator; known: {', '.join(OFFICIAL_DEFAULTS)}")
    flat = {**kwargs, **kwargs.get("synthesis_kwargs", {})}
    flat = {_OFFICIAL_NAMES.get(name, name): value for name, value in flat.items()}
    flat |= {_OFFICIAL_MAPPING_NAMES.get(name, name): value for name, value in kwargs.get("mapping_kwargs", {}).items()}
    for name in ("synthesis_kwargs", "mapping_kwargs"):
        flat.pop(name, None)
    for name, only in _OFFICIAL_CONSTANTS.items():
        if (value := flat.pop(name, only)) != only:
            raise ValueError(f"{class_name}: {name}={value!r} is not supported, only {only!r}")
    known = set(StyleGAN2Config.__dataclass_fields__)
    if unknown := sorted(set(flat) - known):
        raise ValueError(f"{class_name}: unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return StyleGAN2Config(**{**OFFICIAL_DEFAULTS[class_name], **flat})
