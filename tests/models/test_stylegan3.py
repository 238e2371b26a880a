from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor

from kernels.modulated_conv import ModulatedConv
from models.filter_design import lowpass_filter
from models.layers import initialise, to_uint8
from models.registry import build, build_target
from models.spec import Latents, SamplingSettings
from models.stylegan3 import StyleGAN3Generator, modulated_conv_with_gain
from models.stylegan3_config import LayerSpec, StyleGAN3Config, official_config
from tests.models.plain_stylegan3 import plain_synthesis

TINY = StyleGAN3Config(32, channel_base=256, channel_max=12, num_layers=6, z_dim=12, w_dim=10)
ROTATING = {"conv_kernel": 1, "use_radial_filters": True}
# trainable parameters of the published configurations
PARAMETERS = {
    "stylegan3-t-ffhq-1024": 22_313_167,
    "stylegan3-r-ffhq-1024": 15_093_151,
    "stylegan3-t-afhqv2-512": 24_873_519,
    "stylegan3-r-afhqv2-512": 16_665_594,
    "stylegan3-t-ffhqu-256": 23_320_443,
    "stylegan3-r-ffhqu-256": 15_779_565,
}
# and their convolutions, 2 operations a multiplication, in 10^9
GFLOPS = {
    "stylegan3-t-ffhq-1024": 571.1,
    "stylegan3-r-ffhq-1024": 250.3,
    "stylegan3-t-afhqv2-512": 545.1,
    "stylegan3-r-afhqv2-512": 238.3,
    "stylegan3-t-ffhqu-256": 210.7,
    "stylegan3-r-ffhqu-256": 91.7,
}
T_1024 = (
    "L0_36_512 L1_36_512 L2_52_512 L3_52_512 L4_84_512 L5_148_512 L6_148_512 L7_276_323 L8_276_203 L9_532_128 "
    "L10_1044_81 L11_1044_51 L12_1044_32 L13_1024_32 L14_1024_3"
)


def make(config: StyleGAN3Config = TINY, seed: int = 0) -> StyleGAN3Generator:
    """A generator with everything that training starts at a constant moved away from it."""
    generator = StyleGAN3Generator(config)
    initialise(generator, seed)
    normal = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in generator.state_dict().items():
            if name.endswith((".bias", "w_avg", "magnitude_ema", "input.affine.weight")):
                value.add_(torch.randn(value.shape, generator=normal).abs() * 0.3)
    return generator


def draw(generator: StyleGAN3Generator, seeds: list[int]) -> Latents:
    return {"z": torch.stack([generator.draw(np.random.default_rng(seed))["z"] for seed in seeds])}


