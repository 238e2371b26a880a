from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.layers import initialise, to_uint8
from models.mapping import mix_styles
from models.registry import MODELS, build
from models.spec import ImageGenerator, Latents, SamplingSettings
from models.stylegan1 import StyleGAN1Generator
from models.stylegan1_config import GENERATOR_CLASS, StyleGAN1Config, official_config
from tests.models import naive_stylegan1

SMALL: dict[str, Any] = {
    "resolution": 16, "z_space_dim": 12, "w_space_dim": 12, "mapping_fmaps": 10, "mapping_layers": 2, "fmaps_base": 128,
    "fmaps_max": 12,
}  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    {},
    {"resolution": 8, "image_channels": 1, "final_tanh": True},
    {"resolution": 128, "fmaps_base": 512, "fmaps_max": 6, "w_space_dim": 5},  # "auto" fuses the last doubling only
    {"fused_scale": True, "mapping_layers": 1},
    {"fused_scale": False, "use_wscale": False, "mapping_lr_mul": 0.1},
    {"const_input": False, "w_space_dim": 7},
    {"noise_type": "channel", "repeat_w": False, "label_size": 3},
]


def make(seed: int = 0, **kwargs: Any) -> StyleGAN1Generator:
    """A generator in which no number is zero, so that noise and biases matter."""
    generator = StyleGAN1Generator(official_config(GENERATOR_CLASS, {**SMALL, **kwargs}))
    generator.load_state_dict(naive_stylegan1.randomised(list(generator.state_dict().items()), seed))
    return generator


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw(generator: ImageGenerator, seeds: list[int]) -> Latents:
    samples = [generator.draw(np.random.default_rng(seed)) for seed in seeds]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_generator_agrees_with_its_formulas(options: dict[str, Any]) -> None:
    generator, kwargs = make(**options).double(), {**SMALL, **options}
    state = dict(generator.state_dict())
    z = normal(2, 12).double()
    label = torch.eye(3).double()[:2] if "label_size" in options else None
    ws = generator.mapping(z, label)
    assert relative_error(ws, naive_stylegan1.styles(state, kwargs, z, label)) < 1e-12
    for lod in (0.0, 0.25, 1.0, 1.0 if generator.resolution == 8 else 1.75):
        want = naive_stylegan1.images(state, kwargs, ws, lod)
        got = generator.synthesis(ws, "const", lod=lod)
        assert got.shape == (2, kwargs.get("image_channels", 3), generator.resolution, generator.resolution)
        assert relative_error(got, want) < 1e-9


def test_gradients_agree_with_the_formulas() -> None:
    generator, ws = make(fused_scale=True).double(), normal(2, 6, 12).double().requires_grad_()
    state = {name: value.detach().clone().requires_grad_() for name, value in generator.state_dict().items()}
    weights = normal(2, 3, 16, 16).double()
    (generator.synthesis(ws, "const") * weights).sum().backward()
    (naive_stylegan1.images(state, {**SMALL, "fused_scale": True}, ws.detach(), 0) * weights).sum().backward()
    for name, parameter in generator.synthesis.named_parameters():
        want = state[f"synthesis.{name}"].grad
        if want is not None and "output" not in name:
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, want, rtol=1e-7, atol=1e-9 * float(want.abs().max())), name


def test_without_autograd_the_image_is_the_same() -> None:
    generator, ws = make(), normal(3, 6, 12)
    graph = generator.synthesis(ws, "const").detach()
    with torch.no_grad():
        assert relative_error(generator.synthesis(ws, "const"), graph) < 1e-5
    with torch.inference_mode():
        assert relative_error(generator.synthesis(ws, "const"), graph) < 1e-5


def test_synthesis_leaves_parameters_and_inputs_as_they_are() -> None:
    generator, ws = make(), normal(1, 6, 12)
    maps = [normal(1, 1, size, size) for size in (4, 4, 8, 8, 16, 16)]
    before = copy.deepcopy(generator.state_dict()), ws.clone(), [noise.clone() for noise in maps]
    with torch.no_grad():
        generator.synthesis(ws, "random", maps)
    assert all(torch.equal(value, before[0][name]) for name, value in generator.state_dict().items())
    assert torch.equal(ws, before[1])
    assert all(map(torch.equal, maps, before[2]))


