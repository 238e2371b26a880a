"""The configuration of a StyleGAN-XL generator: a stem, and super-resolution stages that each replace its top.

Sauer, Schwarz and Geiger, "StyleGAN-XL: Scaling StyleGAN to Large Diverse Datasets" (arXiv:2202.00273).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from torch import Tensor

from models.stylegan3_config import (
    InputSpec,
    LayerSpec,
    SynthesisConfig,
    channels_at,
    layer_specs,
    our_names,
    progression,
)

OFFICIAL_CLASS = "training.networks_stylegan3_resetting.Generator"
OFFICIAL_STAGE_CLASS = "training.networks_stylegan3_resetting.SuperresGenerator"
_SYNTHESIS = {field.name for field in fields(SynthesisConfig)}
_MAPPING = {"num_classes", "z_dim", "w_dim", "mapping_layers", "mapping_lr_multiplier", "w_avg_beta"}
_LAYER_WEIGHT = r"synthesis\.(L(\d+)_\d+_\d+)\.weight"
_NO_INFLUENCE = {"rand_embedding", "path_stem"}  # on numbers: the state dict has the embedding and the stem
_READ_OF_STAGE = {"up_factor", "head_layers"}  # officially a stage takes everything else from the one before, unread
_CRITICAL_OF_STAGE = 2


@dataclass(frozen=True, slots=True)
class Stage:
    """A super-resolution stage; None is what the stem has, and so is everything that is not named here."""

    up_factor: int = 2
    head_layers: int = 7  # ToRGB not counted
    conv_kernel: int | None = None
    use_radial_filters: bool | None = None
    channel_base: int | None = None
    channel_max: int | None = None


@dataclass(frozen=True, slots=True)
class StyleGANXLConfig:
    """A whole generator; its layers are listed one by one, since the stages of a published file may differ."""

    resolution: int
    input: InputSpec
    layers: tuple[LayerSpec, ...]  # in the order in which they run, ToRGB last
    num_classes: int = 0
    z_dim: int = 64
    w_dim: int = 512
    mapping_layers: int = 2
    mapping_lr_multiplier: float = 0.01
    w_avg_beta: float = 0.998
    embed_classes: int = 1000  # of the pretrained class embedding, which may know more classes than are used
    embed_dim: int = 320
    keeps_projection: bool = False  # whether an unconditional network has the unused projection of that embedding, too
    output_scale: float = 0.25

    def __post_init__(self) -> None:
        if self.layers[-1].out_size != self.resolution:
            raise ValueError(f"resolution {self.resolution}, but the last layer gives {self.layers[-1].out_size}")
        if self.num_classes > self.embed_classes:
            raise ValueError(f"{self.num_classes} classes, but the embedding has {self.embed_classes}")

    def to_kwargs(self) -> dict[str, Any]:
        """The arguments of `config_of` that give this configuration again; JSON values only."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers]}


def config_of(**kwargs: Any) -> StyleGANXLConfig:
    """Make a configuration of its fields, of which `input` and `layers` are dicts or come from a chain instead.

    The chain is `stem`, arguments of `SynthesisConfig`, and `stages`, a list of arguments of `Stage`.
    """
    if "layers" in kwargs:
        layers = tuple(LayerSpec(**layer) for layer in kwargs["layers"])
        return StyleGANXLConfig(**{**kwargs, "input": InputSpec(**kwargs["input"]), "layers": layers})
    rest = {name: value for name, value in kwargs.items() if name not in ("stem", "stages")}
    return chain(SynthesisConfig(**kwargs["stem"]), [Stage(**stage) for stage in kwargs.get("stages", ())], **rest)


def chain(stem: SynthesisConfig, stages: Iterable[Stage] = (), **rest: Any) -> StyleGANXLConfig:
    """Put super-resolution stages on a stem; `rest` are the fields of the configuration that neither decides."""
    layers, resolution = stem.layers, stem.resolution
    for stage in stages:
        resolution *= stage.up_factor
        layers = super_resolved(layers, _head(stem, stage, resolution))
    made = {"resolution": resolution, "input": stem.input, "layers": layers, "output_scale": stem.output_scale}
    return StyleGANXLConfig(**{**made, **rest})


