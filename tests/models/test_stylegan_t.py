from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.layers import initialise
from models.registry import MODELS, build
from models.spec import ImageGenerator, Latents, SamplingSettings
from models.stylegan_t import StyleGANTGenerator, SynthesisLayer
from models.stylegan_t import build as build_stylegan_t
from models.stylegan_t_config import LayerConfig, StyleGANTConfig
from tests.models.plain_stylegan_t import PlainSynthesis

TINY = StyleGANTConfig(resolution=16, z_dim=12, channel_base=256, channel_max=16, num_res_blocks=1, gn_groups=4)
TEXT = replace(TINY, text_dim=10)
TINY_CLIP = {"embed_dim": 10, "text_cfg": {"width": 16, "heads": 2, "layers": 1}, "quick_gelu": True}


def make(config: StyleGANTConfig = TINY, seed: int = 0) -> StyleGANTGenerator:
    """A generator whose start-of-training constants are moved away, so that each of them matters."""
    generator = StyleGANTGenerator(config)
    initialise(generator, seed)
    normal = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith(("noise_strength", "bias", "gamma", "norm.weight", "input.affine.weight")):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=normal))
        generator.mapping.x_avg += 0.5
    return generator.requires_grad_(requires_grad=False)


def draw(generator: ImageGenerator, seeds: list[int]) -> Latents:
    samples = [generator.draw(np.random.default_rng(seed)) for seed in seeds]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def features(count: int, width: int = 10) -> Tensor:
    normal = torch.randn(count, width, generator=torch.Generator().manual_seed(4))
    return F.normalize(normal, dim=1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"img_channels": 1, "num_res_blocks": 2, "gn_groups": 8},
        {"architecture": "orig", "use_noise": False, "conv_clamp": None},
        {"resample_filter": (1, 2, 1), "conv_clamp": 0.5},
        {"resample_filter": (1, 3, 2, 1, 1), "activation": "tanh", "layer_scale_init": 0.5},
        {"base_mult": 2, "kernel_size": 1, "channel_max": 8},
        {"resolution": 8, "text_dim": 5},
    ],
)
def test_synthesis_is_that_of_a_plain_formulation(changes: dict[str, Any]) -> None:
    generator = make(replace(TINY, **changes)).double()
    ws = torch.randn(2, generator.num_ws, generator.config.w_dim, generator=torch.Generator().manual_seed(1)).double()
    got, want = generator.synthesis(ws, "const"), PlainSynthesis(generator).image(ws)
    assert got.shape == (2, generator.config.img_channels, generator.resolution, generator.resolution)
    assert got.dtype == torch.float64
    assert (got - want).abs().max() < 1e-9 * want.abs().max()
    assert (got[0] - got[1]).abs().max() > 1e-2 * want.abs().max()


def test_mapping_puts_the_text_beside_the_mapped_latent_and_truncates_the_latent_alone() -> None:
    generator = make(replace(TEXT, mapping_layers=3, mapping_activation="relu", mapping_lr_multiplier=0.1)).double()
    z, c = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)).double(), features(3).double()
    x = z / z.square().mean(dim=1, keepdim=True).sqrt()
    state = generator.mapping.state_dict()
    for i in range(3):
        x = x @ (state[f"mlp.fc{i}.weight"].T * 0.1 / math.sqrt(12)) + state[f"mlp.fc{i}.bias"] * 0.1
        x = x.relu() * math.sqrt(2) if i < 2 else x
    ws = generator.mapping(z, c)
    assert ws.shape == (3, TEXT.num_ws, 22)
    assert torch.allclose(ws, torch.cat([x, c], dim=1)[:, None].expand_as(ws), atol=1e-7)
    truncated = generator.mapping(z, c, 0.25)
    assert torch.equal(truncated[..., 12:], ws[..., 12:])
    assert torch.allclose(truncated[..., :12], generator.mapping.x_avg * 0.75 + ws[..., :12] * 0.25, atol=1e-12)


def test_mapping_moves_the_average_of_the_latent_only_when_asked() -> None:
    generator = make(replace(TEXT, x_avg_beta=0.75)).train()
    before, z = generator.mapping.x_avg.clone(), torch.ones(2, 12)
    ws = generator.mapping(z, features(2))
    assert torch.equal(generator.mapping.x_avg, before)
    generator.mapping(z, features(2), update_emas=True)
    assert torch.allclose(generator.mapping.x_avg, before * 0.75 + ws[0, 0, :12] * 0.25)


