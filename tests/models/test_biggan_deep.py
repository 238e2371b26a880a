from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.nn import functional as F

from models.biggan_deep import BigGANDeepGenerator, FixedSpectralWeight, TruncatedNorm, build
from models.biggan_deep_config import OFFICIAL_CLASS, BigGANDeepConfig, Layer, config_from_state, official_config
from models.layers import initialise
from models.registry import build as build_registered
from models.spec import Latents, SamplingSettings

LAYERS: tuple[Layer, ...] = ((False, 16, 16), (True, 16, 8), (True, 8, 4), (False, 4, 4), (True, 4, 2), (False, 2, 1))
TINY = BigGANDeepConfig(32, num_classes=5, z_dim=7, channels=8, layers=LAYERS, attention_before=3, num_statistics=11)
CONFIGS = {
    "attention amidst": TINY,
    "attention first": replace(TINY, attention_before=0),
    "no attention": replace(TINY, attention_before=6, eps=1e-2),
}
PARAMETERS = {
    "biggan-deep-imagenet-128": 50_388_609,
    "biggan-deep-imagenet-256": 55_880_833,
    "biggan-deep-imagenet-512": 56_163_905,
}


def make(config: BigGANDeepConfig) -> BigGANDeepGenerator:
    """A generator none of whose tensors is at a value without effect."""
    generator = BigGANDeepGenerator(config)
    initialise(generator, 0)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in generator.state_dict().items():
            if name.endswith("running_vars"):
                tensor.uniform_(0.5, 2, generator=rng)
            elif name.endswith(("running_means", "gamma", "bias")):
                tensor.normal_(0, 0.5, generator=rng)
            elif name.endswith("weight_u"):
                tensor.add_(0.5 * torch.randn(len(tensor), generator=rng) / math.sqrt(len(tensor)))
    return generator


