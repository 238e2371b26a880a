"""Small networks of each family with what the official files say of them, for tests that write and read such files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.biggan import BigGANGenerator
from models.biggan_config import BigGANConfig
from models.biggan_deep import BigGANDeepGenerator
from models.biggan_deep_config import BigGANDeepConfig, alternating
from models.layers import initialise
from models.stylegan1 import build as build_stylegan1
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2 import build as build_stylegan2
from models.stylegan2_config import official_config as stylegan2_config
from models.stylegan3 import StyleGAN3Generator
from models.stylegan3_config import InputSpec, LayerSpec, SynthesisConfig
from models.stylegan3_config import official_config as stylegan3_config
from models.stylegan_t import StyleGANTGenerator
from models.stylegan_t_config import StyleGANTConfig
from models.stylegan_xl import StyleGANXLGenerator
from models.stylegan_xl_config import Stage, chain
from models.stylegan_xl_config import official_config as stylegan_xl_config
from models.training.stylegan2_discriminator import StyleGAN2Discriminator, official_discriminator_config
from tests.models import tensorflow_networks
from tests.models.official_pickles import Attributes, Call, Dialect, Official, dumps, tensorflow_network

SMALL = {"z_dim": 8, "c_dim": 3, "w_dim": 8, "img_resolution": 16, "mapping_kwargs": {"num_layers": 2}}
NARROW = {"channel_base": 128, "channel_max": 8}
_LAYERS: dict[str, Any] = {"num_layers": 4, "margin_size": 4, **NARROW}


@dataclass(frozen=True)
class Written:
    """A network of ours, and how the official code would have written it."""

    network: nn.Module
    official: Official


def randomised(network: nn.Module, seed: int = 1) -> nn.Module:
    """Random weights, also where training starts from a constant, so that every tensor matters."""
    initialise(network, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("bias", "w_avg", "x_avg", "noise_strength", "gamma", "running_means", "stored_mean")):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
            if name.endswith("magnitude_ema"):
                tensor.fill_(1.5)
    return network.eval().requires_grad_(requires_grad=False)


def _attributes(path: str, module: Any) -> dict[str, Any]:
    """The plain attributes of official modules that matter here."""
    found: dict[str, Any] = {}
    found |= {"use_fp16": module.is_half} if hasattr(module, "is_half") else {}
    found |= {"w_avg_beta": module.config.w_avg_beta} if path == "mapping" and hasattr(module, "w_avg") else {}
    found |= {"bias_gain": module.lr_multiplier} if hasattr(module, "lr_multiplier") else {}
    if isinstance(getattr(module, "spec", None), LayerSpec):
        found |= _of_layer(module.spec)
    return found


def _of_layer(spec: LayerSpec) -> dict[str, Any]:
    """Some attributes of an official layer are arrays for x and y, others numpy's numbers."""
    plain = {**asdict(spec), "up_factor": spec.up_factor, "padding": list(spec.padding)}
    left_out = ("index", "conv_kernel", "radial", "filter_size", "lrelu_upsampling")
    found = {name: value for name, value in plain.items() if name not in left_out}
    found |= {name: np.float64(value) for name, value in found.items() if type(value) is float}
    return found | {name: np.array([found[name]] * 2) for name in ("in_size", "out_size")}


def _of_input(spec: InputSpec) -> dict[str, Any]:
    return {**asdict(spec), "size": np.array([spec.size] * 2)}


def _of_clamped(clamp: float | None) -> Attributes:
    """Attributes of networks whose convolutions all have one clamp."""

    def attributes(path: str, module: nn.Module) -> dict[str, Any]:
        layer = path.rpartition(".")[2]
        is_convolution = layer in ("conv0", "conv1", "torgb", "fromrgb") or (".convs1." in path and layer.isdecimal())
        return _attributes(path, module) | ({"conv_clamp": clamp} if is_convolution else {})

    return attributes


def stylegan2_ada() -> Written:
    """A conditional generator as StyleGAN2-ADA writes it."""
    kwargs = {**SMALL, "synthesis_kwargs": {**NARROW, "num_fp16_res": 1, "conv_clamp": 2.5}}
    network = StyleGAN2Generator(stylegan2_config("training.networks.Generator", kwargs))
    return Written(randomised(network), Official("Generator", kwargs, _of_clamped(2.5)))


def stylegan2_of_stylegan3() -> Written:
    """A generator as the StyleGAN3 repository writes it; the arguments are silent on the clamp and on float16."""
    kwargs = {**SMALL, **NARROW, "c_dim": 0}
    network = StyleGAN2Generator(stylegan2_config("training.networks_stylegan2.Generator", kwargs))
    return Written(randomised(network), Official("Generator", kwargs, _of_clamped(256)))


def stylegan2_discriminator() -> Written:
    """A conditional discriminator."""
    groups = {"mapping_kwargs": {"num_layers": 2}, "epilogue_kwargs": {"mbstd_group_size": 2}}
    kwargs = {**NARROW, **groups, "c_dim": 3, "img_resolution": 16, "num_fp16_res": 2, "conv_clamp": 256}
    network = StyleGAN2Discriminator(official_discriminator_config("training.networks.Discriminator", kwargs))
    return Written(randomised(network), Official("Discriminator", kwargs, _of_clamped(256)))


def stylegan3_t() -> Written:
    """A conditional generator of configuration T."""
    kwargs = {**SMALL, **_LAYERS, "magnitude_ema_beta": 0.9}
    network = StyleGAN3Generator(stylegan3_config("training.networks_stylegan3.Generator", kwargs))
    return Written(randomised(network), Official("Generator", kwargs, _attributes))


