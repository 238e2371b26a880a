from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoints import weights_sha256
from models.layers import initialise, to_uint8
from models.registry import build
from models.spec import ImageGenerator, Latents, SamplingSettings
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2_config import Architecture, StyleGAN2Config, official_config

TINY = StyleGAN2Config(resolution=16, z_dim=12, w_dim=12, mapping_layers=2, channel_base=256, channel_max=16)
PINNED_SEED_0 = (
    "cd67e2b1c189a66fa1563d02900483f7f7b72531f513dd8d4e909fbec3fa177f"  # of a conditional resnet of TINY's size
)


def make(config: StyleGAN2Config = TINY, seed: int = 0) -> StyleGAN2Generator:
    """A generator whose start-of-training zeros are moved away from zero, so that noise and biases matter."""
    generator = StyleGAN2Generator(config)
    initialise(generator, seed)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith(("noise_strength", ".bias")):
                parameter.add_(0.3)
        generator.mapping.w_avg += 0.5
    return generator


def draw(generator: ImageGenerator, seeds: list[int]) -> Latents:
    samples = [generator.draw(np.random.default_rng(seed)) for seed in seeds]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def test_sample_is_independent_of_the_batch() -> None:
    generator = make()
    together = generator.sample(draw(generator, [5, 6, 7]))
    alone = torch.cat([generator.sample(draw(generator, [seed])) for seed in (5, 6, 7)])
    assert together.shape == (3, 3, 16, 16)
    assert together.dtype == torch.uint8
    assert together.is_contiguous()
    assert (together.int() - alone.int()).abs().max() <= 1
    assert (together[0].int() - together[1].int()).abs().max() > 20


def test_sample_of_a_class_depends_on_the_label_and_not_on_the_batch() -> None:
    generator = make(replace(TINY, num_classes=4))
    latents = draw(generator, [5, 5])
    images = generator.sample(latents, torch.tensor([1, 3]))
    alone = generator.sample(draw(generator, [5]), torch.tensor([3]))
    assert (images[1].int() - alone[0].int()).abs().max() <= 1
    assert (images[0].int() - images[1].int()).abs().max() > 20


@pytest.mark.parametrize(
    ("num_classes", "labels", "message"),
    [
        (4, None, "no labels"),
        (0, torch.tensor([1]), "0 classes"),
        (4, torch.tensor([4]), "allowed are 0 to 3"),
        (4, torch.tensor([-1]), "allowed are 0 to 3"),
    ],
)
def test_sample_refuses_wrong_labels(num_classes: int, labels: Tensor | None, message: str) -> None:
    generator = make(replace(TINY, num_classes=num_classes))
    with pytest.raises(ValueError, match=message):
        generator.sample(draw(generator, [0]), labels)


def test_draw_gives_float32_latent_and_one_noise_map_a_layer() -> None:
    generator = make()
    latents = generator.draw(np.random.default_rng(0))
    assert {name: tuple(value.shape) for name, value in latents.items()} == {
        "z": (12,),
        "noise_0": (4, 4),
        "noise_1": (8, 8),
        "noise_2": (8, 8),
        "noise_3": (16, 16),
        "noise_4": (16, 16),
    }
    assert {value.dtype for value in latents.values()} == {torch.float32}
    expected = np.random.default_rng(0).standard_normal(12, dtype=np.float32)
    assert latents["z"].numpy() == pytest.approx(expected, abs=0)


@pytest.mark.parametrize("noise_mode", ["const", "none"])
def test_draw_without_random_noise_is_the_latent_alone(noise_mode: str) -> None:
    generator = make()
    generator.settings = SamplingSettings(noise_mode=noise_mode)  # type: ignore[arg-type]
    assert list(generator.draw(np.random.default_rng(0))) == ["z"]


def test_noise_modes_differ_and_only_random_varies() -> None:
    generator = make()
    ws = torch.ones(2, TINY.num_ws, TINY.w_dim)
    with torch.no_grad():
        const, none = generator.synthesis(ws, "const"), generator.synthesis(ws, "none")
        random, again = generator.synthesis(ws, "random"), generator.synthesis(ws, "random")
    assert torch.equal(const, generator.synthesis(ws, "const"))
    assert torch.allclose(none[0], none[1])
    for one, other in [(const, none), (const, random), (none, random), (random, again), (random[:1], random[1:])]:
        assert (one - other).abs().max() > 0.05
    with pytest.raises(ValueError, match="random, const, none"):
        generator.synthesis(ws, "fixed")


