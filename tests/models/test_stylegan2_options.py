"""Every official argument of both StyleGAN2 networks, against a formulation that shares no code with them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.stylegan2 import StyleGAN2Generator
from models.stylegan2 import build as build_generator
from models.stylegan2_config import StyleGAN2Config, is_half, official_config
from models.training.stylegan2_discriminator import (
    DiscriminatorConfig,
    StyleGAN2Discriminator,
    build,
    official_discriminator_config,
)
from tests.models import naive_stylegan2

ADA_G, ADA_D = "training.networks.Generator", "training.networks.Discriminator"
LATER_G, LATER_D = "training.networks_stylegan2.Generator", "training.networks_stylegan2.Discriminator"
EIGHT_TAPS = [1, -2, 7, 20, 20, 7, -2, 1]
SKEW = [[1, 2, 0], [3, 5, 1], [0, 1, 4]]

GENERATORS: list[dict[str, Any]] = [
    {"img_channels": 1, "synthesis_kwargs": {"resample_filter": [1, 2, 1], "activation": "swish"}},
    {
        "img_channels": 4,
        "synthesis_kwargs": {"use_noise": False, "activation": "relu", "architecture": "resnet"},
    },
    {"synthesis_kwargs": {"resample_filter": [1, 1], "architecture": "resnet", "conv_clamp": 0.6}},
    {"synthesis_kwargs": {"resample_filter": EIGHT_TAPS, "architecture": "orig", "conv_clamp": 0.8, "kernel_size": 5}},
    {"synthesis_kwargs": {"resample_filter": SKEW, "activation": "tanh", "kernel_size": 1}},
    {"synthesis_kwargs": {"resample_filter": None, "activation": "softplus"}},
    {
        "c_dim": 3,
        "mapping_kwargs": {
            "num_layers": 3,
            "embed_features": 5,
            "layer_features": 9,
            "activation": "elu",
            "lr_multiplier": 0.3,
            "w_avg_beta": None,
        },
        "synthesis_kwargs": {"activation": "linear", "fp16_channels_last": True, "num_fp16_res": 2},
    },
    {"img_resolution": 4, "synthesis_kwargs": {"architecture": "orig"}},
    {"c_dim": 2, "z_dim": 0, "mapping_kwargs": {"num_layers": 1}, "img_resolution": 8},
]
DISCRIMINATORS: list[dict[str, Any]] = [
    {"img_channels": 1, "block_kwargs": {"resample_filter": [1, 2, 1], "activation": "swish"}},
    {"img_channels": 4, "architecture": "skip", "block_kwargs": {"resample_filter": [1, 1], "activation": "relu"}},
    {"architecture": "orig", "block_kwargs": {"resample_filter": EIGHT_TAPS}, "conv_clamp": 0.7},
    {"architecture": "skip", "block_kwargs": {"resample_filter": SKEW}, "epilogue_kwargs": {"activation": "tanh"}},
    {"epilogue_kwargs": {"mbstd_num_channels": 0, "activation": "linear"}, "block_kwargs": {"resample_filter": None}},
    {"epilogue_kwargs": {"mbstd_group_size": None, "mbstd_num_channels": 2}, "conv_clamp": 0.4},
    {"epilogue_kwargs": {"mbstd_group_size": 3}, "cmap_dim": 9},
    {
        "c_dim": 3,
        "cmap_dim": 7,
        "mapping_kwargs": {
            "num_layers": 2,
            "embed_features": 5,
            "layer_features": 6,
            "activation": "relu",
            "lr_multiplier": 0.2,
        },
        "block_kwargs": {"freeze_layers": 3, "fp16_channels_last": True},
        "num_fp16_res": 2,
    },
    {"c_dim": 2, "img_resolution": 8, "channel_max": 3},
]


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(network: nn.Module) -> dict[str, Tensor]:
    """Fill every tensor but the filters with normal numbers, in float64; returns the state dict."""
    network.double()
    for seed, (name, value) in enumerate(sorted(network.state_dict().items())):
        if not name.endswith("resample_filter"):
            value.copy_(normal(tuple(value.shape), seed))
    return network.state_dict()


def label_rows(num_classes: int, count: int) -> Tensor:
    return torch.eye(max(num_classes, 1), dtype=torch.float64)[torch.arange(count) % max(num_classes, 1)]


@pytest.mark.parametrize("changes", GENERATORS, ids=str)
def test_generator_agrees_with_the_formulas_under_every_option(changes: dict[str, Any]) -> None:
    kwargs = {"z_dim": 6, "c_dim": 0, "w_dim": 8, "img_resolution": 16, "img_channels": 3, **changes}
    synthesis = {"channel_base": 64, "channel_max": 6, **kwargs.pop("synthesis_kwargs", {})}
    network = StyleGAN2Generator(official_config(ADA_G, {**kwargs, "synthesis_kwargs": synthesis}))
    state = randomised(network)
    z, c = normal((3, kwargs["z_dim"]), 99), label_rows(kwargs["c_dim"], 3)
    expected = naive_stylegan2.generator(state, {**kwargs, "synthesis_kwargs": synthesis}, z, c)
    image = network(z, c if kwargs["c_dim"] else None, noise_mode="const")
    assert image.shape == (3, kwargs["img_channels"], kwargs["img_resolution"], kwargs["img_resolution"])
    assert (image - expected).abs().max() < 1e-9 * expected.abs().max()
    assert any("noise" in name for name in state) == synthesis.get("use_noise", True)
    assert ("mapping.w_avg" in state) == (kwargs.get("mapping_kwargs", {}).get("w_avg_beta", 1) is not None)


@pytest.mark.parametrize("changes", DISCRIMINATORS, ids=str)
def test_discriminator_agrees_with_the_formulas_under_every_option(changes: dict[str, Any]) -> None:
    kwargs = {"c_dim": 0, "img_resolution": 16, "img_channels": 3, "channel_base": 64, "channel_max": 6, **changes}
    network = StyleGAN2Discriminator(official_discriminator_config(ADA_D, kwargs))
    state = randomised(network)
    size = kwargs["img_resolution"]
    images, c = normal((12, kwargs["img_channels"], size, size), 99), label_rows(kwargs["c_dim"], 12)
    logits = network(images, c if kwargs["c_dim"] else None)
    expected = naive_stylegan2.discriminator(state, kwargs, images, c)
    assert logits.shape == (12, 1)
    assert (logits - expected).abs().max() < 1e-9 * expected.abs().max()


def test_only_resampling_layers_have_the_other_filter() -> None:
    kwargs = {"img_resolution": 8, "channel_base": 64}
    generator = StyleGAN2Generator(official_config(LATER_G, {**kwargs, "resample_filter": EIGHT_TAPS}))
    filters = {name: tuple(value.shape) for name, value in generator.named_buffers() if name.endswith("filter")}
    assert filters == {
        "synthesis.b4.conv1.resample_filter": (4, 4),
        "synthesis.b4.resample_filter": (8,),
        "synthesis.b8.conv0.resample_filter": (8,),
        "synthesis.b8.conv1.resample_filter": (4, 4),
        "synthesis.b8.resample_filter": (8,),
    }
    config = official_discriminator_config(LATER_D, {**kwargs, "block_kwargs": {"resample_filter": [1, 1, 1]}})
    discriminator = StyleGAN2Discriminator(config)
    filters = {name: tuple(value.shape) for name, value in discriminator.named_buffers() if name.endswith("filter")}
    assert {name for name, shape in filters.items() if shape == (3, 3)} == {
        "b8.conv1.resample_filter",
        "b8.skip.resample_filter",
        "b8.resample_filter",
    }
    assert {name for name, shape in filters.items() if shape == (4, 4)} == {
        "b8.fromrgb.resample_filter",
        "b8.conv0.resample_filter",
        "b4.conv.resample_filter",
    }


@pytest.mark.parametrize(
    ("architecture", "frozen"),
    [
        ("resnet", {"b16.fromrgb", "b16.conv0", "b16.conv1", "b16.skip", "b8.conv0"}),
        ("skip", {"b16.fromrgb", "b16.conv0", "b16.conv1", "b8.fromrgb", "b8.conv0"}),
        ("orig", {"b16.fromrgb", "b16.conv0", "b16.conv1", "b8.conv0", "b8.conv1"}),
    ],
)
def test_frozen_layers_keep_their_names_and_can_not_be_thawed(architecture: str, frozen: set[str]) -> None:
    kwargs = {"img_resolution": 16, "channel_base": 64, "architecture": architecture}
    free = StyleGAN2Discriminator(official_discriminator_config(ADA_D, kwargs))
    config = official_discriminator_config(ADA_D, {**kwargs, "block_kwargs": {"freeze_layers": 5}})
    network = StyleGAN2Discriminator(config).requires_grad_(True)
    network.load_state_dict(free.state_dict(), strict=True)
    trained = {name.rpartition(".")[0] for name, _ in network.named_parameters()}
    assert {name.rpartition(".")[0] for name, _ in free.named_parameters()} - trained == frozen


@pytest.mark.parametrize("make", [build_generator, build])
def test_build_makes_a_network_again_from_arguments_that_went_through_json(make: Any) -> None:
    network = make(resolution=8, channel_base=64, resample_filter=[[1, 2], [3, 4]], img_channels=1)
    again = make(**json.loads(json.dumps(network.kwargs)))
    assert again.config == network.config
    assert type(network).target == f"{make.__module__}:build"


def test_mapping_without_an_average_refuses_truncation() -> None:
    config = official_config(ADA_G, {"img_resolution": 8, "channel_base": 64, "mapping_kwargs": {"w_avg_beta": None}})
    with pytest.raises(ValueError, match=r"truncation_psi=0\.5: this network keeps no average"):
        StyleGAN2Generator(config).mapping(torch.zeros(1, 512), truncation_psi=0.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"synthesis_kwargs": {"activation": "gelu"}}, "unknown activation 'gelu'"),
        ({"synthesis_kwargs": {"kernel_size": 4}}, "kernel_size 4 is even"),
        ({"mapping_kwargs": {"num_layers": 0}}, "mapping network of 0 layers"),
        ({"z_dim": 0}, "without inputs"),
        (
            {"mapping_kwargs": {"depth": 3}},
            "unknown arguments mapping_kwargs.depth; known: .*mapping_kwargs.num_layers",
        ),
    ],
)
def test_official_config_names_what_is_wrong(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StyleGAN2Generator(official_config(ADA_G, {"img_resolution": 8, **kwargs}))


def official_half(resolution: int, num_fp16_res: int) -> list[int]:
    """The rule of the official networks: from max(2^(log2 R + 1 - num_fp16_res), 8) on."""
    first = max(2.0 ** (resolution.bit_length() - 1 + 1 - num_fp16_res), 8)
    return [2**i for i in range(2, 11) if first <= 2**i <= resolution]


@pytest.mark.parametrize("resolution", [8, 16, 256, 1024])
@pytest.mark.parametrize("num_fp16_res", [0, 1, 2, 4, 9, 20])
def test_half_precision_blocks_are_those_of_the_official_rule(resolution: int, num_fp16_res: int) -> None:
    expected = official_half(resolution, num_fp16_res)
    assert [2**i for i in range(2, 11) if 2**i <= resolution and is_half(2**i, resolution, num_fp16_res)] == expected
    generator = StyleGAN2Config(resolution, num_fp16_res=num_fp16_res)
    discriminator = DiscriminatorConfig(resolution, num_fp16_res=num_fp16_res)
    assert [r for r in generator.resolutions if generator.is_half(r)] == expected
    assert sorted(r for r in discriminator.resolutions if discriminator.is_half(r)) == expected


def test_networks_of_the_stylegan3_repository_run_four_resolutions_in_half_unless_told_otherwise() -> None:
    generator = official_config(LATER_G, {"img_resolution": 256})
    discriminator = official_discriminator_config(LATER_D, {"img_resolution": 256})
    for config in (generator, discriminator):
        assert (config.num_fp16_res, config.conv_clamp) == (4, 256)
        assert sorted(r for r in config.resolutions if config.is_half(r)) == [32, 64, 128, 256]
    assert official_config(ADA_G, {"img_resolution": 256}).num_fp16_res == 0
    assert official_discriminator_config(ADA_D, {"img_resolution": 256}).conv_clamp is None


def test_discriminator_block_in_half_agrees_with_float32_and_the_epilogue_stays_in_float32() -> None:
    config = DiscriminatorConfig(
        16, channel_base=64, channel_max=8, architecture="skip", conv_clamp=256, num_fp16_res=4
    )
    network = StyleGAN2Discriminator(config)
    randomised(network)
    network.float()
    images = normal((2, 3, 16, 16), 5).float()
    block = network.get_submodule("b16")
    half, exact = (block(None, images, dtype) for dtype in (torch.float16, torch.float32))
    assert [value.dtype for value in half] == [torch.float16, torch.float16]
    for got, want in zip(half, exact, strict=True):
        assert 0 < (got.float() - want).abs().max() < 5e-3 * want.abs().max()
    seen: list[torch.dtype] = []
    network.b4.register_forward_pre_hook(lambda _, inputs: seen.extend(value.dtype for value in inputs))
    assert network(images).dtype == torch.float32  # on a CPU nothing runs in half
    assert seen == [torch.float32, torch.float32]