def test_float64_copy_stays_float64() -> None:
    generator, z = make(), normal(2, 12)
    single, double = generator(z, noise_mode="const"), copy.deepcopy(generator).double()
    exact = double(z.double(), noise_mode="const")
    assert exact.dtype == torch.float64
    assert relative_error(single, exact) < 1e-4
    double.truncation.w_avg.add_(1.0)
    assert torch.equal(double.mapping.w_avg, double.truncation.w_avg)
    assert not torch.equal(double.mapping.w_avg.float(), generator.mapping.w_avg)


def test_synthesis_has_second_derivatives() -> None:
    generator, ws = make(), normal(2, 6, 12).requires_grad_()
    (gradient,) = torch.autograd.grad(generator.synthesis(ws, "const").sum(), ws, create_graph=True)
    gradient.square().sum().backward()
    const = generator.get_parameter("synthesis.layer0.const").grad
    assert const is not None
    assert const.abs().max() > 0


def test_sample_is_independent_of_the_batch() -> None:
    generator = make(fmaps_base=2048, fmaps_max=128)  # the mean of squares takes rows together by the batch
    generator.synthesis.get_parameter("output2.weight").data.mul_(0.2)
    together = generator.sample(draw(generator, [5, 6, 7]))
    alone = torch.cat([generator.sample(draw(generator, [seed])) for seed in (5, 6, 7)])
    assert together.shape == (3, 3, 16, 16)
    assert together.dtype == torch.uint8
    assert together.is_contiguous()
    assert (together.int() - alone.int()).abs().max() <= 1
    assert (together[0].int() - together[1].int()).abs().max() > 20


def test_sample_of_a_class_depends_on_the_label() -> None:
    generator = make(label_size=4)
    latents = draw(generator, [5, 5])
    images = generator.sample(latents, torch.tensor([1, 3]))
    alone = generator.sample(draw(generator, [5]), torch.tensor([3]))
    assert (images[1].int() - alone[0].int()).abs().max() <= 1
    assert (images[0].int() - images[1].int()).abs().max() > 20
    for labels, message in [(None, "no labels"), (torch.tensor([1, 4]), "allowed are 0 to 3")]:
        with pytest.raises(ValueError, match=message):
            generator.sample(latents, labels)
    with pytest.raises(ValueError, match="conditional on 4 classes"):
        generator.mapping(latents["z"])


def test_draw_gives_float32_latent_and_the_noise_of_each_layer() -> None:
    latents = make().draw(np.random.default_rng(0))
    assert {name: tuple(value.shape) for name, value in latents.items()} == {
        "z": (12,), "noise_0": (1, 4, 4), "noise_1": (1, 4, 4), "noise_2": (1, 8, 8), "noise_3": (1, 8, 8),
        "noise_4": (1, 16, 16), "noise_5": (1, 16, 16),
    }  # fmt: skip
    assert {value.dtype for value in latents.values()} == {torch.float32}
    channels = make(noise_type="channel").draw(np.random.default_rng(0))
    assert [tuple(channels[f"noise_{i}"].shape) for i in (0, 5)] == [(12, 1, 1), (8, 1, 1)]
    quiet = make()
    quiet.settings = SamplingSettings(noise_mode="const")
    assert list(quiet.draw(np.random.default_rng(0))) == ["z"]


def test_noise_is_weighted_by_channels_or_by_pixels_as_official_state_dicts_have_it() -> None:
    shapes = {"spatial": [(12,), (1, 1, 8, 8)], "channel": [(8, 8), (1, 12, 1, 1)]}
    for noise_type, expected in shapes.items():
        state = make(noise_type=noise_type.capitalize()).state_dict()  # official code takes either case
        prefix = "synthesis.layer2.apply_noise."
        assert [tuple(state[prefix + name].shape) for name in ("weight", "noise")] == expected