def test_noise_maps_equal_to_the_constants_give_the_const_image() -> None:
    generator = make()
    ws = torch.ones(2, TINY.num_ws, TINY.w_dim)
    maps = [noise.expand(2, -1, -1) for name, noise in generator.named_buffers() if name.endswith("noise_const")]
    given = generator.synthesis(ws, "random", maps)
    assert torch.allclose(given, generator.synthesis(ws, "const"), atol=1e-5)


def test_psi_zero_gives_the_image_of_the_average_whatever_the_latent() -> None:
    generator = make()
    generator.settings = SamplingSettings(truncation_psi=0.0, noise_mode="const")
    images = generator.sample(draw(generator, [1, 2]))
    average = generator.synthesis(generator.mapping.w_avg.expand(1, TINY.num_ws, -1), "const")
    assert torch.equal(images[0], images[1])
    assert (images[0].int() - to_uint8(average[0]).int()).abs().max() <= 1


def test_truncation_cutoff_leaves_the_later_vectors_alone() -> None:
    generator = make()
    z = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    full, cut = generator.mapping(z), generator.mapping(z, truncation_psi=0.25, truncation_cutoff=2)
    assert torch.equal(cut[:, 2:], full[:, 2:])
    assert torch.allclose(cut[:, :2], generator.mapping.w_avg * 0.75 + full[:, :2] * 0.25, atol=1e-6)


def test_mapping_does_not_move_the_average_unasked() -> None:
    generator = make().train()
    before = generator.mapping.w_avg.clone()
    generator.mapping(torch.ones(2, 12))
    assert torch.equal(generator.mapping.w_avg, before)


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_float32_image_agrees_with_float64(architecture: Architecture) -> None:
    generator = make(replace(TINY, architecture=architecture, conv_clamp=256))
    z = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    double = copy.deepcopy(generator).double()
    single, exact = generator(z, noise_mode="const"), double(z.double(), noise_mode="const")
    assert exact.dtype == torch.float64
    assert (single - exact).abs().max() < 2e-5 * exact.abs().max()


def test_synthesis_has_second_derivatives_for_path_length_regularisation() -> None:
    generator = make()
    ws = torch.randn(2, TINY.num_ws, 12, generator=torch.Generator().manual_seed(2)).requires_grad_()
    image = generator.synthesis(ws, "const")
    (grad,) = torch.autograd.grad((image * torch.ones_like(image)).sum(), ws, create_graph=True)
    grad.square().sum(2).mean(1).sqrt().mean().backward()
    const = generator.get_parameter("synthesis.b4.const")
    assert const.grad is not None
    assert const.grad.abs().max() > 0


def test_half_precision_block_agrees_with_float32_and_keeps_the_image_in_float32() -> None:
    config = replace(TINY, conv_clamp=256, num_fp16_res=4)
    block = make(config).synthesis.get_submodule("b8")
    normal = torch.Generator().manual_seed(3)
    x, image, ws = (torch.randn(shape, generator=normal) for shape in [(2, 16, 4, 4), (2, 3, 4, 4), (2, 3, 12)])
    half, exact = (block(x, image, ws, [None, None], dtype) for dtype in (torch.float16, torch.float32))
    assert [value.dtype for value in half] == [torch.float16, torch.float32]
    for got, want in zip(half, exact, strict=True):
        assert (got.float() - want).abs().max() < 5e-3 * want.abs().max()
    assert not torch.equal(half[1], exact[1])
    assert block(x, None, ws, [None, None], torch.float16)[1].dtype == torch.float32


def test_sample_runs_on_the_meta_device_to_count_its_work() -> None:
    generator = build("stylegan2-cifar10-32", device="meta")
    latents = {name: value.to("meta") for name, value in draw(generator, [0, 1]).items()}
    with FlopCounterMode(display=False) as counter:
        images = generator.sample(latents, torch.zeros(2, dtype=torch.int64, device="meta"))
    assert images.is_meta
    assert images.shape == (2, 3, 32, 32)
    # 3x3 convolutions of 512 channels at 4 to 32 pixels; those that double 4 to 16 pixels work on the pixels they get
    convolutions = 2 * 9 * 512**2 * (4**2 + 8**2 + 16**2 + 32**2 + 4**2 + 8**2 + 16**2)
    assert 1.0 < counter.get_total_flops() / (2 * convolutions) < 1.2


