from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.formats.tensorflow_names import (
    TensorFlowNetwork,
    convert_tensorflow,
    stylegan1_discriminator_variable,
    stylegan1_generator_variable,
)
from tests.golden_cases import golden_files, golden_meta
from tests.models import tensorflow_networks

STYLEGAN1 = {
    "resolution": 16, "num_channels": 3, "label_size": 0, "latent_size": 9, "dlatent_size": 8, "mapping_layers": 2,
    "mapping_fmaps": 7, "fmap_base": 64, "fmap_max": 12,
}  # fmt: skip
STYLEGAN2 = {
    "resolution": 16, "num_channels": 3, "label_size": 0, "latent_size": 9, "dlatent_size": 8, "mapping_layers": 2,
    "mapping_fmaps": 7, "fmap_base": 64, "fmap_max": 12,
}  # fmt: skip
DISCRIMINATOR = {"resolution": 16, "num_channels": 3, "label_size": 0, "fmap_base": 64, "fmap_max": 12}
OURS1 = {"resolution": 16, "z_dim": 9, "w_dim": 8, "mapping_layers": 2, "mapping_features": 7, "channel_base": 128}
OURS2 = {"resolution": 16, "z_dim": 9, "w_dim": 8, "mapping_layers": 2, "mapping_layer_features": 7}
ROUND_TRIPS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    # maker of the official network, our module, its arguments, the official ones
    ("stylegan1_generator", "models.stylegan1", {**OURS1, "channel_max": 12}, STYLEGAN1),
    (
        "stylegan1_generator",
        "models.stylegan1",
        {**OURS1, "channel_max": 12, "num_classes": 3, "equalized": False, "fused_scale": True, "img_channels": 1},
        {**STYLEGAN1, "label_size": 3, "use_wscale": False, "fused_scale": True, "num_channels": 1},
    ),
    (
        "stylegan1_discriminator",
        "models.training.stylegan1_discriminator",
        {"resolution": 16, "channel_base": 128, "channel_max": 12},
        DISCRIMINATOR,
    ),
    ("stylegan2_generator", "models.stylegan2", {**OURS2, "channel_base": 128, "channel_max": 12}, STYLEGAN2),
    (
        "stylegan2_generator",
        "models.stylegan2",
        {**OURS2, "channel_base": 128, "channel_max": 12, "architecture": "resnet", "resample_filter": (1, 2, 1)},
        {**STYLEGAN2, "architecture": "resnet", "resample_kernel": [1, 2, 1]},
    ),
    (
        "stylegan2_discriminator",
        "models.training.stylegan2_discriminator",
        {"resolution": 16, "channel_base": 128, "channel_max": 12},
        {**DISCRIMINATOR, "mbstd_group_size": 4, "architecture": "resnet"},
    ),
    (
        "stylegan2_discriminator",
        "models.training.stylegan2_discriminator",
        {"resolution": 16, "channel_base": 128, "channel_max": 12, "architecture": "skip", "mbstd_num_channels": 2},
        {**DISCRIMINATOR, "mbstd_num_features": 2, "architecture": "skip"},
    ),
]


def build(target: str, kwargs: dict[str, Any]) -> nn.Module:
    module, _, function = target.partition(":")
    return cast("nn.Module", getattr(import_module(module), function)(**kwargs))