def super_resolved(layers: Sequence[LayerSpec], head: SynthesisConfig) -> tuple[LayerSpec, ...]:
    """Drop the critically sampled layers at the top, and put those of a higher resolution in their place."""
    kept = [layer for layer in layers if not layer.is_critically_sampled]
    last = kept[-1]
    # officially the bands of a stage stop growing two layers before the end, however many layers are critical
    growing = replace(head, num_critical=_CRITICAL_OF_STAGE)
    bands = progression(growing, last.out_cutoff, last.out_cutoff + last.out_half_width, last.out_sampling_rate)
    channels = [last.out_channels, *channels_at(head, bands.cutoffs)[1:-1], head.img_channels]
    # the official numbering leaves one out
    return (*kept, *layer_specs(head, bands, channels, first_index=len(kept) + 1))


def _head(stem: SynthesisConfig, stage: Stage, resolution: int) -> SynthesisConfig:
    named = ("conv_kernel", "use_radial_filters", "channel_base", "channel_max")
    given = {name: value for name in named if (value := getattr(stage, name)) is not None}
    # whatever those of the stem are, the official stages leave these at their defaults
    fixed: dict[str, Any] = {"filter_size": 6, "lrelu_upsampling": 2, "conv_clamp": 256, "magnitude_ema_beta": 0.999}
    return replace(stem, resolution=resolution, num_layers=stage.head_layers, **given, **fixed)


def official_config(
    class_name: str, kwargs: Mapping[str, Any], stages: Sequence[Mapping[str, Any]] = ()
) -> StyleGANXLConfig:
    """Translate the keyword arguments of an official stem, and of the stages on top of it.

    Raises:
        ValueError: the class or an argument is none that this generator has.
    """
    if class_name not in (OFFICIAL_CLASS, OFFICIAL_STAGE_CLASS):
        raise ValueError(f"{class_name!r} is no StyleGAN-XL generator; known: {OFFICIAL_CLASS}, {OFFICIAL_STAGE_CLASS}")
    flat = our_names(kwargs, _SYNTHESIS | _MAPPING | _NO_INFLUENCE, OFFICIAL_CLASS)
    rest = {name: value for name, value in flat.items() if name in _MAPPING}
    heads = []
    for stage in stages:
        named = our_names(stage, _SYNTHESIS | _MAPPING | _NO_INFLUENCE | _READ_OF_STAGE, OFFICIAL_STAGE_CLASS)
        rest["resolution"] = named["resolution"]  # of the last; it is held against what the chain gives
        heads.append(Stage(**{name: value for name, value in named.items() if name in _READ_OF_STAGE}))
    return chain(SynthesisConfig(**{k: v for k, v in flat.items() if k in _SYNTHESIS}), heads, **rest)


def fitted_to_state(config: StyleGANXLConfig, state: Mapping[str, Tensor]) -> StyleGANXLConfig:
    """Take from a state dict what no arguments tell for sure: kernel and filters of each layer, the class embedding."""
    layers = tuple(_fitted(layer, state) for layer in config.layers)
    return replace(config, layers=layers, **_embedding(state))


