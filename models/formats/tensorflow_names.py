"""Official TensorFlow networks of StyleGAN and StyleGAN2: their variables and arguments as those of our networks.

Pure functions of what a pickle holds (Karras et al., arXiv:1812.04958 and arXiv:1912.04958). TensorFlow keeps the
weights of convolutions as [height, width, in, out] and of dense layers as [in, out]. StyleGAN2 scales the weights of
modulated convolutions at run time, which their demodulation takes out again but for its 1e-8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kernels.upfirdn2d import setup_filter
from models import stylegan1, stylegan2
from models.formats.tensorflow_arguments import (
    STYLEGAN1_DISCRIMINATOR,
    STYLEGAN1_GENERATOR,
    STYLEGAN2_DISCRIMINATOR,
    STYLEGAN2_GENERATOR,
)
from models.layers import FIR_TAPS
from models.stylegan1_layers import BLUR_TAPS
from models.stylegan2_config import official_config
from models.training import stylegan1_discriminator, stylegan2_discriminator
from models.training.stylegan2_discriminator import official_discriminator_config

_SHOWN = 4  # so many variables are named in an error
_FILTERS = ("resample_filter", "blur.kernel")  # ends of the names of buffers
_SCOPES = ("G_mapping", "G_synthesis")  # may stand before a variable of the component


@dataclass(frozen=True, slots=True)
class TensorFlowNetwork:
    """What a pickle holds of one network."""

    name: str
    build_func_name: str
    static_kwargs: Mapping[str, Any]
    variables: Mapping[str, np.ndarray]
    components: Mapping[str, TensorFlowNetwork]


def convert_tensorflow(network: TensorFlowNetwork) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Recover the `target` and the arguments that build our network, and its state dict, float32 on the CPU.

    Raises:
        ValueError: the network is none of ours, an argument is none that ours has, or variables are missing, of another
            shape or left over.
    """
    variables = _collected(network)
    what = f"{network.name} ({network.build_func_name})"
    kind = next((kind for kind in _KINDS if kind.trace in variables), None)
    if kind is None:
        raise ValueError(
            f"{what} is no generator or discriminator of StyleGAN or of StyleGAN2's configurations E and F: "
            f"it has none of the variables {', '.join(kind.trace for kind in _KINDS)}"
        )
    try:
        if (layers := network.static_kwargs.get("mapping_layers", 0)) > len(variables):
            raise ValueError(f"mapping_layers={layers} and only {len(variables)} variables")
        with torch.device("meta"):
            ours = kind.make(network.static_kwargs)
        state = _state(kind, ours, variables, network.static_kwargs.get("resample_kernel") or FIR_TAPS)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return ours.target, ours.kwargs, state


class _Network(Protocol):
    """A network of `models` that says how to make it."""

    @property
    def target(self) -> str: ...
    @property
    def kwargs(self) -> dict[str, Any]: ...
    @property
    def resolution(self) -> int: ...
    def state_dict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class _Kind:
    """One of our networks, and what an official one is called in its terms."""

    trace: str  # a variable that no other kind has
    make: Callable[[Mapping[str, Any]], _Network]  # of the official static arguments
    variable: Callable[[str, int], str]  # name in our state dict, and resolution, to the name of the variable
    mirrored: tuple[str, ...] = ()  # ends of our names of kernels that TensorFlow stores rotated by 180 degrees


def _collected(network: TensorFlowNetwork) -> dict[str, np.ndarray]:
    """The variables of a network and its components, without their scopes."""
    scopes = {*_SCOPES, network.name, *network.components}
    variables = {}
    for name, value in network.variables.items():
        scope, _, rest = name.partition("/")
        variables[rest if rest and scope in scopes else name] = value
    for component in network.components.values():
        variables |= _collected(component)
    return variables


