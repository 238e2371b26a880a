"""MODELS: every generator that a run can name. Importing this loads no network code; `build` does."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

import torch

from models.catalogue import biggan, stylegan1, stylegan2, stylegan3, stylegan_t, stylegan_xl
from models.spec import ImageGenerator, ModelSpec


class UnknownModelError(LookupError):
    """No model of that name is registered."""


_FAMILIES = (stylegan1, stylegan2, stylegan3, stylegan_xl, stylegan_t, biggan)
MODELS: dict[str, ModelSpec] = {spec.name: spec for family in _FAMILIES for spec in family.SPECS}
DISCRIMINATORS = {  # a file may name these too, though no run can
    "models.training.stylegan1_discriminator:build": "StyleGAN discriminator",
    "models.training.stylegan2_discriminator:build": "StyleGAN2 discriminator",
    "models.training.biggan_discriminator:build": "BigGAN discriminator",
}


def find(name: str) -> ModelSpec:
    """The model of that name.

    Raises:
        UnknownModelError: there is none; the message has the nearest names.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
        families = dict.fromkeys(spec.family for spec in MODELS.values())
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(families)}"
        raise UnknownModelError(f"unknown model {name!r}; {hint}")
    return MODELS[name]


def build(name: str, *, num_classes: int | None = None, device: str = "cpu") -> ImageGenerator:
    """Make the generator of that name; its weights are zero until `initialise` or a checkpoint sets them.

    `num_classes` is for models of data set "any", which take it from the data; device "meta" makes shapes only.

    Raises:
        UnknownModelError: there is no such model.
        ValueError: the model was published for another number of classes.
    """
    spec = find(name)
    if num_classes is not None and spec.dataset != "any" and num_classes != spec.num_classes:
        raise ValueError(f"{name} has {spec.num_classes} classes, not {num_classes}; leave num_classes out")
    classes = spec.num_classes if num_classes is None else num_classes
    kwargs = {**spec.kwargs, "resolution": spec.resolution, "num_classes": classes}
    return build_target(spec.target, kwargs, device)


def build_target(target: str, kwargs: Mapping[str, Any], device: str = "cpu") -> ImageGenerator:
    """Call "module:function" with these arguments. Only targets that MODELS or DISCRIMINATORS name are called.

    Raises:
        ValueError: no registered model has this target.
    """
    targets = sorted({*(spec.target for spec in MODELS.values()), *DISCRIMINATORS})
    if target not in targets:
        raise ValueError(f"unknown generator {target!r}; known are {', '.join(targets)}")
    module, _, function = target.partition(":")
    with torch.device(device):
        return cast("ImageGenerator", getattr(import_module(module), function)(**kwargs))
