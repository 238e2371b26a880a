"""The configuration of a BigGAN or BigGAN-deep generator, from official arguments or from the tensors of a file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from models.biggan_layers import NormKind
from models.spectral_norm import Init, SpectralNorm, WeightSpec

Shapes = Mapping[str, tuple[int, ...]]
Config = TypeVar("Config")

# Widths of the stages, which double the resolution each, in multiples of the base width (arXiv:1809.11096, table 4
# and on, as the PyTorch code has them).
_STAGES: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    32: ((4, 4, 4), (4, 4, 4)),
    64: ((16, 16, 8, 4), (16, 8, 4, 2)),
    128: ((16, 16, 8, 4, 2), (16, 8, 4, 2, 1)),
    256: ((16, 16, 8, 8, 4, 2), (16, 8, 8, 4, 2, 1)),
    512: ((16, 16, 8, 8, 4, 2, 1), (16, 8, 8, 4, 2, 1, 1)),
}


@dataclass(frozen=True, slots=True)
class BlockShape:
    """One residual block of a generator."""

    in_channels: int
    out_channels: int
    up: bool
    attention: bool  # after the block


@dataclass(frozen=True, slots=True)
class BigGANConfig:
    """Everything that decides the shapes and the arithmetic of a generator; the defaults are BigGAN at 128x128."""

    resolution: int
    num_classes: int = 1000
    channels: int = 96
    depth: int = 0  # blocks of a stage of BigGAN-deep; 0: BigGAN
    z_dim: int = 120
    shared_dim: int = 128  # width of the class embedding that all layers share; 0: each layer has its own
    hierarchical: bool = True  # each block has a part of z; in BigGAN-deep, all of it
    bottom_width: int = 4
    attention: tuple[int, ...] = (64,)  # after the stages of these resolutions
    norm: NormKind = "bn"
    bn_eps: float = 1e-5
    spectral: bool = True
    num_svs: int = 1
    num_itrs: int = 1
    sn_eps: float = 1e-6
    init: Init = "ortho"

    def __post_init__(self) -> None:
        object.__setattr__(self, "attention", tuple(self.attention))  # JSON has lists
        check_choice("resolution", self.resolution, _STAGES)
        check_choice("norm", self.norm, get_args(NormKind))
        check_choice("init", self.init, get_args(Init))
        if self.num_classes < 1:
            raise ValueError(f"num_classes {self.num_classes}: a BigGAN needs one class or more. Use labelled data")
        if self.hierarchical and not self.shared_dim:
            raise ValueError("hierarchical latents are joined with a shared class embedding. Give shared_dim")
        if self.depth and not self.hierarchical:
            raise ValueError("BigGAN-deep joins z and the class embedding. Set hierarchical")
        if self.z_dim < 1 or self.z_dim % self.num_slots:
            raise ValueError(
                f"z_dim {self.z_dim} does not fall into {self.num_slots} equal parts. Take a multiple of it"
            )

    @property
    def blocks(self) -> list[BlockShape]:
        """All blocks; the last one of each stage changes the width and doubles the resolution."""
        blocks = []
        for i, (width, out_width) in enumerate(zip(*_STAGES[self.resolution], strict=True)):
            channels, out_channels = width * self.channels, out_width * self.channels
            blocks += [BlockShape(channels, channels, up=False, attention=False)] * (self.depth - 1)
            blocks.append(BlockShape(channels, out_channels, up=True, attention=8 << i in self.attention))
        return blocks

    @property
    def num_slots(self) -> int:
        """How many parts z has: one for the first layer and, where it is hierarchical, one for each block."""
        return len(self.blocks) + 1 if self.hierarchical and not self.depth else 1

    @property
    def embed_dim(self) -> int:
        """Width of a class: of its embedding, or of its one-hot label where the layers embed it."""
        return self.shared_dim or self.num_classes

    @property
    def linear_dim(self) -> int:
        """What the first layer takes."""
        return self.z_dim + self.shared_dim if self.depth else self.z_dim // self.num_slots

    @property
    def condition_dim(self) -> int:
        """What the normalisation of a block takes."""
        if self.depth:
            return self.linear_dim
        return self.embed_dim + (self.linear_dim if self.hierarchical else 0)

    @property
    def image_size(self) -> int:
        """Height and width of an image, which is `resolution` if the first stage starts at 4x4."""
        return self.bottom_width << len(_STAGES[self.resolution][0])

    @property
    def weights(self) -> WeightSpec:
        """How weights are normalised."""
        norm = SpectralNorm(self.num_svs, self.num_itrs, self.sn_eps) if self.spectral else None
        return WeightSpec(norm, self.init)


def check_choice(what: str, value: object, allowed: Iterable[object]) -> None:
    """Raise a ValueError that names what is allowed, unless `value` is."""
    if value not in allowed:
        raise ValueError(f"{what} {value!r} is not one of {', '.join(map(str, allowed))}")


# Official names of the arguments of both generators. The kernel size is 3 whatever they say.
_OFFICIAL_DEFAULTS: Mapping[str, Any] = {
    "G_ch": 64,
    "dim_z": 128,
    "bottom_width": 4,
    "resolution": 128,
    "G_attn": "64",
    "n_classes": 1000,
    "num_G_SVs": 1,
    "num_G_SV_itrs": 1,
    "G_shared": True,
    "shared_dim": 0,
    "hier": False,
    "cross_replica": False,
    "mybn": False,
    "G_activation": "relu",
    "BN_eps": 1e-5,
    "SN_eps": 1e-12,
    "G_init": "ortho",
    "G_param": "SN",
    "norm_style": "bn",
}
_WITHOUT_INFLUENCE = frozenset(
    ["G_kernel_size", "G_lr", "G_B1", "G_B2", "adam_eps", "G_mixed_precision", "G_fp16", "skip_init", "no_optim"]
)
_CLASSES = ("BigGAN.Generator", "BigGANdeep.Generator")


def official_config(class_name: str, kwargs: Mapping[str, Any]) -> BigGANConfig:
    """Translate the keyword arguments of an official generator class, "BigGAN.Generator" or "BigGANdeep.Generator".

    Raises:
        ValueError: the class, an argument or the value of an argument is none that this generator has.
    """
    check_choice("generator", class_name, _CLASSES)
    deep = class_name == "BigGANdeep.Generator"
    given = official_arguments(class_name, kwargs, {**_OFFICIAL_DEFAULTS, "G_depth": 2}, _WITHOUT_INFLUENCE)
    check_relu(class_name, "G_activation", given["G_activation"])
    depth = given["G_depth"] if deep else 0
    # the official class drops what is left of z after its division into parts
    slots = len(_STAGES[given["resolution"]][0]) + 1 if given["hier"] and given["resolution"] in _STAGES else 1
    return BigGANConfig(
        resolution=given["resolution"],
        num_classes=given["n_classes"],
        channels=given["G_ch"],
        depth=depth,
        z_dim=given["dim_z"] if depth else given["dim_z"] // slots * slots,
        shared_dim=(given["shared_dim"] or given["dim_z"]) if given["G_shared"] else 0,
        hierarchical=given["hier"],
        bottom_width=given["bottom_width"],
        attention=attention_of(given["G_attn"]),
        norm="cross_replica" if given["cross_replica"] else "mybn" if given["mybn"] else given["norm_style"],
        bn_eps=given["BN_eps"],
        spectral=given["G_param"] == "SN",
        num_svs=given["num_G_SVs"],
        num_itrs=given["num_G_SV_itrs"],
        sn_eps=given["SN_eps"],
        init=given["G_init"],
    )


def official_arguments(
    class_name: str, kwargs: Mapping[str, Any], defaults: Mapping[str, Any], without_influence: Iterable[str]
) -> dict[str, Any]:
    """The arguments with the official defaults filled in; those without influence left out."""
    ignored = set(without_influence)
    if unknown := sorted(set(kwargs) - set(defaults) - ignored):
        known = ", ".join(sorted({*defaults, *ignored}))
        raise ValueError(f"{class_name}: unknown arguments {', '.join(unknown)}; known: {known}")
    return {**defaults, **{name: value for name, value in kwargs.items() if name in defaults}}


def check_relu(class_name: str, name: str, value: object) -> None:
    """Refuse other activations; the three official names of ReLU compute the same."""
    check_choice(f"{class_name}: {name}", value, ("relu", "inplace_relu", "ir"))


def attention_of(text: str) -> tuple[int, ...]:
    """Read "32_64", or "0" for none."""
    return tuple(size for part in str(text).split("_") if (size := int(part)))


def config_from_state(shapes: Shapes) -> BigGANConfig:
    """Recover the configuration from the names and shapes of a generator's tensors.

    What leaves no trace there takes the published values: epsilons, iterations, initialisation.

    Raises:
        ValueError: these are not the tensors of a BigGAN or BigGAN-deep generator.
    """
    return recovered(_generator_of, shapes, "BigGAN generator")


def recovered(recover: Callable[[Shapes], Config], shapes: Shapes, what: str) -> Config:
    """Call `recover`; whatever it misses becomes one ValueError."""
    try:
        return recover(shapes)
    except (LookupError, ArithmeticError, TypeError) as error:
        raise ValueError(f"these are not the tensors of a {what}: {type(error).__name__} {error}") from error


def count(shapes: Shapes, *patterns: str) -> int:
    """How many of the numbers 0, 1, ... in a row give, put into one of the patterns, the name of a tensor."""
    return next(i for i in itertools.count() if not any(pattern.format(i) in shapes for pattern in patterns))


def _generator_of(shapes: Shapes) -> BigGANConfig:
    deep = "blocks.0.0.conv4.weight" in shapes
    last = "conv4" if deep else "conv2"
    widths = [
        (shapes[f"blocks.{i}.0.conv1.weight"][1], shapes[f"blocks.{i}.0.{last}.weight"][0])
        for i in range(count(shapes, "blocks.{}.0.conv1.weight"))
    ]
    resolution, depth, channels = _stages_of(widths, deep)
    per_stage = max(depth, 1)
    shared_dim = shapes["shared.weight"][1] if "shared.weight" in shapes else 0
    first_dim, gain = shapes["linear.weight"][1], shapes["blocks.0.0.bn1.gain.weight"]
    parts = 1 if deep or not shared_dim or gain[1] == shared_dim else len(widths) + 1
    return BigGANConfig(
        resolution=resolution,
        num_classes=shapes["shared.weight"][0] if shared_dim else gain[0],
        channels=channels,
        depth=depth,
        z_dim=first_dim - shared_dim if deep else first_dim * parts,
        shared_dim=shared_dim,
        hierarchical=deep or parts > 1,
        bottom_width=math.isqrt(shapes["linear.weight"][0] // widths[0][0]),
        attention=tuple(8 << i // per_stage for i in range(len(widths)) if f"blocks.{i}.1.gamma" in shapes),
        norm=_norm_of(shapes),
        spectral="linear.u0" in shapes,
        num_svs=max(count(shapes, "linear.u{}"), 1),
    )


def _stages_of(widths: list[tuple[int, int]], deep: bool) -> tuple[int, int, int]:
    """Resolution, depth and base width of the generator whose blocks have these widths."""
    for resolution, (stages, _) in _STAGES.items():
        channels, depth = widths[0][0] // stages[0], len(widths) // len(stages) if deep else 0
        config = BigGANConfig(resolution, channels=channels, depth=depth, z_dim=len(stages) + 1)
        if widths == [(block.in_channels, block.out_channels) for block in config.blocks]:
            return resolution, depth, channels
    raise LookupError(f"no generator has blocks of the widths {widths}")


def _norm_of(shapes: Shapes) -> NormKind:
    """Statistics of images and of batches look the same; the published networks have those of batches."""
    prefix = "blocks.0.0.bn1"
    kinds: dict[str, NormKind] = {
        f"{prefix}.bn.running_mean": "cross_replica",
        f"{prefix}.bn.stored_mean": "mybn",
        f"{prefix}.stored_mean": "bn",
    }
    return next((kind for name, kind in kinds.items() if name in shapes), "nonorm")