def test_sample_leaves_no_graph_and_forward_stays_differentiable() -> None:
    generator = make()
    assert not generator.sample(draw(generator, [0])).requires_grad
    assert generator(torch.ones(1, 12)).requires_grad


def test_config_sizes_at_1024_are_those_of_the_paper() -> None:
    config = StyleGAN2Config(resolution=1024, num_fp16_res=4)
    assert (config.num_ws, len(config.noise_resolutions)) == (18, 17)
    assert [config.channels(r) for r in config.resolutions] == [512, 512, 512, 512, 512, 256, 128, 64, 32]
    assert [r for r in config.resolutions if config.is_half(r)] == [128, 256, 512, 1024]
    assert not any(StyleGAN2Config(resolution=1024).is_half(r) for r in config.resolutions)
    small = StyleGAN2Config(resolution=16, num_fp16_res=4)
    assert [r for r in small.resolutions if small.is_half(r)] == [8, 16]


@pytest.mark.parametrize(("field", "value"), [("resolution", 48), ("resolution", 2), ("architecture", "unet")])
def test_config_refuses_what_has_no_network(field: str, value: int | str) -> None:
    with pytest.raises(ValueError, match=str(value)):
        replace(TINY, **{field: value})  # type: ignore[arg-type]


def test_official_config_has_the_defaults_of_its_class() -> None:
    ada = official_config("training.networks.Generator", {"img_resolution": 64, "mapping_kwargs": {"num_layers": 2}})
    assert ada == StyleGAN2Config(resolution=64, mapping_layers=2)
    later = official_config("training.networks_stylegan2.Generator", {"img_resolution": 64, "channel_base": 16384})
    assert later == StyleGAN2Config(64, channel_base=16384, w_avg_beta=0.998, conv_clamp=256, num_fp16_res=4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mapping_layers": 3}, "unknown arguments mapping_layers"),
        ({"synthesis_kwargs": {"freeze": 3}}, "unknown arguments freeze"),
    ],
)
def test_official_config_refuses_what_it_can_not_keep(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        official_config("training.networks.Generator", {"img_resolution": 64, **kwargs})
    with pytest.raises(ValueError, match="no StyleGAN2 generator"):
        official_config("training.networks_stylegan3.Generator", {"img_resolution": 64})


def test_initialise_is_a_function_of_the_seed_alone() -> None:
    config = replace(TINY, num_classes=3, architecture="resnet")
    used = make(config)
    initialise(used, 0)
    fresh, other = StyleGAN2Generator(config), StyleGAN2Generator(config)
    torch.manual_seed(123)
    initialise(fresh, 0)
    initialise(other, 1)
    assert weights_sha256(used) == weights_sha256(fresh) == PINNED_SEED_0
    assert weights_sha256(other) != weights_sha256(fresh)


def test_initialise_draws_the_start_of_training() -> None:
    generator = StyleGAN2Generator(TINY)
    initialise(generator, 0)
    state = generator.state_dict()
    for name, value in state.items():
        if name.endswith("affine.bias"):
            assert torch.equal(value, torch.ones_like(value)), name
        elif name.endswith(("bias", "noise_strength", "w_avg")):
            assert not value.any(), name
        elif name.startswith("mapping.fc"):
            assert value.std().item() == pytest.approx(100, rel=0.2), name
        elif not name.endswith("resample_filter"):
            assert value.std().item() == pytest.approx(1, rel=0.35), name
    assert state["synthesis.b4.resample_filter"].sum() == pytest.approx(1)


def test_initialised_generator_paints_neither_grey_nor_clipped_images() -> None:
    generator = StyleGAN2Generator(StyleGAN2Config(resolution=32, channel_base=2048, channel_max=64))
    initialise(generator, 0)
    images = generator.sample(draw(generator, [0, 1])).float()
    assert images.std() > 20
    assert ((images == 0) | (images == 255)).float().mean() < 0.6