@pytest.mark.parametrize("noise_type", ["spatial", "channel"])
def test_noise_modes_differ_and_only_random_varies(noise_type: str) -> None:
    generator, ws = make(noise_type=noise_type), torch.ones(2, 6, 12)
    with torch.no_grad():
        const, none = generator.synthesis(ws, "const"), generator.synthesis(ws, "none")
        random, again = generator.synthesis(ws, "random"), generator.synthesis(ws, "random")
        maps = [generator.get_buffer(f"synthesis.layer{i}.apply_noise.noise").repeat(2, 1, 1, 1) for i in range(6)]
        given = generator.synthesis(ws, "random", maps)
    assert relative_error(given, const) < 1e-5
    for one, other in [(const, none), (const, random), (none, random), (random, again), (random[:1], random[1:])]:
        assert (one - other).abs().max() > 0.05
    with pytest.raises(ValueError, match="random, const, none"):
        generator.synthesis(ws, "fixed")


@pytest.mark.parametrize("repeat_w", [True, False])
def test_truncation_pulls_the_first_vectors_towards_the_average(repeat_w: bool) -> None:
    generator, z = make(repeat_w=repeat_w), normal(3, 12)
    average = generator.truncation.w_avg if repeat_w else generator.truncation.w_avg.view(6, 12)
    full, half = generator.mapping(z), generator.mapping(z, None, 0.5)
    assert torch.allclose(half, (full + average) / 2, atol=1e-5)
    cut = generator.mapping(z, None, 0.5, 2)
    assert torch.allclose(cut, torch.cat([half[:, :2], full[:, 2:]], dim=1), atol=1e-6)
    assert torch.allclose(generator.mapping(z, None, 0.0), average.expand(3, 6, 12), atol=1e-6)
    assert (full[:, 0] - full[:, 1]).abs().max() > 0.1 or repeat_w


def test_settings_truncate_samples() -> None:
    generator = make()
    generator.settings = SamplingSettings(truncation_psi=0.0, noise_mode="const")
    images = generator.sample(draw(generator, [1, 2]))
    average = generator.synthesis(generator.mapping.w_avg.expand(1, 6, -1), "const")
    assert torch.equal(images[0], images[1])
    assert (images[0].int() - to_uint8(average)[0].int()).abs().max() <= 1


def test_training_moves_the_average_of_style_vectors() -> None:
    generator, z = make(), normal(5, 12)
    before = generator.mapping.w_avg.clone()
    ws = generator.mapping(z, update_emas=True)
    assert torch.allclose(generator.truncation.w_avg, 0.995 * before + 0.005 * ws[:, 0].mean(0), atol=1e-5)


def test_mix_styles_takes_the_late_layers_of_the_other_image() -> None:
    ws, others = normal(2, 6, 12), normal(2, 6, 12, seed=2)
    mixed = mix_styles(ws, others, 2)
    assert torch.equal(mixed[:, :2], ws[:, :2])
    assert torch.equal(mixed[:, 2:], others[:, 2:])
    assert torch.equal(mix_styles(ws, others, 0), others)
    assert torch.equal(mix_styles(ws, others, 6), ws)
    for other, layer in [(others, 7), (others, -1), (others[:, :5], 2)]:
        with pytest.raises(ValueError, match="mix_styles: vectors"):
            mix_styles(ws, other, layer)


def test_stored_lod_is_the_default() -> None:
    generator, ws = make(), normal(1, 6, 12)
    grown = generator.synthesis(ws, "const", lod=1.5)
    generator.synthesis.lod.fill_(1.5)
    assert torch.equal(generator.synthesis(ws, "const"), grown)
    for lod in (-0.1, 2.1):
        with pytest.raises(ValueError, match=r"allowed are 0 .* to 2 \(4x4 pixels\)"):
            generator.synthesis(ws, "const", lod=lod)