def test_sample_is_independent_of_the_batch() -> None:
    generator = make(TEXT)
    c = features(3)
    together = generator.sample(draw(generator, [5, 6, 7]), c)
    alone = torch.cat([generator.sample(draw(generator, [seed]), c[i : i + 1]) for i, seed in enumerate((5, 6, 7))])
    assert together.shape == (3, 3, 16, 16)
    assert together.dtype == torch.uint8
    assert together.is_contiguous()
    assert (together.int() - alone.int()).abs().max() <= 1
    assert (together[0].int() - together[1].int()).abs().max() > 20


def test_sample_depends_on_the_text_as_well_as_on_the_latent() -> None:
    generator = make(TEXT)
    images = generator.sample(draw(generator, [5, 5]), features(2)).int()
    assert (images[0] - images[1]).abs().max() > 20


def test_sample_takes_prompts_where_the_generator_has_a_text_encoder() -> None:
    generator = make(replace(TEXT, text_encoder=TINY_CLIP))
    latents, prompts = draw(generator, [5, 5]), ["a heart", "two blue squares"]
    images = generator.sample(latents, prompts)
    c = generator.text_features(prompts)
    assert c.shape == (2, 10)
    assert torch.allclose(c.norm(dim=1), torch.ones(2))
    assert torch.equal(images, generator.sample(latents, c))
    assert (images[0].int() - images[1].int()).abs().max() > 5


@pytest.mark.parametrize(
    ("config", "condition", "message"),
    [
        (TEXT, None, r"no texts: .* float \[2, 10\]"),
        (TEXT, ["a", "b"], r"without a text encoder; give their CLIP features, float \[N, 10\]"),
        (TEXT, torch.zeros(2, 9), r"\[2, 9\]; this generator takes text features, float \[2, 10\]"),
        (TEXT, torch.zeros(3, 10), r"\[3, 10\]; this generator takes"),
        (TEXT, torch.zeros(2, dtype=torch.int64), "int64"),
        (TINY, features(2), "unconditional"),
        (TINY, ["a", "b"], "unconditional"),
        (replace(TEXT, text_encoder=TINY_CLIP), ["a"], "1 prompts for 2 latents"),
        (replace(TEXT, text_encoder=TINY_CLIP), "ab", "give a list"),
    ],
)
def test_sample_refuses_texts_that_it_can_not_use(config: StyleGANTConfig, condition: Any, message: str) -> None:
    generator = make(config)
    with pytest.raises(ValueError, match=message):
        generator.sample(draw(generator, [0, 1]), condition)


def test_truncation_has_no_cutoff() -> None:
    with pytest.raises(ValueError, match="leave it None"):
        make().mapping(torch.ones(1, 12), None, 0.5, 3)


def test_psi_zero_gives_the_image_of_the_average_whatever_the_latent() -> None:
    generator = make()
    generator.settings = SamplingSettings(truncation_psi=0.0, noise_mode="const")
    images = generator.sample(draw(generator, [1, 2])).int()
    assert torch.equal(images[0], images[1])
    generator.settings = SamplingSettings(noise_mode="const")
    assert (generator.sample(draw(generator, [1])).int() - images[:1]).abs().max() > 10


def test_draw_gives_float32_latent_and_one_noise_map_a_convolution() -> None:
    generator = make()
    latents = generator.draw(np.random.default_rng(0))
    sizes = [8, 8, 16, 16, 16]
    assert {name: tuple(value.shape) for name, value in latents.items()} == {
        "z": (12,),
        **{f"noise_{i}": (size, size) for i, size in enumerate(sizes)},
    }
    assert {value.dtype for value in latents.values()} == {torch.float32}
    expected = np.random.default_rng(0).standard_normal(12, dtype=np.float32)
    assert latents["z"].numpy() == pytest.approx(expected, abs=0)
    assert list(make(replace(TINY, use_noise=False)).draw(np.random.default_rng(0))) == ["z"]