def official(maker: str, module: str, ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[Any, TensorFlowNetwork]:
    """A state dict of random numbers, and the official network that has them."""
    state = build(f"{module}:build", ours).state_dict()
    drawn = torch.Generator().manual_seed(0)
    for name, value in state.items():
        if not name.endswith(("resample_filter", "blur.kernel")):
            value.copy_(torch.randn(value.shape, generator=drawn))
    make: Callable[..., TensorFlowNetwork] = getattr(tensorflow_networks, maker)
    return state, make(state, **theirs)


def stylegan2() -> TensorFlowNetwork:
    return official(*ROUND_TRIPS[3])[1]


@pytest.mark.parametrize("case", ROUND_TRIPS, ids=lambda case: case[0])
def test_official_network_becomes_ours(case: tuple[str, str, dict[str, Any], dict[str, Any]]) -> None:
    state, network = official(*case)
    target, kwargs, converted = convert_tensorflow(network)
    assert target == f"{case[1]}:build"
    ours = build(target, kwargs)
    assert cast("Any", ours).config == cast("Any", build(target, case[2])).config
    ours.load_state_dict(converted, strict=True)
    for name, value in converted.items():
        assert value.dtype == torch.float32, name
        assert torch.allclose(value, state[name], atol=1e-6), name


@pytest.mark.parametrize("case", ROUND_TRIPS[3:4], ids=["skip"])
def test_converted_stylegan2_paints_what_the_official_formulas_do(case: Any) -> None:
    _, network = official(*case)
    for name, value in network.components["mapping"].variables.items():
        cast("Any", network.components["mapping"].variables)[name] = value * 100  # lr_multiplier takes this out again
    target, kwargs, state = convert_tensorflow(network)
    generator = build(target, kwargs)
    generator.load_state_dict(state)
    z = np.random.default_rng(0).standard_normal((2, 9))
    want = torch.from_numpy(tensorflow_networks.run_stylegan2(network, z))
    got = generator.double()(torch.from_numpy(z), noise_mode="const")
    assert want.std() > 0.1
    # the official weights are scaled before they are demodulated, which its 1e-8 sees
    assert (got - want).abs().max() < 1e-6 * want.abs().max()


def test_names_are_those_of_the_golden_cases(golden_dir: Path) -> None:
    files = golden_files(golden_dir, "stylegan1")
    if not files:
        pytest.skip(f"{golden_dir} has no case of StyleGAN")
    for meta in map(golden_meta, files):
        is_generator = meta["class"].endswith("Generator")
        variable = stylegan1_generator_variable if is_generator else stylegan1_discriminator_variable
        names: dict[str, str] = meta["params"]["tf_var_names"]
        resolution = meta["kwargs"]["resolution"]
        assert {ours: variable(ours, resolution) for ours in names} == names


def test_scopes_before_names_are_taken_off() -> None:
    _, network = official(*ROUND_TRIPS[0])
    parts = {f"G_{part}": component.variables for part, component in network.components.items()}
    variables = {f"{scope}/{name}": value for scope, part in parts.items() for name, value in part.items()}
    flat = replace(network, variables={**network.variables, **variables}, components={})
    want, got = convert_tensorflow(network)[2], convert_tensorflow(flat)[2]
    assert want.keys() == got.keys()
    assert all(torch.equal(value, got[name]) for name, value in want.items())


def test_single_torgb_may_have_the_name_of_its_level_of_detail() -> None:
    case = ROUND_TRIPS[4]
    _, network = official(*case)
    synthesis = network.components["synthesis"]
    renamed = {name.replace("16x16/ToRGB", "ToRGB_lod0"): value for name, value in synthesis.variables.items()}
    assert "ToRGB_lod0/weight" in renamed
    components = {**network.components, "synthesis": replace(synthesis, variables=renamed)}
    got, want = convert_tensorflow(replace(network, components=components))[2], convert_tensorflow(network)[2]
    assert torch.equal(got["synthesis.b16.torgb.weight"], want["synthesis.b16.torgb.weight"])


def test_defaults_are_those_of_the_official_functions() -> None:
    wide = {"mapping_layers": 8, "resolution": 1024}
    shapes: dict[str, Tensor] = {}
    with torch.device("meta"):
        shapes = build("models.stylegan1:build", {"resolution": 1024}).state_dict()
    state = {name: torch.zeros(()).expand(value.shape) for name, value in shapes.items()}
    network = tensorflow_networks.stylegan1_generator(state, **wide)
    small = {name: value for name, value in network.components["synthesis"].variables.items() if "1024" in name}
    assert small["1024x1024/Conv1/weight"].shape == (3, 3, 16, 16)
    _, kwargs, _ = convert_tensorflow(replace(network, static_kwargs={}))
    assert (kwargs["resolution"], kwargs["channel_base"], kwargs["img_channels"]) == (1024, 16384, 3)


@pytest.mark.parametrize(
    ("case", "changed", "message"),
    [
        (0, {"use_pixel_norm": True}, "use_pixel_norm=True is not supported, only False"),
        (0, {"blur_filter": None}, "blur_filter=None is not supported"),
        (0, {"spectral": 1}, "unknown arguments spectral; known: dlatent_avg_beta"),
        (0, {"fmap_decay": 0.5}, "fmap_decay=0.5 is not supported, only 1"),
        (
            0,
            {"resolution": 32},
            r"it lacks the variables ToRGB_lod3/\w+, ToRGB_lod3/\w+, 32x32/Conv0_up/.* and \d+ more",
        ),
        (0, {"mapping_layers": 10**9}, "mapping_layers=1000000000 and only"),
        (3, {"fmap_max": 6}, r"synthesis.b4.const would be \[1, 12, 4, 4\] and these arguments ask for \[6, 4, 4\]"),
        (3, {"architecture": "resnet"}, "it lacks the variables 8x8/Skip/weight"),
        (3, {"architecture": "orig"}, "it has variables that no part of our network takes: 4x4/ToRGB/bias"),
        (3, {"label_size": 10}, "it lacks the variables LabelEmbed/weight, LabelEmbed/bias"),
        (3, {"synthesis_func": "G_synthesis_stylegan_revised"}, "synthesis_func='G_synthesis_stylegan_revised'"),
        (5, {"label_size": 10}, "label_size=10 is not supported, only 0"),
    ],
)
def test_networks_that_are_not_ours_are_refused(case: int, changed: dict[str, Any], message: str) -> None:
    _, network = official(*ROUND_TRIPS[case])
    with pytest.raises(ValueError, match=message):
        convert_tensorflow(replace(network, static_kwargs={**network.static_kwargs, **changed}))


def test_networks_of_another_kind_are_refused_by_name() -> None:
    network = TensorFlowNetwork("Gs", "training.networks_progan.G_paper", {}, {"lod": np.zeros(())}, {})
    with pytest.raises(ValueError, match=r"Gs \(training.networks_progan.G_paper\) is no generator or discriminator"):
        convert_tensorflow(network)