def random_ws(config: StyleGAN3Config, number: int = 2) -> Tensor:
    return torch.randn(number, config.num_ws, config.w_dim, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_published_configuration_has_its_size_and_cost(name: str) -> None:
    generator = build(name, device="meta")
    assert isinstance(generator, StyleGAN3Generator)
    assert sum(parameter.numel() for parameter in generator.parameters()) == PARAMETERS[name]
    start = generator.config.input
    products = start.size**2 * start.channels**2
    for layer in generator.config.layers:
        size = layer.in_size + layer.conv_kernel - 1
        products += size**2 * layer.conv_kernel**2 * layer.in_channels * layer.out_channels
    assert 2e-9 * products == pytest.approx(GFLOPS[name], abs=0.06)


def test_layers_at_1024_are_those_of_the_paper() -> None:
    config = StyleGAN3Config(1024)
    assert " ".join(layer.name for layer in config.layers) == T_1024
    assert config.num_ws == 16
    assert [layer.out_cutoff for layer in config.layers][::4] == pytest.approx([2, 12.6992, 80.6349, 512], rel=1e-5)
    widths = [layer.out_half_width for layer in config.layers]
    assert widths[::4] == pytest.approx([6, 19.3008, 47.3651, 118.346], rel=1e-5)
    up_four = [layer.index for layer in config.layers if layer.up_factor == 4]
    assert up_four == [2, 4, 5, 7, 9, 10]
    assert [config.layers[i].padding[:2] for i in (0, 2, 13, 14)] == [(9, 8), (-6, -9), (-11, -12), (0, 0)]
    assert [layer.index for layer in config.layers if layer.use_fp16] == list(range(5, 15))
    rotating = StyleGAN3Config(1024, channel_base=65536, channel_max=1024, conv_kernel=1, use_radial_filters=True)
    assert [rotating.layers[i].padding[:2] for i in (0, 2, 13, 14)] == [(11, 10), (-2, -5), (-9, -10), (0, 0)]
    assert [layer.index for layer in rotating.layers if layer.radial] == list(range(12))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ROTATING,
        {"conv_kernel": 3, "use_radial_filters": True},
        {"conv_kernel": 5, "filter_size": 4, "margin_size": 6},
        {"img_channels": 1, "conv_clamp": 0.5, "output_scale": 0.7},
        {"resolution": 16, "img_channels": 4, "conv_clamp": None, "lrelu_upsampling": 4},
        {"lrelu_upsampling": 1, "num_critical": 1},
        {"num_critical": 0, "num_layers": 4, **ROTATING},
        {"num_critical": 3, "first_cutoff": 1.5, "first_stopband": 3.7, "last_stopband_rel": 1.4},
        {"resolution": 16, "filter_size": 5, "lrelu_upsampling": 3},
    ],
    ids=str,
)
def test_synthesis_agrees_with_the_plain_formulation(changes: dict[str, object]) -> None:
    config = replace(TINY, **changes)  # type: ignore[arg-type]
    network = make(config).synthesis.double()
    ws = random_ws(config).double()
    with torch.no_grad():
        image, expected = network(ws), plain_synthesis(network, ws)
    assert image.shape == (2, config.img_channels, config.resolution, config.resolution)
    assert image.dtype == torch.float64
    assert (image - expected).abs().max() < 1e-7 * expected.abs().max()
    with torch.no_grad():
        single = network.float()(ws.float())
    assert (single - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("gain_shape", [(), (5,), (3, 5)])
@pytest.mark.parametrize("demodulate", [True, False])
def test_gain_of_the_input_survives_demodulation(gain_shape: tuple[int, ...], demodulate: bool) -> None:
    normal = torch.Generator().manual_seed(0)
    x, weight, styles, gain, bias = (
        torch.randn(shape, generator=normal) for shape in [(3, 5, 6, 7), (4, 5, 3, 3), (3, 5), gain_shape, (4,)]
    )
    conv = ModulatedConv(padding=2, demodulate=demodulate)
    y = modulated_conv_with_gain(x, weight, styles, conv, input_gain=gain, bias=bias)
    scaled = x * gain.expand(3, 5)[:, :, None, None]
    expected = modulated_conv_with_gain(scaled, weight, styles, conv) + bias[:, None, None]
    assert torch.allclose(y, expected, atol=1e-5)
    assert (y - modulated_conv_with_gain(x, weight, styles, conv)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_demodulation_takes_out_any_scale_of_weight_and_styles(dtype: torch.dtype) -> None:
    normal = torch.Generator().manual_seed(0)
    shapes = (2, 5, 6, 6), (4, 5, 1, 1), (2, 5)
    x, weight, styles = (torch.randn(shape, generator=normal, dtype=dtype) for shape in shapes)
    expected = modulated_conv_with_gain(x, weight, styles, ModulatedConv())
    small = torch.tensor([1e-3, 1e-5, 1e-8, 1e4])[:, None, None, None].to(dtype)  # the epsilon alone would be 1e-4
    y = modulated_conv_with_gain(x, weight * small, styles * 1e-2, ModulatedConv())
    assert (y - expected).abs().max() < 1e-5 * expected.abs().max()


def test_filters_pass_low_and_stop_high_frequencies() -> None:
    taps = lowpass_filter(24, 5.0, 4.0, 64)
    assert taps is not None
    assert (taps.dtype, tuple(taps.shape)) == (torch.float32, (24,))
    assert torch.allclose(taps, taps.flip(0))
    frequencies, response = signal.freqz(taps.double().numpy(), worN=2048, fs=64)
    assert abs(response[0]) == pytest.approx(1, abs=1e-6)
    assert np.interp(5.0, frequencies, abs(response)) == pytest.approx(0.5, abs=0.02)  # the middle of the transition
    assert abs(response[frequencies > 9]).max() < 0.1
    assert lowpass_filter(1, 5.0, 4.0, 64) is None
    with pytest.raises(ValueError, match="Check filter_size"):
        lowpass_filter(4096, 5.0, 4.0, 64)


@pytest.mark.parametrize("num_taps", [24, 25])
def test_radial_filter_has_one_cutoff_in_all_directions(num_taps: int) -> None:
    radial, axial = lowpass_filter(num_taps, 10.0, 6.0, 64, radial=True), lowpass_filter(num_taps, 10.0, 6.0, 64)
    assert radial is not None
    assert axial is not None
    assert radial.sum().item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(radial, radial.rot90())
    x = (torch.arange(num_taps) - (num_taps - 1) / 2) / 64 * 2 * torch.pi
    diagonal = torch.cos((x[:, None] + x[None, :]) * (10.0 / 2**0.5))
    along_x = torch.cos(x * 10.0).expand(num_taps, -1)
    assert (radial * along_x).sum().item() == pytest.approx(0.5, abs=0.04)
    assert (radial * diagonal).sum().item() == pytest.approx(0.5, abs=0.04)
    assert (torch.outer(axial, axial) * diagonal).sum().item() > 0.6


@pytest.mark.parametrize("changes", [{}, ROTATING], ids=["T", "R"])
def test_user_shift_moves_the_image(changes: dict[str, object]) -> None:
    network = make(replace(TINY, resolution=64, **changes)).synthesis.double()  # type: ignore[arg-type]
    ws = random_ws(TINY, 1).double()
    with torch.no_grad():
        still = network(ws)
        network.input.transform[0, 2] = 1 / 16  # a pixel at the lowest rate, 4 of the image
        moved = network(ws)
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -12))
    error = (moved[inner] - still.roll(-4, 3)[inner]).abs().max()
    assert error < 1e-3 * (moved - still).abs().max()