def stylegan3_r() -> Written:
    """A generator of configuration R."""
    kwargs = {**SMALL, **_LAYERS, "c_dim": 0, "conv_kernel": 1, "use_radial_filters": True}
    network = StyleGAN3Generator(stylegan3_config("training.networks_stylegan3.Generator", kwargs))
    return Written(randomised(network), Official("Generator", kwargs, _attributes))


def _of_stylegan_xl(network: StyleGANXLGenerator, class_name: str, kwargs: dict[str, Any]) -> Written:
    def attributes(path: str, module: nn.Module) -> dict[str, Any]:
        found = _attributes(path, module)
        found |= _of_input(network.config.input) if path == "synthesis.input" else {}
        return found | ({"output_scale": network.config.output_scale} if path == "synthesis" else {})

    return Written(randomised(network), Official(class_name, kwargs, attributes))


_STEM = "training.networks_stylegan3_resetting.Generator"


def stylegan_xl_stem() -> Written:
    """A stem with 1x1 kernels and radial filters."""
    kwargs = {**SMALL, **_LAYERS, "conv_kernel": 1, "use_radial_filters": True}
    network = StyleGANXLGenerator(stylegan_xl_config(_STEM, kwargs))
    return _of_stylegan_xl(network, "Generator", kwargs)


def stylegan_xl_superres() -> Written:
    """Two super-resolution stages of 3x3 kernels on that stem, whose arguments are not in the file."""
    stem = SynthesisConfig(16, conv_kernel=1, use_radial_filters=True, **_LAYERS)
    stages = [Stage(head_layers=4, conv_kernel=3, use_radial_filters=False)] * 2
    config = chain(stem, stages, num_classes=3, z_dim=8, w_dim=8)
    kwargs = {"img_resolution": 64, "path_stem": "/home/author/stem.pkl", "head_layers": 4, "up_factor": 2}
    return _of_stylegan_xl(StyleGANXLGenerator(config), "SuperresGenerator", kwargs)


def stylegan_t(text_dim: int = 0) -> Written:
    """A generator, whose classes are pickled by reference and record no arguments."""
    config = StyleGANTConfig(
        resolution=16, z_dim=8, text_dim=text_dim, channel_base=128, channel_max=8, num_res_blocks=1, gn_groups=4,
        conv_clamp=2.5, num_fp16_res=1,
    )  # fmt: skip

    clamped = _of_clamped(2.5)

    def attributes(path: str, module: nn.Module) -> dict[str, Any]:
        found = clamped(path, module)
        return found | ({"num_groups": config.gn_groups} if path.endswith(".norm") else {})

    network = randomised(StyleGANTGenerator(config))
    return Written(network, Official("Generator", {}, attributes, by_reference="networks.generator"))


def biggan() -> nn.Module:
    """A BigGAN of 32x32, whose files are state dicts."""
    return randomised(BigGANGenerator(BigGANConfig(32, num_classes=4, channels=4, z_dim=16, shared_dim=8)))


def biggan_deep() -> nn.Module:
    """A pretrained BigGAN-deep, whose files are state dicts."""
    config = BigGANDeepConfig(
        resolution=16, num_classes=4, z_dim=8, channels=4, layers=alternating((16, 16, 8, 4, 2, 1)), attention_before=2
    )
    return randomised(BigGANDeepGenerator(config))


FAMILIES: dict[str, Callable[[], Written]] = {
    "StyleGAN2-ADA": stylegan2_ada,
    "StyleGAN2 of StyleGAN3": stylegan2_of_stylegan3,
    "StyleGAN3-T": stylegan3_t,
    "StyleGAN3-R": stylegan3_r,
    "StyleGAN-XL stem": stylegan_xl_stem,
    "StyleGAN-XL superres": stylegan_xl_superres,
    "StyleGAN-T": stylegan_t,
    "StyleGAN-T text": lambda: stylegan_t(text_dim=6),
}


TENSORFLOW = {
    "stylegan1_generator": (
        build_stylegan1,
        {"resolution": 16, "z_dim": 9, "w_dim": 8, "mapping_layers": 2, "mapping_features": 7, "channel_base": 128},
    ),
    "stylegan2_generator": (
        build_stylegan2,
        {"resolution": 16, "z_dim": 9, "w_dim": 8, "mapping_layers": 2, "mapping_layer_features": 7}
        | {"channel_base": 128},
    ),
}  # fmt: skip
STATIC = {
    "resolution": 16, "num_channels": 3, "label_size": 0, "latent_size": 9, "dlatent_size": 8, "mapping_layers": 2,
    "mapping_fmaps": 7, "fmap_base": 64, "fmap_max": 12, "truncation_psi": 0.5,
}  # fmt: skip


def tensorflow_file(path: Path, maker: str, dialect: Dialect) -> nn.Module:
    """Write a tuple (G, D, Gs) of which Gs is a network of ours; returns that."""
    build, kwargs = TENSORFLOW[maker]
    network = randomised(build(**kwargs, channel_max=12))
    made = getattr(tensorflow_networks, maker)(network.state_dict(), **STATIC)

    def written(network: Any) -> Call:
        components = {name: written(component) for name, component in network.components.items()}
        return tensorflow_network(network.name, network.static_kwargs, network.variables, **components)

    others = tensorflow_network("G", {}, {}), tensorflow_network("D", {}, {})
    path.write_bytes(dumps((*others, written(made)), dialect))
    return network
