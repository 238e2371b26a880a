from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.layers import initialise
from models.registry import build, build_target
from models.spec import Latents, SamplingSettings
from models.stylegan3_config import SynthesisConfig
from models.stylegan_xl import StyleGANXLGenerator
from models.stylegan_xl_config import (
    Stage,
    StyleGANXLConfig,
    chain,
    config_from_modules,
    config_of,
    fitted_to_state,
    layer_spec_from_attributes,
    official_config,
)
from tests.models.plain_stylegan3 import plain_synthesis

STEM = SynthesisConfig(16, channel_base=192, channel_max=10, num_layers=5, conv_kernel=1, use_radial_filters=True)
HEAD = Stage(head_layers=4, conv_kernel=3, use_radial_filters=False)
REST: dict[str, Any] = {"z_dim": 6, "w_dim": 8, "embed_classes": 7, "embed_dim": 9}
TINY = chain(STEM, [HEAD, HEAD], num_classes=5, **REST)
# in millions, as the paper's tables print them; the embedding is counted
MILLIONS = {16: "18.0", 32: "84.6", 64: "134.41", 128: "158.74", 256: "166.27", 512: "168.36", 1024: "168.69"}
LAYERS_256 = (
    "L0_36_1024 L1_36_1024 L2_36_1024 L3_36_1024 L4_36_1024 L5_36_1024 L6_36_1024 L7_36_1024 "
    "L9_36_1024 L10_52_1024 L11_52_1024 L12_52_1024 L13_52_1024 L14_52_1024 L15_84_1024 L16_84_1024 L17_84_1024 "
    "L18_84_1024 L19_84_1024 L20_148_1024 L21_148_861 L22_148_724 L23_148_609 L24_148_609 L25_276_512 L26_276_431 "
    "L27_276_362 L28_276_304 L29_276_256 L30_256_256 L31_256_3"
)


def make(config: StyleGANXLConfig = TINY, seed: int = 0) -> StyleGANXLGenerator:
    """A generator with everything that training starts at a constant moved away from it."""
    generator = StyleGANXLGenerator(config)
    initialise(generator, seed)
    normal = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in generator.state_dict().items():
            if name.endswith((".bias", "w_avg", "magnitude_ema")):
                value.add_(torch.randn(value.shape, generator=normal).abs() * 0.3)
    return generator


def draw(generator: StyleGANXLGenerator, seeds: list[int]) -> Latents:
    return {"z": torch.stack([generator.draw(np.random.default_rng(seed))["z"] for seed in seeds])}


def some_z(number: int) -> Tensor:
    return torch.randn(number, REST["z_dim"], generator=torch.Generator().manual_seed(1))


def one_hot(*labels: int) -> Tensor:
    return torch.eye(TINY.num_classes)[list(labels)]


def official_modules(generator: StyleGANXLGenerator) -> dict[str, dict[str, Any]]:
    """Attributes as the objects of the official code have them: sizes are arrays, kernel and filters go unsaid."""
    modules: dict[str, dict[str, Any]] = {
        "mapping": {"w_avg_beta": generator.config.w_avg_beta},
        "mapping.fc0": {"bias_gain": np.float64(generator.config.mapping_lr_multiplier)},
        "synthesis": {"output_scale": generator.config.output_scale},
        "synthesis.input": {**asdict(generator.config.input), "size": np.array([36, 36])},
    }
    for layer in generator.config.layers:
        own = {name: value for name, value in asdict(layer).items() if name not in ("index", "radial", "conv_kernel")}
        derived = {name: getattr(layer, name) for name in ("up_factor", "down_factor", "up_taps", "down_taps")}
        sizes = {name: np.array([own[name]] * 2) for name in ("in_size", "out_size")}
        modules[f"synthesis.{layer.name}"] = {
            **own,
            **derived,
            **sizes,
            "padding": list(layer.padding),
            "other": "text",
        }
    return modules


@pytest.mark.parametrize(("resolution", "millions"), MILLIONS.items())
def test_published_imagenet_model_has_its_size(resolution: int, millions: str) -> None:
    generator = build(f"stylegan-xl-imagenet-{resolution}", device="meta")
    assert isinstance(generator, StyleGANXLGenerator)
    count = sum(parameter.numel() for parameter in generator.parameters())
    assert f"{count / 1e6:.{len(millions.partition('.')[2])}f}" == millions
    assert (generator.num_classes, generator.z_dim) == (1000, 64)


