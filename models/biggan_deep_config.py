"""The configuration of a pretrained BigGAN-deep generator, from the package's arguments or from a file's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.biggan_config import Shapes, check_choice, count, official_arguments, recovered

OFFICIAL_CLASS = "pytorch_pretrained_biggan.model.BigGAN"
Layer = tuple[bool, int, int]  # doubles the resolution, width before and after in multiples of the base width
FIRST_WIDTH = 16
_ALL_BUT_512: tuple[int, ...] = (16, 16, 16, 16, 8, 8, 8, 8, 4, 4, 2, 2, 1)
# Widths before, between and after the blocks, every second of which doubles the resolution.
_WIDTHS: Mapping[int, tuple[int, ...]] = {
    128: (16, 16, 16, 16, 8, 8, 4, 4, 2, 2, 1),
    256: _ALL_BUT_512,
    512: (*_ALL_BUT_512, 1, 1),
}


@dataclass(frozen=True, slots=True)
class BigGANDeepConfig:
    """Everything that decides the shapes and the arithmetic of a generator; the defaults are the published ones."""

    resolution: int
    num_classes: int = 1000
    z_dim: int = 128
    channels: int = 128
    layers: tuple[Layer, ...] = ()  # none: those of the published generator of this resolution
    attention_before: int = 8  # the block that attention precedes; a number past the last: none
    eps: float = 1e-4
    num_statistics: int = 51  # rows of statistics, for truncations 0, 1 / 50, ... 1

    def __post_init__(self) -> None:
        if not self.layers:
            check_choice("resolution", self.resolution, _WIDTHS)
        layers = self.layers or alternating(_WIDTHS[self.resolution])
        object.__setattr__(self, "layers", tuple((bool(up), *widths) for up, *widths in layers))  # JSON has lists
        if self.num_classes < 1:
            raise ValueError(f"num_classes {self.num_classes}: a BigGAN needs one class or more. Use labelled data")
        if self.resolution != (size := 4 << sum(up for up, _, _ in self.layers)):
            raise ValueError(f"resolution {self.resolution}: these layers make images of {size}x{size}")
        befores, afters = [FIRST_WIDTH, *(out for *_, out in self.layers)], [*(w for _, w, _ in self.layers), 1]
        if befores != afters:
            raise ValueError(f"layers {self.layers}: widths start at {FIRST_WIDTH}, end at 1 and follow on each other")
        if bad := [layer for layer in self.layers if layer[2] not in (layer[1], layer[1] / 2)]:
            raise ValueError(f"layers {bad}: a block keeps or halves its width")

    @property
    def condition_dim(self) -> int:
        """Width of z and the class embedding together."""
        return 2 * self.z_dim


def alternating(widths: tuple[int, ...]) -> tuple[Layer, ...]:
    """Blocks between these widths, every second of which doubles the resolution."""
    return tuple((i % 2 == 1, width, widths[i + 1]) for i, width in enumerate(widths[:-1]))


_OFFICIAL_NAMES = {
    "num_classes": "num_classes",
    "z_dim": "z_dim",
    "channel_width": "channels",
    "layers": "layers",
    "attention_layer_position": "attention_before",
    "eps": "eps",
    "n_stats": "num_statistics",
}


def official_config(class_name: str, kwargs: Mapping[str, Any]) -> BigGANDeepConfig:
    """Translate the arguments of the package's configuration, which are those of its `config.json`.

    Raises:
        ValueError: the class, an argument or the value of an argument is none that this generator has.
    """
    check_choice("generator", class_name, [OFFICIAL_CLASS])
    defaults = dict.fromkeys(_OFFICIAL_NAMES)
    # the package embeds classes in z_dim numbers, whatever class_embed_dim says
    given = official_arguments(class_name, kwargs, defaults, ("class_embed_dim", "output_dim"))
    named = {_OFFICIAL_NAMES[name]: value for name, value in given.items() if value is not None}
    layers = tuple(tuple(layer) for layer in named.pop("layers", alternating(_WIDTHS[128])))
    return BigGANDeepConfig(resolution=4 << sum(bool(up) for up, *_ in layers), layers=layers, **named)


def config_from_state(shapes: Shapes) -> BigGANDeepConfig:
    """Recover the configuration from the names and shapes of a generator's tensors.

    Every second block is taken to double the resolution, as in the published generators; epsilon is theirs.

    Raises:
        ValueError: these are not the tensors of a pretrained BigGAN-deep generator.
    """
    return recovered(_generator_of, shapes, "BigGAN-deep generator")


def _generator_of(shapes: Shapes) -> BigGANDeepConfig:
    num_statistics, channels = shapes["generator.bn.running_means"]
    num_modules = count(shapes, "generator.layers.{}.conv_0.weight_orig", "generator.layers.{}.gamma")
    attended = [i for i in range(num_modules) if f"generator.layers.{i}.gamma" in shapes]
    blocks = [f"generator.layers.{i}" for i in range(num_modules) if i not in attended]
    befores = [shapes[f"{block}.conv_0.weight_orig"][1] // channels for block in blocks]
    afters = [shapes[f"{block}.conv_3.weight_orig"][0] // channels for block in blocks]
    layers = alternating((*befores, afters[-1]))
    z_dim, num_classes = shapes["embeddings.weight"]
    return BigGANDeepConfig(
        resolution=4 << sum(up for up, _, _ in layers),
        num_classes=num_classes,
        z_dim=z_dim,
        channels=channels,
        layers=layers,
        attention_before=attended[0] if attended else len(blocks),
        num_statistics=num_statistics,
    )