def config_from_modules(modules: Mapping[str, Mapping[str, Any]], state: Mapping[str, Tensor]) -> StyleGANXLConfig:
    """Read a configuration off the attributes of official modules ("mapping", "synthesis.L0_36_1024") and a state dict.

    The arguments of a super-resolution generator say nothing of its stem, so that this is the only way there.

    Raises:
        ValueError: an attribute is missing or contradicts the others.
    """
    indices = {found[1]: int(found[2]) for key in state if (found := re.fullmatch(_LAYER_WEIGHT, key))}
    if not indices:
        raise ValueError("the state dict has no synthesis layers such as synthesis.L0_36_1024")
    layers = tuple(
        layer_spec_from_attributes(name, modules.get(f"synthesis.{name}", {}), state)
        for name in sorted(indices, key=indices.__getitem__)
    )
    w_avg = state["mapping.w_avg"]
    stored = {
        "mapping_lr_multiplier": modules.get("mapping.fc0", {}).get("bias_gain"),
        "w_avg_beta": modules.get("mapping", {}).get("w_avg_beta"),
        "output_scale": modules.get("synthesis", {}).get("output_scale"),
    }
    given: dict[str, Any] = {name: float(value) for name, value in stored.items() if value is not None}
    return StyleGANXLConfig(
        resolution=layers[-1].out_size,
        input=InputSpec(**_numbers(InputSpec, "synthesis.input", modules.get("synthesis.input", {}))),
        layers=layers,
        num_classes=len(w_avg) if w_avg.ndim == 2 else 0,
        z_dim=state["mapping.fc0.weight"].shape[1] // w_avg.ndim,  # labels, where there are some, come as another z
        w_dim=w_avg.shape[-1],
        mapping_layers=sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", key)) for key in state),
        **_embedding(state),
        **given,
    )


def layer_spec_from_attributes(name: str, attributes: Mapping[str, Any], state: Mapping[str, Tensor]) -> LayerSpec:
    """Read a layer off the attributes of the official object `name` ("L0_36_1024"), and off the generator's state dict.

    Raises:
        ValueError: an attribute is missing, or contradicts the geometry that follows from the others.
    """
    index = re.match(r"L(\d+)_", name)
    if index is None:
        raise ValueError(f"layer {name!r}: expected a name such as L0_36_1024")
    of_state: dict[str, Any] = {"index": int(index[1]), "conv_kernel": 1, "radial": False}
    spec = _fitted(LayerSpec(**of_state, **_numbers(LayerSpec, name, attributes, without=of_state)), state)
    stored = {key: attributes[key] for key in ("up_factor", "down_factor", "up_taps", "down_taps") if key in attributes}
    if "padding" in attributes:
        stored["padding"] = tuple(int(pad) for pad in attributes["padding"])
    for key, value in {"name": name, **stored}.items():
        if value != getattr(spec, key):
            raise ValueError(f"layer {name}: its {key} is {value}, but its other attributes give {getattr(spec, key)}")
    return spec


def _fitted(layer: LayerSpec, state: Mapping[str, Tensor]) -> LayerSpec:
    weight, taps = (f"synthesis.{layer.name}.{tensor}" for tensor in ("weight", "down_filter"))
    if weight not in state:
        raise ValueError(f"the state dict has no {weight}, which the configuration asks for")
    return replace(layer, conv_kernel=state[weight].shape[-1], radial=taps in state and state[taps].ndim == 2)


def _embedding(state: Mapping[str, Tensor]) -> dict[str, Any]:
    classes, dim = state["mapping.embed.weight"].shape
    is_kept = "mapping.embed_proj.weight" in state and state["mapping.w_avg"].ndim == 1
    return {"embed_classes": classes, "embed_dim": dim, "keeps_projection": is_kept}


def _numbers(
    kind: type[InputSpec] | type[LayerSpec], name: str, attributes: Mapping[str, Any], without: Iterable[str] = ()
) -> dict[str, Any]:
    """The attributes that are fields of `kind`, as plain numbers."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name in attributes:
            values[field.name] = _number(field, attributes[field.name], name)
        elif field.default is MISSING and field.name not in without:
            raise ValueError(f"{name}: has no attribute {field.name!r}; not a layer of StyleGAN3 or StyleGAN-XL")
    return {key: value for key, value in values.items() if key not in without}


def _number(field: Field[Any], value: Any, name: str) -> Any:
    """A number, or an array of equal ones such as a square size, as the type of `field`."""
    if value is None and "None" in str(field.type):
        return None
    numbers = np.unique(np.asarray(value))
    if len(numbers) != 1 or numbers.dtype.kind not in "biuf":
        raise ValueError(f"{name}: {field.name} is {value!r}; expected one number, or equal ones for x and y")
    return {"int": int, "bool": bool}.get(str(field.type), float)(numbers[0])
