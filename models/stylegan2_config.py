"""The configuration of a StyleGAN2 generator, and how official keyword arguments translate to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kernels.bias_act import Activation
from models.layers import FIR_TAPS, Taps
from models.mapping import MappingConfig

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
    w_avg_beta: float | None = 0.995  # None: no average is kept, and there is no truncation
    channel_base: int = 32768
    channel_max: int = 512
    architecture: Architecture = "skip"
    conv_clamp: float | None = None
    num_fp16_res: int = 0  # so many of the highest resolutions run in float16, on CUDA only
    img_channels: int = 3
    kernel_size: int = 3  # of all convolutions but those to colours
    activation: str = "lrelu"
    use_noise: bool = True
    resample_filter: Taps = FIR_TAPS
    mapping_embed_features: int | None = None  # width of the embedded label; None: w_dim
    mapping_layer_features: int | None = None  # width of the inner layers; None: w_dim
    mapping_activation: str = "lrelu"

    def __post_init__(self) -> None:
        check_network(self.resolution, 4, self.architecture, self.activation)
        if self.kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size {self.kernel_size} is even, which would change the resolution; use an odd one"
            )
        object.__setattr__(self, "resample_filter", as_taps(self.resample_filter))

    @property
    def resolutions(self) -> list[int]:
        """The resolution of each block: 4, 8, ... up to the image's."""
        return [2**i for i in range(2, self.resolution.bit_length())]

    @property
    def noise_resolutions(self) -> list[int]:
        """The resolution of each layer that adds noise, in the order in which they run."""
        return [4] + [r for r in self.resolutions[1:] for _ in range(2)] if self.use_noise else []

    @property
    def num_ws(self) -> int:
        """How many style vectors an image takes: one for each convolution, one for the last ToRGB."""
        return 2 * len(self.resolutions)

    @property
    def mapping(self) -> MappingConfig:
        """The mapping network's part."""
        return MappingConfig(
            z_dim=self.z_dim,
            num_classes=self.num_classes,
            w_dim=self.w_dim,
            num_ws=self.num_ws,
            num_layers=self.mapping_layers,
            embed_features=self.mapping_embed_features,
            layer_features=self.mapping_layer_features,
            activation=self.mapping_activation,
            lr_multiplier=self.mapping_lr_multiplier,
            w_avg_beta=self.w_avg_beta,
        )

    def channels(self, resolution: int) -> int:
        """Width of the block at `resolution`."""
        return min(self.channel_base // resolution, self.channel_max)

    def is_half(self, resolution: int) -> bool:
        """Whether the block at `resolution` may run in float16."""
        return is_half(resolution, self.resolution, self.num_fp16_res)


def is_half(block_resolution: int, resolution: int, num_fp16_res: int) -> bool:
    """Whether a block is among the `num_fp16_res` highest of a network of `resolution`; never below 8x8."""
    return num_fp16_res > 0 and block_resolution >= max(resolution >> (num_fp16_res - 1), 8)


def as_taps(taps: Any) -> Taps:
    """Make lists, which JSON has, tuples; None is no filter."""
    if taps is None:
        return (1,)
    return tuple(tuple(row) if isinstance(row, Sequence) else row for row in taps)


def check_network(resolution: int, least: int, architecture: str, *activations: str) -> None:
    """Refuse what has no network.

    Raises:
        ValueError: the resolution is no power of two from `least` on, or a name is unknown.
    """
    if resolution < least or resolution & (resolution - 1):
        raise ValueError(f"resolution {resolution} is not a power of two from {least} on")
    if architecture not in get_args(Architecture):
        raise ValueError(f"architecture {architecture!r} is not one of {', '.join(get_args(Architecture))}")
    for activation in activations:
        Activation(activation)


# What the official classes take for granted where their keyword arguments are silent.
OFFICIAL_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "training.networks.Generator": {},  # StyleGAN2-ADA
    "training.networks_stylegan2.Generator": {"w_avg_beta": 0.998, "conv_clamp": 256, "num_fp16_res": 4},  # StyleGAN3
}
# official name: ours, None for what does not change numbers; nested arguments have "group." before their name
OFFICIAL_MAPPING_NAMES: Mapping[str, str | None] = {
    "mapping_kwargs.num_layers": "mapping_layers",
    "mapping_kwargs.embed_features": "mapping_embed_features",
    "mapping_kwargs.layer_features": "mapping_layer_features",
    "mapping_kwargs.activation": "mapping_activation",
    "mapping_kwargs.lr_multiplier": "mapping_lr_multiplier",
}
_OFFICIAL_NAMES: Mapping[str, str | None] = {
    "z_dim": "z_dim",
    "c_dim": "num_classes",
    "w_dim": "w_dim",
    "img_resolution": "resolution",
    "img_channels": "img_channels",
    **OFFICIAL_MAPPING_NAMES,
    "mapping_kwargs.w_avg_beta": "w_avg_beta",
}
_OFFICIAL_SYNTHESIS_NAMES: Mapping[str, str | None] = {
    "channel_base": "channel_base",
    "channel_max": "channel_max",
    "num_fp16_res": "num_fp16_res",
    "architecture": "architecture",
    "resample_filter": "resample_filter",
    "conv_clamp": "conv_clamp",
    "kernel_size": "kernel_size",
    "use_noise": "use_noise",
    "activation": "activation",
    "use_fp16": None,  # num_fp16_res decides
    "fp16_channels_last": None,
    "channels_last": None,
    "fused_modconv_default": None,
}


def official_config(class_name: str, kwargs: Mapping[str, Any]) -> StyleGAN2Config:
    """Translate the keyword arguments of an official generator class.

    Those of the synthesis network may stand in `synthesis_kwargs`, as in StyleGAN2-ADA, or beside the others, as in
    the StyleGAN3 repository.

    Raises:
        ValueError: the class, an argument or the value of an argument is none that this generator has.
    """
    if class_name not in OFFICIAL_DEFAULTS:
        raise ValueError(f"{class_name!r} is no StyleGAN2 generator; known: {', '.join(OFFICIAL_DEFAULTS)}")
    flat = {**kwargs, **kwargs.get("synthesis_kwargs", {})}
    flat.pop("synthesis_kwargs", None)
    fields = official_fields(class_name, flat, {**_OFFICIAL_NAMES, **_OFFICIAL_SYNTHESIS_NAMES})
    return StyleGAN2Config(**{**OFFICIAL_DEFAULTS[class_name], **fields})


def official_fields(class_name: str, kwargs: Mapping[str, Any], names: Mapping[str, str | None]) -> dict[str, Any]:
    """Translate official keyword arguments, of which those called `..._kwargs` are nested, to fields of a config.

    Raises:
        ValueError: an argument is not in `names`.
    """
    flat: dict[str, Any] = {}
    for name, value in kwargs.items():
        nested = name.endswith("_kwargs")
        flat |= {f"{name}.{inner}": inner_value for inner, inner_value in value.items()} if nested else {name: value}
    if unknown := sorted(flat.keys() - names.keys()):
        raise ValueError(f"{class_name}: unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(names))}")
    return {field: value for name, value in flat.items() if (field := names[name]) is not None}
