from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.biggan import BigGANGenerator, accumulate_statistics, build
from models.biggan_config import BigGANConfig, config_from_state, official_config
from models.biggan_layers import ConditionalNorm, SpectralConv2d
from models.layers import initialise, one_hot
from models.registry import build as build_registered
from models.spec import Latents, SamplingSettings
from models.spectral_norm import SpectralNorm, WeightSpec

TINY = BigGANConfig(32, num_classes=5, channels=4, z_dim=8, shared_dim=6, attention=(16,))
CIFAR_LIKE = replace(TINY, shared_dim=0, hierarchical=False, z_dim=7, attention=(), init="N02")
CONFIGS = {
    "hierarchical": TINY,
    "labels of the layers' own": CIFAR_LIKE,
    "shared, one z": replace(TINY, hierarchical=False),
    "two attentions": replace(TINY, attention=(8, 32)),
    "64 pixels": replace(TINY, resolution=64, z_dim=10, channels=8, attention=(64,)),
    "own batch norm": replace(TINY, norm="mybn", bn_eps=1e-2),
    "cross-replica": replace(TINY, norm="cross_replica"),
    "cross-replica, own labels": replace(CIFAR_LIKE, norm="cross_replica"),
    "instance norm": replace(TINY, norm="in"),
    "no norm": replace(TINY, norm="nonorm"),
    "no spectral norm": replace(TINY, spectral=False, init="glorot"),
    "two singular values": replace(TINY, num_svs=2, num_itrs=3, sn_eps=1e-3),
    "first stage at 3x3": replace(TINY, bottom_width=3),
    "deep": replace(TINY, depth=2),
    "deeper": replace(TINY, depth=3, norm="mybn"),
    "deep, 64 pixels": replace(TINY, resolution=64, depth=2, channels=8, attention=(8, 32)),
}
PARAMETERS = {
    "biggan-imagenet-128": 70_433_988,
    "biggan-100k-imagenet-128": 70_433_988,
    "biggan-256": 82_235_844,  # 82.2 million are reported for it
}


def make(config: BigGANConfig) -> BigGANGenerator:
    """A generator none of whose tensors is at a value without effect."""
    generator = BigGANGenerator(config)
    initialise(generator, 0)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in generator.state_dict().items():
            if name.endswith(("_var", "output_layer.0.gain")):
                tensor.uniform_(0.5, 2, generator=rng)
            elif name.endswith(("_mean", "gamma", "output_layer.0.bias", "conv1.bias")):
                tensor.normal_(0, 0.5, generator=rng)
    return generator


def inputs(config: BigGANConfig, count: int = 3) -> tuple[Tensor, Tensor]:
    z = torch.randn(count, config.z_dim, generator=torch.Generator().manual_seed(1))
    return z, F.one_hot(torch.arange(count) % config.num_classes, config.num_classes).float()


