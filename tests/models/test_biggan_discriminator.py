from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.checkpoints import convert, load_network
from models.layers import initialise
from models.training.biggan_discriminator import (
    BigGANDiscriminator,
    BigGANDiscriminatorConfig,
    build,
    discriminator_config_from_state,
    official_discriminator_config,
)

TINY = BigGANDiscriminatorConfig(32, num_classes=5, channels=4, attention=())
CONFIGS = {
    "32 pixels": TINY,
    "attention in every stage of 16 pixels": replace(TINY, attention=(16,)),
    "64 pixels": replace(TINY, resolution=64, attention=(32, 4), channels=8),
    "narrow": replace(TINY, resolution=64, wide=False, output_dim=3),
    "deep": replace(TINY, depth=2, attention=(16,)),
    "deep, 64 pixels": replace(TINY, resolution=64, depth=3, attention=(16, 32), channels=8, num_svs=2),
    "one deep block": replace(TINY, resolution=64, depth=1),
}
HALVINGS = {32: 2, 64: 4}


def make(config: BigGANDiscriminatorConfig) -> BigGANDiscriminator:
    discriminator = BigGANDiscriminator(config)
    initialise(discriminator, 0)
    with torch.no_grad():
        for name, tensor in discriminator.named_parameters():
            if name.endswith("gamma"):
                tensor.fill_(0.7)
    return discriminator.eval()