def test_user_quarter_turn_turns_the_image_of_configuration_r_only() -> None:
    for changes, is_exact in [(ROTATING, True), ({"conv_kernel": 3}, False)]:
        network = make(replace(TINY, **changes)).synthesis.double()  # type: ignore[arg-type]
        ws = random_ws(TINY, 1).double()
        with torch.no_grad():
            still = network(ws)
            network.input.transform.copy_(torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]))
            turned = network(ws)
        error = (turned - still.rot90(-1, (2, 3))).abs().max() / still.abs().max()
        assert (error < 1e-6) == is_exact


def test_sample_is_independent_of_the_batch() -> None:
    generator = make()
    together = generator.sample(draw(generator, [5, 6, 7]))
    alone = torch.cat([generator.sample(draw(generator, [seed])) for seed in (5, 6, 7)])
    assert (together.shape, together.dtype) == ((3, 3, 32, 32), torch.uint8)
    assert together.is_contiguous()
    assert (together.int() - alone.int()).abs().max() <= 1
    assert (together[0].int() - together[1].int()).abs().max() > 20
    assert not generator.sample(draw(generator, [0])).requires_grad


def test_sample_of_a_class_depends_on_the_label() -> None:
    generator = make(replace(TINY, num_classes=4))
    images = generator.sample(draw(generator, [5, 5]), torch.tensor([1, 3]))
    assert (images[0].int() - images[1].int()).abs().max() > 20
    with pytest.raises(ValueError, match="no labels"):
        generator.sample(draw(generator, [0]))
    with pytest.raises(ValueError, match="allowed are 0 to 3"):
        generator.sample(draw(generator, [0]), torch.tensor([4]))


def test_psi_zero_gives_the_image_of_the_average_whatever_the_latent() -> None:
    generator = make()
    generator.settings = SamplingSettings(truncation_psi=0.0)
    images = generator.sample(draw(generator, [1, 2]))
    w_avg = generator.get_buffer("mapping.w_avg")
    average = generator.synthesis(w_avg.expand(1, TINY.num_ws, -1), noise_mode="none")
    assert torch.equal(images[0], images[1])
    assert (images[0].int() - to_uint8(average[0]).int()).abs().max() <= 1


def test_averages_move_only_when_asked() -> None:
    generator = make().train()
    before = copy.deepcopy(generator.state_dict())
    z = torch.ones(2, TINY.z_dim)
    generator(z)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    generator(z, update_emas=True)
    moved = {name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"mapping.w_avg", *(f"synthesis.{layer.name}.magnitude_ema" for layer in TINY.layers)}


def test_synthesis_has_second_derivatives_for_path_length_regularisation() -> None:
    generator = make()
    ws = random_ws(TINY).requires_grad_()
    image = generator.synthesis(ws)
    (grad,) = torch.autograd.grad((image * torch.ones_like(image)).sum(), ws, create_graph=True)
    grad.square().sum(2).mean(1).sqrt().mean().backward()
    weight = generator.synthesis.input.weight.grad
    assert weight is not None
    assert weight.abs().max() > 0