class Naive:
    """The generator as the paper words it, from a state dict, in float64 and without any shortcut."""

    def __init__(self, generator: BigGANGenerator) -> None:
        self.config = generator.config
        self.state: Latents = {name: value.double() for name, value in generator.state_dict().items()}

    def weight(self, name: str) -> Tensor:
        weight: Tensor = self.state[f"{name}.weight"]
        if f"{name}.u0" not in self.state:
            return weight
        matrix = weight.flatten(1)
        v = F.normalize(self.state[f"{name}.u0"] @ matrix, eps=self.config.sn_eps)
        sigma: Tensor = (v @ matrix.t()).norm()
        return weight / sigma

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.weight(name)
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=int(weight.shape[-1]) // 2)

    def norm(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        if self.config.shared_dim:
            gain, bias = 1 + y @ self.weight(f"{name}.gain").t(), y @ self.weight(f"{name}.bias").t()
        else:
            gain, bias = 1 + y @ self.weight(f"{name}.gain"), y @ self.weight(f"{name}.bias")
        return self.scaled(name, x, gain, bias, self.config.bn_eps)

    def scaled(self, name: str, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        gain, bias = gain[:, :, None, None], bias[:, :, None, None]
        mean, var = (
            next((value for key, value in self.state.items() if key.startswith(name) and key.endswith(end)), None)
            for end in ("_mean", "_var")
        )
        if mean is not None and var is not None:
            x = (x - mean[:, None, None]) / (var[:, None, None] + eps).sqrt()
        return x + gain + bias if self.config.norm == "cross_replica" else x * gain + bias

    def attention(self, name: str, x: Tensor) -> Tensor:
        theta, phi, g = (self.conv(f"{name}.{part}", x) for part in ("theta", "phi", "g"))
        phi, g = F.max_pool2d(phi, 2), F.max_pool2d(g, 2)
        weights = torch.einsum("nchw,ncij->nhwij", theta, phi).flatten(3).softmax(-1)
        attended = torch.einsum("nhwk,nck->nchw", weights, g.flatten(2))
        return x + self.state[f"{name}.gamma"] * self.conv(f"{name}.o", attended)

    def block(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        h = F.interpolate(self.norm(f"{name}.bn1", x, y).relu(), scale_factor=2.0)
        h = self.norm(f"{name}.bn2", self.conv(f"{name}.conv1", h), y).relu()
        return self.conv(f"{name}.conv2", h) + self.conv(f"{name}.conv_sc", F.interpolate(x, scale_factor=2.0))

    def deep_block(self, name: str, x: Tensor, y: Tensor, up: bool) -> Tensor:
        h = self.conv(f"{name}.conv1", self.norm(f"{name}.bn1", x, y).relu())
        h = self.norm(f"{name}.bn2", h, y).relu()
        if up:
            h, x = F.interpolate(h, scale_factor=2.0), F.interpolate(x, scale_factor=2.0)
        h = self.norm(f"{name}.bn3", self.conv(f"{name}.conv2", h), y).relu()
        h = self.norm(f"{name}.bn4", self.conv(f"{name}.conv3", h), y).relu()
        h = self.conv(f"{name}.conv4", h)
        return x[:, : h.shape[1]] + h

    def __call__(self, z: Tensor, c: Tensor) -> Tensor:
        config = self.config
        z, c = z.double(), c.double()
        y = c @ self.state["shared.weight"] if config.shared_dim else c
        if config.depth:
            zs = [torch.cat([y, z], 1)]
        else:
            zs = list(z.split(z.shape[1] // (4 if config.resolution == 32 else 5), 1)) if config.hierarchical else [z]
        h = zs[0] @ self.weight("linear").t() + self.state["linear.bias"]
        h = h.view(len(z), -1, config.bottom_width, config.bottom_width)
        stages = {32: 3, 64: 4}[config.resolution]
        for i in range(stages * max(config.depth, 1)):
            if config.depth:
                h = self.deep_block(f"blocks.{i}.0", h, zs[0], i % config.depth == config.depth - 1)
            else:
                h = self.block(f"blocks.{i}.0", h, torch.cat([y, zs[i + 1]], 1) if config.hierarchical else y)
            if f"blocks.{i}.1.gamma" in self.state:
                h = self.attention(f"blocks.{i}.1", h)
        gain, bias = self.state["output_layer.0.gain"][None], self.state["output_layer.0.bias"][None]
        h = self.scaled("output_layer.0.", h, gain, bias, 1e-5)
        return self.conv("output_layer.2", h.relu()).tanh()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_images_are_those_of_the_naive_formulation(config: BigGANConfig) -> None:
    generator = make(config)
    z, c = inputs(config)
    want = Naive(generator)(z, c)
    assert want.shape == (3, 3, generator.resolution, generator.resolution)
    assert want.std() > 0.05
    with_graph = generator(z, c)
    with torch.no_grad():
        kept = generator(z, c)
    torch.testing.assert_close(with_graph.double(), want, atol=2e-5, rtol=0)
    torch.testing.assert_close(kept.double(), want, atol=2e-5, rtol=0)
    assert (copy.deepcopy(generator).double()(z.double(), c.double()) - want).abs().max() < 1e-10


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_generators_have_the_published_number_of_parameters(name: str) -> None:
    generator = cast("nn.Module", build_registered(name, device="meta"))
    assert sum(parameter.numel() for parameter in generator.parameters()) == PARAMETERS[name]


def test_upsampling_convolution_keeps_weights_for_the_small_image() -> None:
    layer = SpectralConv2d((5, 7, 3), WeightSpec(SpectralNorm(), "N02"), up=True).eval()
    initialise(layer, 0)
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    with_graph = layer(x)
    with torch.no_grad():
        kept = layer(x)
        assert layer.prepared().shape == (2, 2, 7, 5, 2, 2)
        assert layer.prepared() is layer.prepared()
    assert kept.shape == (2, 7, 6, 8)
    torch.testing.assert_close(kept, with_graph, atol=1e-6, rtol=0)
    large = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(with_graph, F.conv2d(large, layer.make(), layer.bias, padding=1))


def test_running_averages_are_those_of_torch() -> None:
    norm = ConditionalNorm(4, nn.Linear(2, 4), nn.Linear(2, 4), "bn", 1e-3).train()
    want = nn.BatchNorm2d(4, eps=1e-3, affine=False)
    x, y = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1, torch.ones(5, 2)
    normalised = want(x) * (1 + norm.gain(y))[:, :, None, None] + norm.bias(y)[:, :, None, None]
    torch.testing.assert_close(norm(x, y), normalised)
    torch.testing.assert_close(norm.get_buffer("stored_mean"), want.running_mean)
    torch.testing.assert_close(norm.get_buffer("stored_var"), want.running_var)


def test_instance_norm_averages_the_statistics_of_each_image() -> None:
    norm = ConditionalNorm(4, nn.Linear(2, 4), nn.Linear(2, 4), "in", 1e-3).train()
    mean, var = torch.zeros(4), torch.ones(4)
    x, y = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1, torch.ones(5, 2)
    want = F.instance_norm(x, mean, var, use_input_stats=True, momentum=0.1, eps=1e-3)
    torch.testing.assert_close(norm(x, y), want * (1 + norm.gain(y))[:, :, None, None] + norm.bias(y)[:, :, None, None])
    torch.testing.assert_close(norm.get_buffer("stored_mean"), mean)
    torch.testing.assert_close(norm.get_buffer("stored_var"), var)


@pytest.mark.parametrize("norm", ["bn", "mybn"])
def test_standing_statistics_are_the_mean_over_the_batches(norm: Any) -> None:
    config = replace(TINY, norm=norm)
    generator = make(config)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    batches = [inputs(config, count) for count in (2, 4, 5)]
    seen: list[Tensor] = []
    first = generator.blocks[0].get_submodule("0.bn1")
    handle = first.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    accumulate_statistics(generator, batches)
    handle.remove()
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    var = torch.stack([x.var((0, 2, 3), correction=int(norm == "bn")) for x in seen]).mean(0)
    prefix = "bn.stored" if norm == "mybn" else "stored"
    torch.testing.assert_close(first.get_buffer(f"{prefix}_mean"), mean)
    torch.testing.assert_close(first.get_buffer(f"{prefix}_var"), var)
    unchanged = {name for name, value in generator.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name in before if "stored" not in name} <= unchanged
    again = generator.state_dict()
    generator(*inputs(config))
    assert all(torch.equal(value, again[name]) for name, value in generator.state_dict().items())


def draw(generator: BigGANGenerator, seeds: list[int]) -> Latents:
    drawn = [generator.draw(np.random.Generator(np.random.Philox(seed))) for seed in seeds]
    return {"z": torch.stack([latents["z"] for latents in drawn])}


def test_latents_are_normal_or_truncated_at_twice_psi() -> None:
    generator = BigGANGenerator(replace(TINY, z_dim=4000))
    assert scipy.stats.kstest(draw(generator, [0])["z"][0].numpy(), "norm").pvalue > 0.01
    generator.settings = SamplingSettings(truncation_psi=0.4)
    z = draw(generator, [0])["z"][0].numpy()
    assert z.dtype == np.float32
    assert 0.79 < np.abs(z).max() <= 0.8
    assert scipy.stats.kstest(z, scipy.stats.truncnorm(-0.8, 0.8).cdf).pvalue > 0.01
    generator.settings = SamplingSettings(truncation_psi=0)
    with pytest.raises(ValueError, match="truncation_psi 0; a BigGAN takes more than 0"):
        draw(generator, [0])


def test_sample_cuts_grey_levels_and_does_not_depend_on_the_batch() -> None:
    generator = make(TINY)
    latents, labels = draw(generator, [0, 1, 2]), torch.tensor([1, 4, 1])
    images = generator.sample(latents, labels)
    with torch.no_grad():
        exact = generator(latents["z"], cast("Tensor", one_hot(labels, 5, latents["z"]))).numpy()
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), np.uint8(255 * (exact + 1) / 2))
    alone = generator.sample({"z": latents["z"][1:2]}, labels[1:2])
    assert (alone.int() - images[1:2].int()).abs().max() <= 1
    other = generator.sample(latents, torch.tensor([0, 4, 1]))
    assert not torch.equal(other[0], images[0])
    assert torch.equal(other[1:], images[1:])
    with pytest.raises(ValueError, match="no labels"):
        generator.sample(latents)


@pytest.mark.parametrize("config", [TINY, CIFAR_LIKE, CONFIGS["deep"]])
def test_images_come_from_latents_and_classes_joined(config: BigGANConfig) -> None:
    generator = make(config)
    z, c = inputs(config)
    ws = generator.mapping(z, c, truncation_psi=0.5)
    assert ws.shape == (3, generator.num_ws, config.z_dim + (config.shared_dim or config.num_classes))
    assert torch.equal(ws[:, 0, : config.z_dim], z)
    assert torch.equal(generator.synthesis(ws, noise_mode="const"), generator(z, c))


@pytest.mark.parametrize("config", [TINY, CIFAR_LIKE, CONFIGS["deep"], CONFIGS["no spectral norm"]])
def test_untrained_generator_paints_images(config: BigGANConfig) -> None:
    generator = BigGANGenerator(config)
    initialise(generator, 0)
    again = BigGANGenerator(config)
    initialise(again, 0)
    images = generator.sample(draw(generator, [0, 1]), torch.tensor([0, 1])).float()
    assert images.std(dim=(1, 2, 3)).min() > 2
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in generator.state_dict().items())


def test_training_starts_without_attention() -> None:
    generator = make(TINY)
    initialise(generator, 0)
    assert not generator.get_parameter("blocks.1.1.gamma").any()
    assert not generator.get_buffer("blocks.0.0.bn1.stored_mean").any()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_configuration_is_recovered_from_names_and_shapes(config: BigGANConfig) -> None:
    lost = {"bn_eps": 1e-5, "sn_eps": 1e-6, "num_itrs": 1, "init": "ortho"}
    expected = replace(config, **cast("Any", lost), norm="bn" if config.norm == "in" else config.norm)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in BigGANGenerator(config).state_dict().items()}
    assert config_from_state(shapes) == expected


@pytest.mark.parametrize("resolution", [128, 256, 512])
def test_configuration_of_large_generators_is_recovered(resolution: int) -> None:
    config = BigGANConfig(resolution, z_dim=20 * (resolution.bit_length() - 2), attention=(32, 64))
    with torch.device("meta"):
        generator = build(**json.loads(json.dumps(BigGANGenerator(config).kwargs)))
    assert generator.config == config
    assert config_from_state({name: tuple(value.shape) for name, value in generator.state_dict().items()}) == config


@pytest.mark.parametrize("shapes", [{}, {"linear.weight": (3, 3)}, {"blocks.0.0.conv1.weight": (5, 5, 3, 3)}])
def test_tensors_of_other_networks_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="not the tensors of a BigGAN generator"):
        config_from_state(shapes)


