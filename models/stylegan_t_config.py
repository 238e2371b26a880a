"""The configuration of a StyleGAN-T generator and of its layers, and how official ones translate to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from models.clip_text import OPENAI_VIT_L_14
from models.layers import FIR_TAPS, Taps

Architecture = Literal["skip", "orig"]
OPENAI_TEXT_DIM = 768  # of ViT-L/14, the only encoder that the official generator knows
_IGNORED_OF_LAYERS = {"channels_last", "fused_modconv_default"}  # they choose between ways to the same numbers
_IGNORED = {"train_mode", "fp16_channels_last", *_IGNORED_OF_LAYERS}


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One modulated convolution; the fields have the names and the defaults of the official layer."""

    in_channels: int
    out_channels: int
    w_dim: int
    resolution: int  # of the output
    kernel_size: int = 3
    up: int = 1
    use_noise: bool = True
    activation: str = "lrelu"
    resample_filter: Taps = FIR_TAPS
    conv_clamp: float | None = None
    layer_scale_init: float = 1e-5
    residual: bool = False
    gn_groups: int = 32  # of the group norm, which only a residual layer has

    def __post_init__(self) -> None:
        if self.residual and (self.in_channels != self.out_channels or self.up != 1):
            raise ValueError(
                f"a residual layer from {self.in_channels} to {self.out_channels} channels, up {self.up}; "
                "its shortcut needs as many channels and pixels behind as before"
            )
        if self.residual and self.in_channels % self.gn_groups:
            raise ValueError(
                f"{self.in_channels} channels in gn_groups={self.gn_groups}; choose a gn_groups that divides them"
            )