def _state(kind: _Kind, ours: _Network, variables: Mapping[str, np.ndarray], fir_taps: Any) -> dict[str, Tensor]:
    expected = ours.state_dict()
    filters = {name: _filter(name, like, fir_taps) for name, like in expected.items() if name.endswith(_FILTERS)}
    names = {name: _found(kind.variable(name, ours.resolution), variables) for name in expected if name not in filters}
    _refuse("it lacks the variables", [variable for variable in names.values() if variable not in variables])
    unused = set(variables) - set(names.values()) - {"lod"}
    _refuse("it has variables that no part of our network takes:", sorted(unused))
    return filters | {
        name: _as_ours(name, variables[variable], expected[name], mirrored=name.endswith(kind.mirrored))
        for name, variable in names.items()
    }


def _filter(name: str, like: Tensor, fir_taps: Any) -> Tensor:
    """A filter, in TensorFlow an argument. Layers that don't resample keep the default, which they don't use."""
    taps = BLUR_TAPS if name.endswith("blur.kernel") else fir_taps
    fir = setup_filter(taps if len(taps) == like.shape[-1] else FIR_TAPS)
    return fir.expand(like.shape).clone()


def _found(variable: str, variables: Mapping[str, np.ndarray]) -> str:
    """The variable, or what networks without skip connections call the only such layer."""
    if variable in variables:
        return variable
    other = re.sub(r"^\d+x\d+/(ToRGB|FromRGB)/", r"\1_lod0/", variable)
    return other if other in variables else variable