class Naive:
    """The discriminator as the paper words it, from a state dict, in float64 and without any shortcut."""

    def __init__(self, discriminator: BigGANDiscriminator) -> None:
        self.config = discriminator.config
        self.state: dict[str, Tensor] = {name: value.double() for name, value in discriminator.state_dict().items()}

    def weight(self, name: str) -> Tensor:
        weight = self.state[f"{name}.weight"]
        v = F.normalize(self.state[f"{name}.u0"] @ weight.flatten(1), eps=self.config.sn_eps)
        sigma: Tensor = (v @ weight.flatten(1).t()).norm()
        return weight / sigma

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.weight(name)
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=int(weight.shape[-1]) // 2)

    def block(self, name: str, x: Tensor, activated: bool, down: bool) -> Tensor:
        h = self.conv(f"{name}.conv1", x.relu() if activated else x)
        h = self.conv(f"{name}.conv2", h.relu())
        if f"{name}.conv_sc.weight" in self.state:
            x = self.conv(f"{name}.conv_sc", x)
        return F.avg_pool2d(h + x, 2) if down else h + x

    def deep_block(self, name: str, x: Tensor, down: bool) -> Tensor:
        h = x.relu()
        for i in (1, 2, 3):
            h = self.conv(f"{name}.conv{i}", h).relu()
        if down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if f"{name}.conv_sc.weight" in self.state:
            x = torch.cat([x, self.conv(f"{name}.conv_sc", x)], 1)
        return x + self.conv(f"{name}.conv4", h)

    def attention(self, name: str, x: Tensor) -> Tensor:
        theta, phi, g = (self.conv(f"{name}.{part}", x) for part in ("theta", "phi", "g"))
        phi, g = F.max_pool2d(phi, 2), F.max_pool2d(g, 2)
        weights = torch.einsum("nchw,ncij->nhwij", theta, phi).flatten(3).softmax(-1)
        attended = torch.einsum("nhwk,nck->nchw", weights, g.flatten(2))
        added: Tensor = self.state[f"{name}.gamma"] * self.conv(f"{name}.o", attended)
        return x + added

    def __call__(self, x: Tensor, c: Tensor) -> Tensor:
        depth, x = self.config.depth, x.double()
        if depth:
            x = self.conv("input_conv", x)
        i = 0
        while f"blocks.{i}.0.conv1.weight" in self.state:
            down = i < HALVINGS[self.config.resolution]
            for j in range(max(depth, 1)):
                name = f"blocks.{i}.{j}"
                x = self.deep_block(name, x, down and j == 0) if depth else self.block(name, x, i > 0, down)
            if f"blocks.{i}.{depth or 1}.gamma" in self.state:
                x = self.attention(f"blocks.{i}.{depth or 1}", x)
            i += 1
        features = x.relu().sum((2, 3))
        projected: Tensor = (c.double() @ self.weight("embed") * features).sum(1, keepdim=True)
        return projected + features @ self.weight("linear").t() + self.state["linear.bias"]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_are_those_of_the_naive_formulation(config: BigGANDiscriminatorConfig) -> None:
    discriminator = make(config)
    images = torch.randn(
        3, 3, config.resolution, config.resolution, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    c = torch.eye(5)[[0, 4, 0]]
    want = Naive(discriminator)(images, c)
    logits = discriminator(images, c)
    assert logits.shape == (3, config.output_dim)
    torch.testing.assert_close(logits.double(), want, rtol=1e-4, atol=1e-4)
    got, expected = (torch.autograd.grad(value.sum(), images)[0] for value in (logits, want))
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    with torch.no_grad():
        torch.testing.assert_close(discriminator(images, c).double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("resolution", "count"), [(128, 87_982_370), (256, 99_225_890)])
def test_full_size_discriminators_have_the_published_number_of_parameters(resolution: int, count: int) -> None:
    with torch.device("meta"):
        discriminator = BigGANDiscriminator(BigGANDiscriminatorConfig(resolution))
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == count


@pytest.mark.parametrize(
    ("config", "blocks"),
    [(TINY, ["0.0", "1.0", "2.0", "3.0"]), (CONFIGS["deep"], ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"])],
)
def test_blocks_have_the_official_names(config: BigGANDiscriminatorConfig, blocks: list[str]) -> None:
    names = BigGANDiscriminator(config).state_dict()
    assert sorted(name.removesuffix(".conv1.weight")[7:] for name in names if name.endswith(".conv1.weight")) == blocks


@pytest.mark.parametrize("depth", [0, 2])
def test_all_stages_of_32_pixels_are_called_16(depth: int) -> None:
    # the official table says so, though the maps behind the second stage have 8 pixels
    for attention, wanted in [((16,), 3 if depth else 4), ((8,), 0), ((32,), 0)]:
        names = BigGANDiscriminator(replace(TINY, attention=attention, depth=depth)).state_dict()
        assert sum(name.endswith("gamma") for name in names) == wanted


def test_training_moves_the_estimates_and_evaluation_does_not() -> None:
    discriminator = make(replace(TINY, init="N02"))
    before = copy.deepcopy(discriminator.state_dict())
    images, c = torch.zeros(1, 3, 32, 32), torch.eye(5)[:1]
    discriminator(images, c)
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    discriminator.train()(images, c)
    moved = {name for name, value in discriminator.state_dict().items() if not torch.equal(value, before[name])}
    # a vector of one number has nowhere to go, unless to the other side
    assert {name for name in before if name.endswith((".u0", ".sv0"))} - {"linear.u0"} <= moved
    assert all(name.endswith((".u0", ".sv0")) for name in moved)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_configuration_is_recovered_from_names_and_shapes(config: BigGANDiscriminatorConfig) -> None:
    shapes = {name: tuple(value.shape) for name, value in BigGANDiscriminator(config).state_dict().items()}
    recovered = discriminator_config_from_state(shapes)
    assert replace(recovered, attention=()) == replace(config, attention=())
    assert set(recovered.attention) == set(config.attention)


def test_discriminator_is_made_again_from_its_arguments() -> None:
    config = CONFIGS["deep, 64 pixels"]
    assert build(**json.loads(json.dumps(BigGANDiscriminator(config).kwargs))).config == config


@pytest.mark.parametrize("zipped", [True, False])
def test_discriminator_of_an_official_file_is_converted(tmp_path: Path, zipped: bool) -> None:
    network = make(BigGANDiscriminatorConfig(resolution=32, num_classes=5, channels=4, attention=(), sn_eps=1e-8))
    torch.save(network.state_dict(), tmp_path / "D.pth", _use_new_zipfile_serialization=zipped)
    done = convert(tmp_path / "D.pth", tmp_path / "D.safetensors", "D")
    assert done.target == BigGANDiscriminator.target
    loaded, _ = load_network(tmp_path / "D.safetensors")
    images, labels = torch.randn(2, 3, 32, 32), torch.eye(5)[[1, 4]]
    with torch.no_grad():
        # what names and shapes don't tell, such as the epsilon of the spectral norm, is as published
        torch.testing.assert_close(loaded.eval()(images, labels), network.eval()(images, labels), rtol=1e-4, atol=1e-5)


def test_tensors_of_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="not the tensors of a BigGAN discriminator"):
        discriminator_config_from_state({"blocks.0.0.conv1.weight": (5, 3, 3, 3)})


def test_official_arguments_are_translated() -> None:
    given = {"D_ch": 8, "D_attn": "16_32", "D_wide": False, "num_D_SVs": 2, "D_kernel_size": 5, "D_depth": 7}
    config = official_discriminator_config("BigGAN.Discriminator", given)
    wanted = BigGANDiscriminatorConfig(128, channels=8, wide=False, attention=(16, 32), num_svs=2, sn_eps=1e-12)
    assert config == wanted
    assert official_discriminator_config("BigGANdeep.Discriminator", given) == replace(wanted, depth=7)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"G_ch": 3}, "unknown arguments G_ch; known: .*D_ch"),
        ({"resolution": 512}, "resolution 512 is not one of 32, 64, 128, 256"),
        ({"D_param": "WN"}, "D_param 'WN' is not one of SN"),
        ({"D_activation": "selu"}, "D_activation 'selu' is not one of relu"),
        ({"n_classes": 0}, "num_classes 0: a BigGAN needs one class or more"),
    ],
)
def test_what_has_no_network_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        official_discriminator_config("BigGAN.Discriminator", kwargs)