def test_noise_modes_differ_and_only_random_varies() -> None:
    generator = make()
    ws = torch.ones(2, TINY.num_ws, TINY.w_dim)
    const, none = generator.synthesis(ws, "const"), generator.synthesis(ws, "none")
    random, again = generator.synthesis(ws, "random"), generator.synthesis(ws, "random")
    assert torch.equal(const, generator.synthesis(ws, "const"))
    assert torch.allclose(none[0], none[1])
    for one, other in [(const, none), (const, random), (none, random), (random, again), (random[:1], random[1:])]:
        assert (one - other).abs().max() > 0.01
    maps = [noise.expand(2, -1, -1) for name, noise in generator.named_buffers() if name.endswith("noise_const")]
    assert torch.allclose(generator.synthesis(ws, "random", maps), const, atol=1e-5)
    with pytest.raises(ValueError, match="random, const, none"):
        generator.synthesis(ws, "fixed")


def test_generator_without_noise_takes_every_noise_mode() -> None:
    generator = make(replace(TINY, use_noise=False))
    ws = torch.ones(1, TINY.num_ws, TINY.w_dim)
    images = [generator.synthesis(ws, mode) for mode in ("random", "const", "none")]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
    assert generator.sample(draw(generator, [0])).shape == (1, 3, 16, 16)


def test_float32_image_agrees_with_float64() -> None:
    generator = make(TEXT)
    z, c = torch.randn(2, 12, generator=torch.Generator().manual_seed(1)), features(2)
    double = copy.deepcopy(generator).double()
    single, exact = generator(z, c, noise_mode="const"), double(z.double(), c.double(), noise_mode="const")
    assert exact.dtype == torch.float64
    assert (single - exact).abs().max() < 2e-5 * exact.abs().max()


def test_synthesis_has_second_derivatives() -> None:
    generator = make().requires_grad_()
    ws = torch.randn(2, TINY.num_ws, 12, generator=torch.Generator().manual_seed(2)).requires_grad_()
    image = generator.synthesis(ws, "const")
    (grad,) = torch.autograd.grad((image * torch.ones_like(image)).sum(), ws, create_graph=True)
    grad.square().sum(2).mean(1).sqrt().mean().backward()
    gamma = generator.get_parameter("synthesis.b8.convs1.1.gamma").grad
    assert gamma is not None
    assert gamma.abs().max() > 0


def test_half_precision_block_agrees_with_float32_and_keeps_the_image_in_float32() -> None:
    block = make(TEXT).synthesis.get_submodule("b16")
    normal = torch.Generator().manual_seed(3)
    shapes = [(2, 16, 8, 8), (2, 3, 8, 8), (2, TEXT.convs_per_block + 1, 22)]
    x, image, ws = (torch.randn(shape, generator=normal) for shape in shapes)
    half, exact = (block(x, image, ws, iter([None] * 3), dtype) for dtype in (torch.float16, torch.float32))
    assert [value.dtype for value in half] == [torch.float16, torch.float32]
    for got, want in zip(half, exact, strict=True):
        assert (got.float() - want).abs().max() < 1e-2 * want.abs().max()
    assert not torch.equal(half[1], exact[1])


def test_sample_runs_on_the_meta_device() -> None:
    generator = build("stylegan-t-lite-64", device="meta")
    latents = {name: value.to("meta") for name, value in draw(generator, [0, 1]).items()}
    images = generator.sample(latents, torch.zeros(2, 768, device="meta"))
    assert images.is_meta
    assert images.shape == (2, 3, 64, 64)


# of the generator without CLIP's text encoder: 975.6 M at 64 and 1020.5 M at 512 (the paper: 1.02 billion),
# lite 74.6 M at 64 and 85.7 M at 256
PARAMETERS = {
    "stylegan-t-full-64": (975_556_011, 29),
    "stylegan-t-full-128": (1_005_955_509, 36),
    "stylegan-t-full-256": (1_016_436_671, 43),
    "stylegan-t-full-512": (1_020_497_609, 50),
    "stylegan-t-lite-64": (74_556_835, 21),
    "stylegan-t-lite-128": (82_577_579, 26),
    "stylegan-t-lite-256": (85_703_219, 31),
    "stylegan-t-uncond-32": (35_019_163, 16),
}


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_parameters_are_as_many_as_published(name: str) -> None:
    generator = cast("StyleGANTGenerator", build(name, device="meta"))
    assert (sum(p.numel() for p in generator.parameters()), generator.num_ws) == PARAMETERS[name]