def test_cifar10_model_has_the_size_that_others_measured() -> None:
    generator = build("stylegan-xl-cifar10-32", device="meta")
    assert isinstance(generator, StyleGANXLGenerator)
    assert f"{sum(parameter.numel() for parameter in generator.parameters()) / 1e6:.1f}" == "18.0"


def test_stages_replace_the_critically_sampled_layers() -> None:
    generator = build("stylegan-xl-imagenet-256", device="meta")
    assert isinstance(generator, StyleGANXLGenerator)
    layers = {layer.name: layer for layer in generator.config.layers}
    assert " ".join(layers) == LAYERS_256
    assert generator.num_ws == 32
    joint = layers["L9_36_1024"]
    below = layers["L7_36_1024"]
    assert (below.out_cutoff, below.out_half_width) == pytest.approx((6.727, 2.149), abs=5e-4)
    bands = [joint.in_cutoff, joint.in_half_width, joint.out_cutoff, joint.out_half_width]
    assert bands == pytest.approx([below.out_cutoff, below.out_half_width] * 2)
    geometry = ("conv_kernel", "radial", "padding", "up_factor", "is_critically_sampled")
    assert [getattr(below, name) for name in geometry] == [1, True, (11, 10, 11, 10), 2, False]
    assert [getattr(joint, name) for name in geometry] == [3, False, (9, 8, 9, 8), 2, False]
    assert [getattr(layers["L25_276_512"], name) for name in geometry] == [3, False, (-6, -9, -6, -9), 4, False]
    assert [getattr(layers["L30_256_256"], name) for name in geometry] == [3, False, (-11, -12, -11, -12), 2, True]
    assert all(layer.use_fp16 for layer in layers.values() if layer.index < 9)
    assert [layer.index for layer in layers.values() if not layer.use_fp16] == []


def test_stage_of_fourfold_resolution_upsamples_more_than_once() -> None:
    config = chain(STEM, [Stage(up_factor=4, head_layers=5)], **REST)
    rates = [layer.out_sampling_rate for layer in config.layers]
    assert (config.resolution, max(rates), sorted(rates)) == (64, 64, rates)
    assert make(config).sample(draw(make(config), [0])).float().std() > 3


@pytest.mark.parametrize("num_critical", [1, 3])
def test_bands_of_a_stage_stop_growing_two_layers_before_the_end(num_critical: int) -> None:
    stem = replace(STEM, num_layers=6, num_critical=num_critical)
    head = chain(stem, [Stage(head_layers=5)], **REST).layers[-6:]
    first = stem.layers[-num_critical - 2].out_cutoff
    growth = [first * (16 / first) ** min(i / 3, 1) for i in range(6)]
    assert [layer.out_cutoff for layer in head] == pytest.approx(growth)
    assert [layer.is_critically_sampled for layer in head] == [False] * (5 - num_critical) + [True] * (num_critical + 1)


def test_stage_may_have_no_more_layers_than_are_critical() -> None:
    config = chain(replace(STEM, num_layers=6, num_critical=3), [Stage(head_layers=3)])
    assert [layer.is_critically_sampled for layer in config.layers[-4:]] == [True] * 4