class Naive:
    """The generator as the paper words it, from a state dict, in float64 and without any shortcut."""

    def __init__(self, generator: BigGANDeepGenerator, row: int) -> None:
        self.config, self.row = generator.config, row
        self.state: Latents = {name: value.double() for name, value in generator.state_dict().items()}

    def weight(self, name: str) -> Tensor:
        weight, u, v = (self.state[f"{name}.weight_{part}"] for part in ("orig", "u", "v"))
        sigma: Tensor = u @ weight.flatten(1) @ v
        return weight / sigma

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.weight(name)
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=int(weight.shape[-1]) // 2)

    def norm(self, name: str, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        mean, var = (self.state[f"{name}.running_{part}"][self.row][:, None, None] for part in ("means", "vars"))
        normalised: Tensor = (x - mean) / (var + self.config.eps).sqrt()
        return normalised * gain[..., None, None] + bias[..., None, None]

    def block(self, name: str, x: Tensor, y: Tensor, up: bool) -> Tensor:
        h = x
        for i in range(4):
            bn = f"{name}.bn_{i}"
            gain, bias = 1 + y @ self.weight(f"{bn}.scale").t(), y @ self.weight(f"{bn}.offset").t()
            h = self.norm(bn, h, gain, bias).relu()
            h = F.interpolate(h, scale_factor=2.0) if up and i == 1 else h
            h = self.conv(f"{name}.conv_{i}", h)
        x = F.interpolate(x, scale_factor=2.0) if up else x
        return h + x[:, : h.shape[1]]

    def attention(self, name: str, x: Tensor) -> Tensor:
        theta, phi, g = (self.conv(f"{name}.snconv1x1_{part}", x) for part in ("theta", "phi", "g"))
        phi, g = F.max_pool2d(phi, 2), F.max_pool2d(g, 2)
        weights = torch.einsum("nchw,ncij->nhwij", theta, phi).flatten(3).softmax(-1)
        attended = torch.einsum("nhwk,nck->nchw", weights, g.flatten(2))
        added: Tensor = self.state[f"{name}.gamma"] * self.conv(f"{name}.snconv1x1_o_conv", attended)
        return x + added

    def __call__(self, z: Tensor, c: Tensor) -> Tensor:
        y = torch.cat([z.double(), c.double() @ self.state["embeddings.weight"].t()], 1)
        h = y @ self.weight("generator.gen_z").t() + self.state["generator.gen_z.bias"]
        h = h.view(len(z), 4, 4, 16 * self.config.channels).permute(0, 3, 1, 2)
        for i, (up, _, _) in enumerate(self.config.layers):
            at = self.config.attention_before
            if i == at:
                h = self.attention(f"generator.layers.{i}", h)
            h = self.block(f"generator.layers.{i + (i >= at)}", h, y, up)
        gain, bias = self.state["generator.bn.weight"], self.state["generator.bn.bias"]
        h = self.norm("generator.bn", h, gain, bias).relu()
        return self.conv("generator.conv_to_rgb", h)[:, :3].tanh()


def inputs(config: BigGANDeepConfig) -> tuple[Tensor, Tensor]:
    z = torch.randn(3, config.z_dim, generator=torch.Generator().manual_seed(1))
    return z, F.one_hot(torch.tensor([0, 4, 1]), config.num_classes).float()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_images_are_those_of_the_naive_formulation(config: BigGANDeepConfig) -> None:
    generator = make(config)
    z, c = inputs(config)
    want = Naive(generator, row=5)(z, c)
    assert want.std() > 0.05
    with_graph = generator(z, c, 0.5)
    with torch.no_grad():
        kept = generator(z, c, 0.5)
    torch.testing.assert_close(with_graph.double(), want, atol=1e-4, rtol=0)
    torch.testing.assert_close(kept.double(), want, atol=1e-4, rtol=0)
    torch.testing.assert_close(generator.double()(z.double(), c.double(), 0.5), want, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_generators_have_the_published_number_of_parameters(name: str) -> None:
    generator = cast("BigGANDeepGenerator", build_registered(name, device="meta"))
    assert sum(parameter.numel() for parameter in generator.parameters()) == PARAMETERS[name]
    shapes = {key: tuple(value.shape) for key, value in generator.state_dict().items()}
    assert config_from_state(shapes) == generator.config


def used_row(truncation: float, num_statistics: int = 51) -> float:
    """The (fractional) row of statistics that a truncation uses, told from rows that hold their own number."""
    norm = TruncatedNorm(1, replace(TINY, num_statistics=num_statistics, eps=0.0)).double()
    norm.running_means.copy_(torch.arange(num_statistics, dtype=torch.float64)[:, None])
    return -float(norm(torch.zeros(1, 1, 1, 1, dtype=torch.float64), truncation).detach())


def test_each_truncation_has_the_row_of_statistics_of_the_package() -> None:
    rows = {t: used_row(t / 100) for t in range(2, 101, 2)}
    moved = {14: 8, 28: 15, 56: 29, 58: 28, 94: 46}
    assert rows == pytest.approx({t: moved.get(t, t // 2) for t in rows}, abs=1e-9)
    assert used_row(0.435) == pytest.approx(21.25)  # 21.75 with the weights the right way round
    assert used_row(0.75, num_statistics=5) == 3


def test_statistics_follow_the_settings_unless_a_truncation_is_given() -> None:
    generator = make(TINY)
    z, c = inputs(TINY)
    default = generator(z, c)
    assert torch.equal(default, generator(z, c, 1.0))
    generator.settings = SamplingSettings(truncation_psi=0.5)
    half = generator(z, c)
    assert torch.equal(half, generator.synthesis(generator.mapping(z, c), truncation=0.5))
    assert not torch.equal(half, default)
    for truncation in (0.0, 1.02):
        with pytest.raises(ValueError, match="BigGAN-deep takes more than 0, up to 1"):
            generator(z, c, truncation)


def test_training_moves_the_singular_vectors_as_the_hook_of_torch() -> None:
    layer = FixedSpectralWeight((6, 9), 1e-4, bias=False)
    initialise(layer, 0)
    with torch.no_grad():
        layer.weight_orig.mul_(torch.arange(1.0, 7)[:, None])
    for _ in range(200):
        layer.train().make()
    torch.testing.assert_close(torch.linalg.svdvals(layer.make())[0], torch.tensor(1.0))
    before = layer.weight_u.clone()
    layer.eval().make()
    assert torch.equal(layer.weight_u, before)


def draw(generator: BigGANDeepGenerator, seeds: list[int]) -> Latents:
    drawn = [generator.draw(np.random.Generator(np.random.Philox(seed))) for seed in seeds]
    return {"z": torch.stack([latents["z"] for latents in drawn])}


def test_latents_are_scaled_truncated_normals() -> None:
    generator = BigGANDeepGenerator(replace(TINY, z_dim=4000, channels=1))
    generator.settings = SamplingSettings(truncation_psi=0.4)
    z = draw(generator, [0])["z"][0].numpy()
    assert z.dtype == np.float32
    assert 0.79 < np.abs(z).max() <= 0.8
    assert scipy.stats.kstest(z / 0.4, scipy.stats.truncnorm(-2, 2).cdf).pvalue > 0.01


def test_sample_cuts_grey_levels_of_256_and_does_not_depend_on_the_batch() -> None:
    generator = make(TINY)
    with torch.no_grad():
        generator.get_parameter("generator.conv_to_rgb.bias").add_(2)  # some of the pixels at the top
    latents, labels = draw(generator, [0, 1, 2]), torch.tensor([1, 4, 1])
    images = generator.sample(latents, labels)
    with torch.no_grad():
        exact = generator(latents["z"], torch.eye(5)[labels]).numpy()
    assert np.array_equal(images.numpy(), np.uint8(np.clip((exact + 1) / 2 * 256, 0, 255)))
    assert images.max() == 255
    alone = generator.sample({"z": latents["z"][1:2]}, labels[1:2])
    assert (alone.int() - images[1:2].int()).abs().max() <= 1
    with pytest.raises(ValueError, match="no labels"):
        generator.sample(latents)


def test_images_come_from_latents_and_classes_joined() -> None:
    generator = make(TINY)
    z, c = inputs(TINY)
    ws = generator.mapping(z, c, truncation_psi=0.5)
    assert ws.shape == (3, generator.num_ws, 14)
    assert torch.equal(ws[:, 0, :7], z)
    torch.testing.assert_close(ws[:, 0, 7:], generator.embeddings.weight.t()[[0, 4, 1]])


def test_untrained_generator_paints_images() -> None:
    generator = BigGANDeepGenerator(TINY)
    initialise(generator, 0)
    images = generator.sample(draw(generator, [0, 1]), torch.tensor([0, 1])).float()
    assert images.std(dim=(1, 2, 3)).min() > 5


def test_configuration_survives_json_and_is_recovered_from_shapes() -> None:
    generator = BigGANDeepGenerator(replace(TINY, layers=(), resolution=128, attention_before=4, num_statistics=21))
    assert build(**json.loads(json.dumps(generator.kwargs))).config == generator.config
    shapes = {name: tuple(value.shape) for name, value in generator.state_dict().items()}
    assert config_from_state(shapes) == generator.config
    with pytest.raises(ValueError, match="not the tensors of a BigGAN-deep generator"):
        config_from_state({"generator.bn.running_means": (51, 8)})


def test_official_arguments_are_translated() -> None:
    assert official_config(OFFICIAL_CLASS, {}) == BigGANDeepConfig(128)
    given = {"layers": [list(layer) for layer in LAYERS], "n_stats": 11, "attention_layer_position": 3}
    sizes = {"z_dim": 7, "class_embed_dim": 7, "channel_width": 8, "num_classes": 5, "output_dim": 32}
    assert official_config(OFFICIAL_CLASS, {**given, **sizes}) == TINY


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hidden_dim": 3}, "unknown arguments hidden_dim; known: .*n_stats"),
        ({"layers": [[True, 16, 4], [False, 4, 1]]}, "a block keeps or halves its width"),
        ({"layers": [[True, 8, 4]]}, "widths start at 16, end at 1"),
        ({"num_classes": 0}, "num_classes 0: a BigGAN needs one class or more"),
    ],
)
def test_what_has_no_network_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        official_config(OFFICIAL_CLASS, kwargs)


def test_resolutions_without_published_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="resolution 64 is not one of 128, 256, 512"):
        BigGANDeepConfig(64)
    with pytest.raises(ValueError, match="resolution 64: these layers make images of 32x32"):
        replace(TINY, resolution=64)