@dataclass(frozen=True, slots=True)
class StyleGANTConfig:
    """Everything that decides the shapes and the arithmetic of a generator; the defaults are the paper's "lite"."""

    resolution: int
    z_dim: int = 64
    text_dim: int = 0  # width of the text features; 0: unconditional
    # an architecture of open_clip or its description, see `models.clip_text`; None: takes features, not prompts
    text_encoder: str | dict[str, Any] | None = None
    img_channels: int = 3
    mapping_layers: int = 2
    mapping_activation: str = "lrelu"  # of all layers but the last, which is linear
    mapping_lr_multiplier: float = 0.01
    x_avg_beta: float = 0.995
    channel_base: int = 32768
    channel_max: int = 512
    num_res_blocks: int = 2
    base_mult: int = 3  # the first block makes 2 ** base_mult pixels
    architecture: Architecture = "skip"
    num_fp16_res: int = 4  # so many of the highest resolutions run in float16, on CUDA only
    kernel_size: int = 3
    use_noise: bool = True
    activation: str = "lrelu"
    resample_filter: Taps = FIR_TAPS
    conv_clamp: float | None = 256
    layer_scale_init: float = 1e-5
    gn_groups: int = 32

    def __post_init__(self) -> None:
        if self.base_mult < 1 or self.resolution < 2**self.base_mult or self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution {self.resolution} is not a power of two from {2**self.base_mult} on")
        if self.architecture not in get_args(Architecture):
            raise ValueError(f"architecture {self.architecture!r} is not one of {', '.join(get_args(Architecture))}")
        if self.text_encoder is not None and not self.text_dim:
            raise ValueError("text_encoder without text_dim; give the width of its features, or leave it out")

    @property
    def w_dim(self) -> int:
        """Width of a style vector: the mapped latent and the text features side by side."""
        return self.z_dim + self.text_dim

    @property
    def resolutions(self) -> list[int]:
        """The resolution of each block: 8, 16, ... up to the image's."""
        return [2**i for i in range(self.base_mult, self.resolution.bit_length())]

    @property
    def convs_per_block(self) -> int:
        """Layers of a block that take a style vector of their own: input or up-sampling layer, and pairs of layers."""
        return 1 + 2 * self.num_res_blocks

    @property
    def noise_resolutions(self) -> list[int]:
        """The resolution of each layer that adds noise, in the order in which they run."""
        if not self.use_noise:
            return []
        return [r for r in self.resolutions for _ in range(self.convs_per_block)][1:]  # the input has none

    @property
    def num_ws(self) -> int:
        """How many style vectors an image takes: one for each convolution, one for the last ToRGB."""
        return self.convs_per_block * len(self.resolutions) + 1

    def channels(self, resolution: int) -> int:
        """Width of the block at `resolution`."""
        return min(self.channel_base // resolution, self.channel_max)

    def is_half(self, resolution: int) -> bool:
        """Whether the block at `resolution` may run in float16; never below 8x8."""
        return resolution >= max((2 * self.resolution) >> self.num_fp16_res, 8)

    def layer(self, resolution: int, *, up: int = 1, residual: bool = False) -> LayerConfig:
        """A convolution of the block at `resolution`."""
        return LayerConfig(
            in_channels=self.channels(resolution // up),
            out_channels=self.channels(resolution),
            w_dim=self.w_dim,
            resolution=resolution,
            kernel_size=self.kernel_size,
            up=up,
            use_noise=self.use_noise,
            activation=self.activation,
            resample_filter=self.resample_filter if up > 1 else FIR_TAPS,  # as in the official state dict
            conv_clamp=self.conv_clamp,
            layer_scale_init=self.layer_scale_init,
            residual=residual,
            gn_groups=self.gn_groups,
        )


_OFFICIAL_DEFAULTS = {"num_res_blocks": 3, "architecture": "orig"}  # where they are not those of `StyleGANTConfig`
_OFFICIAL_NAMES = {"img_resolution": "resolution"}
_OFFICIAL_MAPPING_NAMES = {
    "num_layers": "mapping_layers",
    "activation": "mapping_activation",
    "lr_multiplier": "mapping_lr_multiplier",
}


def official_config(class_name: str, kwargs: Mapping[str, Any]) -> StyleGANTConfig:
    """Translate the keyword arguments of the official generator class.

    Raises:
        ValueError: the class, an argument or the value of an argument is none that this generator has.
    """
    if class_name != "networks.generator.Generator":
        raise ValueError(f"{class_name!r} is no StyleGAN-T generator; known: networks.generator.Generator")
    flat = {**_OFFICIAL_DEFAULTS, **kwargs, **kwargs.get("synthesis_kwargs", {})}
    flat = {_OFFICIAL_NAMES.get(name, name): value for name, value in flat.items()}
    flat |= {_OFFICIAL_MAPPING_NAMES.get(name, name): value for name, value in kwargs.get("mapping_kwargs", {}).items()}
    if flat.pop("conditional", True):
        flat |= {"text_dim": OPENAI_TEXT_DIM, "text_encoder": OPENAI_VIT_L_14}
    return StyleGANTConfig(**_known(class_name, flat, StyleGANTConfig, _IGNORED))


def official_layer_config(kwargs: Mapping[str, Any]) -> LayerConfig:
    """Translate the keyword arguments of the official synthesis layer.

    Raises:
        ValueError: an argument or the value of an argument is none that this layer has.
    """
    return LayerConfig(**_known("networks.generator.SynthesisLayer", kwargs, LayerConfig, _IGNORED_OF_LAYERS))


def config_from_state(shapes: Mapping[str, tuple[int, ...]], **known: Any) -> StyleGANTConfig:
    """Recover the configuration from the names and shapes of an official state dict; the classes don't record theirs.

    `known` are fields that leave no trace there, such as `conv_clamp`; the others of these take the official defaults.

    Raises:
        ValueError: these are not the tensors of a StyleGAN-T generator.
    """
    matches = (re.fullmatch(r"synthesis\.b(\d+)\.convs1\.0\.bias", name) for name in shapes)
    blocks = sorted(int(match[1]) for match in matches if match)
    try:
        widths = {resolution: shapes[f"synthesis.b{resolution}.convs1.0.bias"][0] for resolution in blocks}
        config = StyleGANTConfig(**{**_traces(shapes, widths), **known})
    except LookupError as error:
        raise ValueError(f"these are not the tensors of a StyleGAN-T generator: no {error}") from error
    if widths != {resolution: config.channels(resolution) for resolution in config.resolutions}:
        raise ValueError(f"blocks of {widths} channels; a width is min(channel_base // resolution, channel_max)")
    return config


def _traces(shapes: Mapping[str, tuple[int, ...]], widths: Mapping[int, int]) -> dict[str, Any]:
    """Fields that names and shapes tell, of blocks of these `widths`."""
    first, last = f"synthesis.b{min(widths, default=8)}", f"synthesis.b{max(widths, default=8)}"
    (z_dim,), w_dim = shapes["mapping.x_avg"], shapes[f"{first}.input.affine.weight"][1]
    taps = shapes[f"{last}.resample_filter"][0]
    return {
        "resolution": max(widths),
        "z_dim": z_dim,
        "text_dim": w_dim - z_dim,
        "text_encoder": OPENAI_VIT_L_14 if "mapping.clip.model.text_projection" in shapes else None,
        "img_channels": shapes[f"{last}.torgb.bias"][0],
        "mapping_layers": sum(name.startswith("mapping.mlp.") and name.endswith(".bias") for name in shapes),
        "channel_base": max(resolution * width for resolution, width in widths.items()),
        "channel_max": max(widths.values()),
        "num_res_blocks": sum(name.startswith(f"{first}.convs1.") and name.endswith(".gamma") for name in shapes),
        "base_mult": min(widths).bit_length() - 1,
        "architecture": "skip" if f"{first}.torgb.bias" in shapes else "orig",
        "kernel_size": shapes[f"{first}.convs1.0.weight"][2],
        "use_noise": f"{first}.convs1.0.noise_const" in shapes,
        # the filters themselves are in the state dict, so that only their size counts
        "resample_filter": FIR_TAPS if taps == len(FIR_TAPS) else (1.0,) * taps,
    }


def _known(class_name: str, kwargs: Mapping[str, Any], config: type, ignored: set[str]) -> dict[str, Any]:
    fields = set(getattr(config, "__dataclass_fields__"))  # noqa: B009
    left_out = {*ignored, "synthesis_kwargs", "mapping_kwargs"}
    if unknown := sorted(set(kwargs) - fields - left_out):
        known = ", ".join(sorted(fields | left_out))
        raise ValueError(f"{class_name}: unknown arguments {', '.join(unknown)}; known: {known}")
    return {name: value for name, value in kwargs.items() if name in fields}