def test_synthesis_of_a_chain_agrees_with_the_plain_formulation() -> None:
    network = make().synthesis.double()
    assert {(layer.spec.conv_kernel, layer.spec.radial) for layer in network.layers()} == {
        (1, True),
        (3, False),
        (1, False),
    }
    ws = torch.randn(2, len(TINY.layers) + 1, 8, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        image, expected = network(ws), plain_synthesis(network, ws)
    assert image.shape == (2, 3, 64, 64)
    assert (image - expected).abs().max() < 1e-7 * expected.abs().max()


def plain_w(generator: StyleGANXLGenerator, z: Tensor, label: int | None) -> Tensor:
    """The mapping of one latent, step by step."""
    state = {name: value.double() for name, value in generator.mapping.state_dict().items()}

    def normalised(x: Tensor) -> Tensor:
        return x / (x.square().mean() + 1e-8).sqrt()

    def layer(name: str, x: Tensor, lr: float) -> Tensor:
        weight = state[f"{name}.weight"]
        y = weight @ x * (lr / weight.shape[1] ** 0.5) + state[f"{name}.bias"] * lr
        return torch.where(y > 0, y, y * 0.2) * 2**0.5

    x = normalised(z.double())
    if label is not None:
        x = torch.cat([x, normalised(layer("embed_proj", state["embed.weight"][label], 1.0))])
    for i in range(generator.config.mapping_layers):
        x = layer(f"fc{i}", x, generator.config.mapping_lr_multiplier)
    return x


@pytest.mark.parametrize("num_classes", [5, 0])
def test_mapping_agrees_with_the_plain_formulation(num_classes: int) -> None:
    generator = make(replace(TINY, num_classes=num_classes, mapping_layers=3))
    labels = [3, 0] if num_classes else [None, None]
    z, c = some_z(2), one_hot(3, 0) if num_classes else None
    full, cut = generator.mapping(z, c), generator.mapping(z, c, 0.7, 2)
    assert full.shape == (2, generator.num_ws, 8)
    for i, label in enumerate(labels):
        w = plain_w(generator, z[i], label)
        center = generator.mapping.w_avg if label is None else generator.mapping.w_avg[label]
        assert torch.allclose(full[i].double(), w.expand_as(full[i]), atol=1e-5)
        assert torch.allclose(cut[i, :2].double(), (center + 0.7 * (w - center)).expand(2, -1), atol=1e-5)
        assert torch.equal(cut[i, 2:], full[i, 2:])


def test_centroids_make_truncation_multi_modal() -> None:
    generator = make()
    z, c = some_z(4), one_hot(0, 1, 2, 3)
    w = generator.mapping(z, c)[:, 0]
    generator.centroids = torch.cat([w.detach()[:2] + 0.1, torch.full((3, 8), 9.0)])
    distances = (w[:, None] - generator.centroids).square().sum(2)
    nearest = generator.centroids[distances.argmin(1)]
    assert len(nearest.unique(dim=0)) == 2
    ws = generator.mapping(z, c, 0.25)
    assert torch.allclose(ws, (nearest + 0.25 * (w - nearest))[:, None].expand_as(ws), atol=1e-5)
    assert "mapping.centroids" not in generator.state_dict()
    generator.centroids = None
    assert not torch.allclose(generator.mapping(z, c, 0.25), ws, atol=1e-3)


def test_average_of_each_class_moves_by_its_own_samples() -> None:
    generator = make()
    before = generator.mapping.w_avg.clone()
    z, c = some_z(3), one_hot(2, 4, 2)
    w = generator.mapping(z, c)[:, 0].detach()
    generator.mapping(z, c, update_emas=True)
    expected = before.clone()
    for label, style in zip((2, 4, 2), w, strict=True):
        expected[label] = style * (1 - 0.998) + expected[label] * 0.998
    assert torch.allclose(generator.mapping.w_avg, expected, atol=1e-6)
    assert torch.equal(generator.mapping.w_avg[[0, 1, 3]], before[[0, 1, 3]])
    assert not torch.equal(generator.mapping.w_avg[2], before[2])


def test_average_of_an_unconditional_network_moves_by_the_mean() -> None:
    generator = make(replace(TINY, num_classes=0))
    before = generator.mapping.w_avg.clone()
    w = generator.mapping(some_z(3))[:, 0]
    generator.mapping(some_z(3), update_emas=True)
    assert torch.allclose(generator.mapping.w_avg, before * 0.998 + w.mean(0) * 0.002, atol=1e-6)


def test_sample_depends_on_the_label_and_not_on_the_batch() -> None:
    generator = make()
    generator.settings = SamplingSettings(truncation_psi=0.7)
    images = generator.sample(draw(generator, [5, 5, 6]), torch.tensor([1, 3, 0]))
    alone = generator.sample(draw(generator, [5]), torch.tensor([3]))
    assert (images.shape, images.dtype) == ((3, 3, 64, 64), torch.uint8)
    assert (images[1].int() - alone[0].int()).abs().max() <= 1
    assert (images[0].int() - images[1].int()).abs().max() > 5
    with pytest.raises(ValueError, match="no labels"):
        generator.sample(draw(generator, [0]))


def test_unconditional_network_keeps_an_embedding_that_it_does_not_use() -> None:
    generator = make(replace(TINY, num_classes=0))
    names = generator.state_dict().keys()
    assert "mapping.embed.weight" in names
    assert "mapping.embed_proj.weight" not in names
    assert "mapping.embed_proj.weight" in make(replace(TINY, num_classes=0, keeps_projection=True)).state_dict()
    assert generator.conditioning == "none"
    assert generator.sample(draw(generator, [0])).float().std() > 3


def test_kwargs_make_the_generator_again() -> None:
    generator = make()
    stored = json.loads(json.dumps(generator.kwargs))
    again = build_target(generator.target, stored)
    assert isinstance(again, StyleGANXLGenerator)
    assert again.config == generator.config
    assert again.kwargs == stored


def test_chain_and_list_of_layers_describe_the_same_network() -> None:
    stage = {"head_layers": 4, "conv_kernel": 3, "use_radial_filters": False}
    made = config_of(resolution=64, num_classes=5, stem=asdict(STEM), stages=[stage, stage], **REST)
    assert made == TINY
    with pytest.raises(ValueError, match="resolution 128, but the last layer gives 64"):
        config_of(resolution=128, stem=asdict(STEM), stages=[stage, stage])
    with pytest.raises(ValueError, match="8 classes, but the embedding has 7"):
        replace(TINY, num_classes=8)


def test_configuration_is_read_off_the_layers_of_a_file() -> None:
    generator = make()
    assert config_from_modules(official_modules(generator), generator.state_dict()) == TINY
    plain = make(replace(TINY, num_classes=0, keeps_projection=True, mapping_layers=3, w_avg_beta=0.9))
    assert config_from_modules(official_modules(plain), plain.state_dict()) == plain.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_cutoff": None}, "in_cutoff is None"),
        ({"in_size": np.array([36, 52])}, "in_size is array"),
        ({"up_factor": 4}, "up_factor is 4, but its other attributes give 2"),
        ({"padding": [9, 8, 9, 8]}, r"padding is \(9, 8, 9, 8\), but its other attributes give \(11, 10, 11, 10\)"),
        ({"out_channels": 4}, "name is L0_36_10, but its other attributes give L0_36_4"),
    ],
)
def test_layer_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    generator = make()
    attributes = {**official_modules(generator)["synthesis.L0_36_10"], **change}
    state = generator.state_dict() | {"synthesis.L0_36_4.weight": torch.zeros(4, 10, 1, 1)}
    state["synthesis.L0_36_4.down_filter"] = torch.zeros(12, 12)
    with pytest.raises(ValueError, match=message):
        layer_spec_from_attributes("L0_36_10", attributes, state)