@pytest.mark.parametrize("changes", [{}, ROTATING], ids=["T", "R"])
def test_half_precision_layer_agrees_with_float32(changes: dict[str, object]) -> None:
    network = make(replace(TINY, channel_max=64, channel_base=4096, **changes)).synthesis  # type: ignore[arg-type]
    layer = next(iter(network.layers()))
    normal = torch.Generator().manual_seed(3)
    x, w = torch.randn(2, 64, 36, 36, generator=normal), torch.randn(2, 10, generator=normal)
    with torch.no_grad():
        layer.weight.mul_(300)  # beyond the range of float16 unless it is normalised first
        half, exact = layer(x, w, torch.float16), layer(x, w, torch.float32)
    assert half.dtype == torch.float16
    assert (half.float() - exact).abs().max() < 5e-3 * exact.abs().max()


def test_sample_runs_on_the_meta_device() -> None:
    generator = build("stylegan3-r-ffhqu-256", device="meta")
    images = generator.sample({"z": torch.empty(2, 512, device="meta")})
    assert images.is_meta
    assert images.shape == (2, 3, 256, 256)


def test_initialise_draws_the_start_of_training() -> None:
    generator = StyleGAN3Generator(TINY)
    designed = {name: value.clone() for name, value in generator.state_dict().items() if name.endswith("_filter")}
    initialise(generator, 0)
    state = generator.state_dict()
    for name, value in state.items():
        if name.endswith("_filter"):
            assert torch.equal(value, designed[name]), name
        elif name.endswith("magnitude_ema"):
            assert value == 1, name
        elif name.endswith("affine.bias") and "input" not in name:
            assert torch.equal(value, torch.ones_like(value)), name
        elif name.endswith(".weight") and "input.affine" not in name:
            assert value.std().item() == pytest.approx(100 if "mapping" in name else 1, rel=0.35), name


def test_initialised_generator_paints_neither_grey_nor_clipped_images() -> None:
    for changes in ({}, ROTATING):
        generator = StyleGAN3Generator(replace(TINY, channel_max=64, channel_base=2048, **changes))  # type: ignore[arg-type]
        initialise(generator, 0)
        images = generator.sample(draw(generator, [0, 1])).float()
        assert images.std() > 10
        assert ((images == 0) | (images == 255)).float().mean() < 0.6


def test_kwargs_make_the_generator_again() -> None:
    generator = make(replace(TINY, **ROTATING, num_classes=3))  # type: ignore[arg-type]
    again = build_target(generator.target, json.loads(json.dumps(generator.kwargs)))
    assert isinstance(again, StyleGAN3Generator)
    assert again.config == generator.config


def test_official_arguments_are_translated() -> None:
    mapping = {"num_layers": 3, "w_avg_beta": 0.9}
    kwargs = {"img_resolution": 64, "c_dim": 5, "mapping_kwargs": mapping, "conv_kernel": 1}
    config = official_config("training.networks_stylegan3.Generator", kwargs)
    assert config == StyleGAN3Config(64, num_classes=5, mapping_layers=3, w_avg_beta=0.9, conv_kernel=1)
    with pytest.raises(ValueError, match=r"unknown arguments freeze; known: .*use_radial_filters"):
        official_config("training.networks_stylegan3.Generator", {**kwargs, "freeze": 1})
    with pytest.raises(ValueError, match="no StyleGAN3 generator"):
        official_config("training.networks.Generator", kwargs)


@pytest.mark.parametrize(("field", "value"), [("resolution", 2), ("num_critical", 6), ("num_critical", -1)])
def test_config_refuses_what_has_no_network(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=str(value)):
        StyleGAN3Generator(replace(TINY, **{field: value}))  # type: ignore[arg-type]


def test_synthesis_refuses_another_number_of_styles() -> None:
    with pytest.raises(ValueError, match=r"ws \[2, 3, 10\]; allowed is \[N, 8, w_dim\]"):
        make().synthesis(torch.zeros(2, 3, 10))


def test_layer_name_carries_size_and_channels() -> None:
    layer = TINY.layers[2]
    assert isinstance(layer, LayerSpec)
    assert layer.name == f"L2_{layer.out_size}_{layer.out_channels}"