def test_official_arguments_are_translated() -> None:
    plain = official_config("BigGAN.Generator", {"resolution": 32, "no_optim": True, "G_depth": 3})
    assert plain == BigGANConfig(32, channels=64, z_dim=128, shared_dim=128, hierarchical=False, sn_eps=1e-12)
    named = {"G_attn": "32_64", "hier": True, "dim_z": 128, "G_ch": 96, "n_classes": 9, "shared_dim": 5, "mybn": True}
    config = official_config("BigGAN.Generator", {**named, "cross_replica": True, "G_param": "None"})
    assert (config.attention, config.z_dim, config.shared_dim) == ((32, 64), 126, 5)  # 6 parts of 21
    assert (config.norm, config.spectral, config.num_classes) == ("cross_replica", False, 9)
    deep = official_config("BigGANdeep.Generator", {"hier": True, "G_attn": "0", "norm_style": "in"})
    assert (deep.depth, deep.z_dim, deep.attention, deep.norm) == (2, 128, (), "in")


@pytest.mark.parametrize(
    ("class_name", "kwargs", "message"),
    [
        ("BigGAN.Generator", {"D_ch": 3}, "unknown arguments D_ch; known: .*G_ch"),
        ("BigGAN.Generator", {"G_activation": "selu"}, "G_activation 'selu' is not one of relu"),
        ("BigGAN.Generator", {"resolution": 48}, "resolution 48 is not one of 32, 64"),
        ("BigGAN.Generator", {"norm_style": "gn"}, "norm 'gn' is not one of bn"),
        ("BigGAN.Generator", {"hier": True, "G_shared": False, "resolution": 32}, "Give shared_dim"),
        ("BigGANdeep.Generator", {"resolution": 32}, "Set hierarchical"),
        ("BigGAN.Generator", {"n_classes": 0}, "num_classes 0: a BigGAN needs one class or more"),
        ("SAGAN.Generator", {}, "generator 'SAGAN.Generator' is not one of BigGAN.Generator"),
    ],
)
def test_what_has_no_network_is_refused(class_name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        official_config(class_name, kwargs)


def test_latents_that_can_not_be_parted_are_refused() -> None:
    with pytest.raises(ValueError, match="z_dim 128 does not fall into 6 equal parts"):
        BigGANConfig(128, z_dim=128)