def test_layer_without_its_attributes_is_refused() -> None:
    with pytest.raises(ValueError, match="has no attribute 'in_channels'"):
        layer_spec_from_attributes("L0_36_10", {}, make().state_dict())
    with pytest.raises(ValueError, match="such as L0_36_1024"):
        layer_spec_from_attributes("input", {}, {})
    with pytest.raises(ValueError, match="no synthesis layers"):
        config_from_modules({}, {})


def test_official_arguments_are_translated() -> None:
    of_mapping = {"c_dim": 5, "z_dim": 6, "w_dim": 8, "mapping_kwargs": {"rand_embedding": True}}
    stem = {"img_resolution": 16, "channel_base": 192, "channel_max": 10, "num_layers": 5, **of_mapping}
    stem |= {"conv_kernel": 1, "use_radial_filters": True}
    name = "training.networks_stylegan3_resetting.SuperresGenerator"
    stages: list[dict[str, Any]] = [
        {"img_resolution": 32, "head_layers": 4, "up_factor": 2, "path_stem": "stem.pkl"},
        # officially given to every generator, and not read by a stage
        {"img_resolution": 64, "head_layers": 4, "up_factor": 2, "c_dim": 5, "img_channels": 3, "channel_base": 999},
    ]
    state = make().state_dict()
    assert fitted_to_state(official_config(name, stem, stages), state) == TINY
    with pytest.raises(ValueError, match="unknown arguments syn_layers"):
        official_config(name, {**stem, "syn_layers": 3})
    with pytest.raises(ValueError, match="no StyleGAN-XL generator"):
        official_config("training.networks_stylegan3.Generator", stem)


def test_sample_runs_on_the_meta_device() -> None:
    generator = build("stylegan-xl-imagenet-32", device="meta")
    labels = torch.zeros(2, dtype=torch.int64, device="meta")
    images = generator.sample({"z": torch.empty(2, 64, device="meta")}, labels)
    assert images.is_meta
    assert images.shape == (2, 3, 32, 32)