def _refuse(problem: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ValueError(f"for these arguments {problem} {', '.join(names[:_SHOWN])}{more}")


def _as_ours(name: str, value: np.ndarray, like: Tensor, *, mirrored: bool) -> Tensor:
    """The variable in our layout; dimensions of size 1 don't count."""
    if name.endswith("weight") and value.ndim == 4:
        value = value[::-1, ::-1] if mirrored else value
        value = value.transpose(3, 2, 0, 1)
    elif value.ndim == 2 and name != "mapping.label_weight":
        value = value.T
    if [size for size in value.shape if size != 1] != [size for size in like.shape if size != 1]:
        raise ValueError(f"{name} would be {list(value.shape)} and these arguments ask for {list(like.shape)}")
    # a copy: arrays of a file may be read-only, which torch doesn't know of
    tensor = torch.from_numpy(np.array(value, dtype=np.float32, order="C")).reshape(like.shape)
    return tensor + 1 if name.endswith("affine.bias") else tensor  # StyleGAN2 counts its scales from 1 in TensorFlow


def _stylegan1_generator(static_kwargs: Mapping[str, Any]) -> _Network:
    return stylegan1.build(**STYLEGAN1_GENERATOR.translated(static_kwargs))


def _stylegan1_discriminator(static_kwargs: Mapping[str, Any]) -> _Network:
    return stylegan1_discriminator.build(**STYLEGAN1_DISCRIMINATOR.translated(static_kwargs))


def _stylegan2_generator(static_kwargs: Mapping[str, Any]) -> _Network:
    config = official_config("training.networks.Generator", STYLEGAN2_GENERATOR.translated(static_kwargs))
    return stylegan2.StyleGAN2Generator(config)


def _stylegan2_discriminator(static_kwargs: Mapping[str, Any]) -> _Network:
    kwargs = STYLEGAN2_DISCRIMINATOR.translated(static_kwargs)
    config = official_discriminator_config("training.networks.Discriminator", kwargs)
    return stylegan2_discriminator.StyleGAN2Discriminator(config)


def stylegan1_generator_variable(name: str, resolution: int) -> str:
    """TensorFlow's name of a tensor in the state dict of our StyleGAN generator: "synthesis.lod" is "lod"."""
    if found := re.fullmatch(r"mapping\.dense(\d+)\.(\w+)", name):
        return f"Dense{found[1]}/{found[2]}"
    if found := re.fullmatch(r"synthesis\.output(\d+)\.(\w+)", name):
        return f"ToRGB_lod{resolution.bit_length() - 3 - int(found[1])}/{found[2]}"
    if not (found := re.fullmatch(r"synthesis\.layer(\d+)\.([\w.]+)", name)):
        return {"mapping.label_weight": "LabelConcat/weight", "truncation.w_avg": "dlatent_avg"}.get(name, "lod")
    layer, leaf = int(found[1]), found[2]
    if leaf == "apply_noise.noise":
        return f"noise{layer}"
    size = 4 << layer // 2
    part = (("Const", "Conv") if size == 4 else ("Conv0_up", "Conv1"))[layer % 2]
    leaf = leaf.replace("style.", "StyleMod/").replace("apply_noise.", "Noise/")
    return f"{size}x{size}/{part}/{leaf}"


def stylegan1_discriminator_variable(name: str, resolution: int) -> str:
    """TensorFlow's name of a tensor in the state dict of our StyleGAN discriminator."""
    if found := re.fullmatch(r"input(\d+)\.(\w+)", name):
        return f"FromRGB_lod{found[1]}/{found[2]}"
    if not (found := re.fullmatch(r"layer(\d+)\.(\w+)", name)):
        return name  # "lod"
    layer, last = int(found[1]), 2 * (resolution.bit_length() - 3)
    if layer >= last:
        return f"4x4/{('Conv', 'Dense0', 'Dense1')[layer - last]}/{found[2]}"
    size = resolution >> layer // 2
    return f"{size}x{size}/{('Conv0', 'Conv1_down')[layer % 2]}/{found[2]}"


_STYLEGAN2_LEAVES = {"affine.weight": "mod_weight", "affine.bias": "mod_bias"}
_STYLEGAN2_PARTS = {"torgb": "ToRGB", "skip": "Skip", "fromrgb": "FromRGB", "conv0": "Conv0", "conv1": "Conv1_down"}


def stylegan2_generator_variable(name: str, resolution: int) -> str:  # noqa: ARG001
    """TensorFlow's name of a tensor in the state dict of our StyleGAN2 generator."""
    if found := re.fullmatch(r"mapping\.fc(\d+)\.(\w+)", name):
        return f"Dense{found[1]}/{found[2]}"
    if not (found := re.fullmatch(r"synthesis\.b(\d+)\.(\w+)\.?([\w.]*)", name)):
        return "dlatent_avg" if name == "mapping.w_avg" else name.replace("mapping.embed.", "LabelEmbed/")
    size, part, leaf = int(found[1]), found[2], found[3]
    if leaf == "noise_const":
        return f"noise{2 * size.bit_length() - (7 if part == 'conv0' else 6)}"
    if part == "const":
        return "4x4/Const/const"
    if part == "conv1":
        part = "Conv" if size == 4 else "Conv1"
    part = "Conv0_up" if part == "conv0" else _STYLEGAN2_PARTS.get(part, part)
    return f"{size}x{size}/{part}/{_STYLEGAN2_LEAVES.get(leaf, leaf)}"


def stylegan2_discriminator_variable(name: str, resolution: int) -> str:  # noqa: ARG001
    """TensorFlow's name of a tensor in the state dict of our StyleGAN2 discriminator."""
    block, part, leaf = name.split(".")
    if part == "out":
        return f"Output/{leaf}"
    size = block.removeprefix("b")
    return f"{size}x{size}/{ {'conv': 'Conv', 'fc': 'Dense0'}.get(part) or _STYLEGAN2_PARTS[part] }/{leaf}"


_KINDS = (
    _Kind(
        trace="4x4/Const/StyleMod/weight",
        make=_stylegan1_generator,
        variable=stylegan1_generator_variable,
    ),
    _Kind(
        trace="4x4/Dense1/weight",
        make=_stylegan1_discriminator,
        variable=stylegan1_discriminator_variable,
    ),
    _Kind(
        trace="4x4/Conv/mod_weight",
        make=_stylegan2_generator,
        variable=stylegan2_generator_variable,
        mirrored=("conv0.weight", "skip.weight"),
    ),
    _Kind(
        trace="Output/weight",
        make=_stylegan2_discriminator,
        variable=stylegan2_discriminator_variable,
    ),
)