def test_registered_models_are_the_published_ones() -> None:
    specs = {name: spec for name, spec in MODELS.items() if spec.family == "StyleGAN"}
    published = {name for name, spec in specs.items() if spec.checkpoint}
    assert published == {
        "stylegan-ffhq-1024", "stylegan-celebahq-1024", "stylegan-lsun-bedroom-256", "stylegan-lsun-car-512",
        "stylegan-lsun-cat-256",
    }  # fmt: skip
    assert {spec.resolution for name, spec in specs.items() if name not in published} == {32, 64, 256}
    assert all("CC BY-NC" in spec.checkpoint.licence for spec in specs.values() if spec.checkpoint)


@pytest.mark.parametrize(
    # the official example prints the first; the paper has 26.2 M
    ("name", "count"),
    [("stylegan-ffhq-1024", 26_219_627), ("stylegan-lsun-car-512", 26_179_768), ("stylegan-f-32", 22_841_356)],
)
def test_full_size_generators_have_the_published_number_of_parameters(name: str, count: int) -> None:
    generator = build(name, device="meta")
    assert isinstance(generator, StyleGAN1Generator)
    assert sum(parameter.numel() for parameter in generator.parameters()) == count
    assert [generator.config.channels(2**i) for i in range(2, 11)] == [512, 512, 512, 512, 256, 128, 64, 32, 16]


def test_sample_runs_on_the_meta_device_to_count_its_work() -> None:
    generator = build("stylegan-f-32", device="meta")
    latents = {name: value.to("meta") for name, value in draw(generator, [0, 1]).items()}
    with FlopCounterMode(display=False) as counter:
        assert generator.sample(latents).shape == (2, 3, 32, 32)
    # 3x3 convolutions of 512 channels at 4 to 32 pixels; those that double 4 to 16 pixels work on the pixels they get
    convolutions = 2 * 9 * 512**2 * (4**2 + 8**2 + 16**2 + 32**2 + 4**2 + 8**2 + 16**2)
    assert 1.0 < counter.get_total_flops() / (2 * convolutions) < 1.1


def test_generator_is_made_again_from_its_kwargs() -> None:
    config = official_config(GENERATOR_CLASS, {**SMALL, "label_size": 3, "repeat_w": False, "use_wscale": False})
    generator = StyleGAN1Generator(config)
    assert StyleGAN1Config(**generator.kwargs) == config
    assert (generator.conditioning, generator.num_classes, generator.num_ws) == ("class", 3, 6)
    assert generator.target == "models.stylegan1:build"


def test_initialised_generator_paints_neither_grey_nor_clipped_images() -> None:
    for options in ({}, {"const_input": False}, {"use_wscale": False}, {"noise_type": "channel"}):
        config = official_config(GENERATOR_CLASS, {"resolution": 32, "fmaps_base": 2048, "fmaps_max": 64, **options})
        generator = StyleGAN1Generator(config)
        initialise(generator, 0)
        images = generator.sample(draw(generator, [0, 1])).float()
        assert images.std() > 20, options
        assert ((images == 0) | (images == 255)).float().mean() < 0.6, options
        again = StyleGAN1Generator(config)
        initialise(again, 0)
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in generator.state_dict().items())


@pytest.mark.parametrize(
    ("field", "value"), [("resolution", 48), ("resolution", 4), ("fused_scale", "yes"), ("noise_type", "white")]
)
def test_config_refuses_what_has_no_network(field: str, value: int | str) -> None:
    with pytest.raises(ValueError, match=str(value)):
        replace(StyleGAN1Config(16), **{field: value})  # type: ignore[arg-type]


def test_official_config_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"unknown arguments use_pixel_norm; known: .*fused_scale"):
        official_config(GENERATOR_CLASS, {"resolution": 16, "use_pixel_norm": True})
    with pytest.raises(ValueError, match="is no StyleGAN generator"):
        official_config("models.stylegan2_generator.StyleGAN2Generator", {"resolution": 16})