def test_registered_generators_take_the_texts_and_no_classes_that_they_say() -> None:
    names = [name for name, spec in MODELS.items() if spec.family == "StyleGAN-T"]
    generators = {name: cast("StyleGANTGenerator", build(name, num_classes=7, device="meta")) for name in names}
    assert {g.text_dim for name, g in generators.items() if "uncond" not in name} == {768}
    assert {g.text_dim for name, g in generators.items() if "uncond" in name} == {0}
    assert {g.num_classes for g in generators.values()} == {0}


def test_build_makes_the_generator_again_from_its_kwargs() -> None:
    generator = make(replace(TEXT, text_encoder=TINY_CLIP, resample_filter=(1, 2, 1)))
    again = build_stylegan_t(**json.loads(json.dumps(generator.kwargs)), num_classes=0)
    again.load_state_dict(generator.state_dict(), strict=True)
    z = torch.ones(1, 12)
    assert torch.equal(again(z, ["a"], noise_mode="const"), generator(z, ["a"], noise_mode="const"))


def test_layer_of_float16_normalises_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SynthesisLayer(LayerConfig(8, 8, 4, resolution=8, gn_groups=2, residual=True))
    initialise(layer, 0)
    seen: list[torch.dtype] = []
    plain = F.group_norm

    def watched(x: Tensor, *args: Any) -> Tensor:
        seen.append(x.dtype)
        return plain(x, *args)

    monkeypatch.setattr(F, "group_norm", watched)
    x = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    y = layer(x.half(), torch.ones(2, 4), None)
    assert (y.dtype, seen) == (torch.float16, [torch.float32])
    assert (y.float() - layer(x, torch.ones(2, 4), None)).abs().max() < 1e-2


def test_residual_layer_keeps_the_digits_of_features_far_from_zero() -> None:
    layer = SynthesisLayer(LayerConfig(8, 8, 4, resolution=8, gn_groups=2, residual=True))
    initialise(layer, 0)
    x = 20 + torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0)) / 10
    for memory_format in (torch.channels_last, torch.contiguous_format):
        x = x.to(memory_format=memory_format)
        single = layer(x, torch.ones(2, 4), None)
        exact = copy.deepcopy(layer).double()(x.double(), torch.ones(2, 4).double(), None)
        assert (single - exact).abs().max() < 2e-5 * exact.abs().max()


def test_resample_filter_is_that_of_the_layers_that_resample() -> None:
    block = make(replace(TINY, resample_filter=(1, 2, 1))).synthesis.get_submodule("b16")
    sizes = {name: tuple(value.shape) for name, value in block.named_buffers() if name.endswith("resample_filter")}
    plain = {f"convs1.{i}.resample_filter": (4, 4) for i in range(2)}  # as official ones: never used, never passed on
    assert sizes == {"resample_filter": (3, 3), "conv0.resample_filter": (3, 3), **plain}


def test_initialise_draws_the_start_of_training() -> None:
    generator = StyleGANTGenerator(TINY)
    initialise(generator, 0)
    state = generator.state_dict()
    for name, value in state.items():
        if name.endswith(("affine.proj.bias", "norm.weight")):
            assert torch.equal(value, torch.ones_like(value)), name
        elif name.endswith("gamma"):
            assert torch.equal(value, torch.full_like(value, 1e-5)), name
        elif ".input." not in name and name.endswith(("bias", "noise_strength", "x_avg")):
            assert not value.any(), name
        elif name.endswith("torgb.weight"):
            assert value.std().item() == pytest.approx(0.1, rel=0.35), name
        elif name.startswith("mapping.mlp"):
            assert value.std().item() == pytest.approx(100, rel=0.2), name
        elif name.endswith((".weight", "noise_const")) and ".input.affine" not in name:
            assert value.std().item() == pytest.approx(1, rel=0.35), name


@pytest.mark.parametrize("resolution", [32, 128])
def test_initialised_generator_paints_neither_grey_nor_clipped_images(resolution: int) -> None:
    generator = StyleGANTGenerator(StyleGANTConfig(resolution, channel_base=4096, channel_max=64))
    initialise(generator, 0)
    images = generator.sample(draw(generator, [0, 1])).float()
    assert images.std() > 20
    assert ((images == 0) | (images == 255)).float().mean() < 0.6
    assert (images[0] - images[1]).abs().mean() > 5
