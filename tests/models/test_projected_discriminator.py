from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import initialise
from models.training.projected_discriminator import (
    HeadsConfig,
    MultiScaleHeads,
    ProjectedDiscriminator,
    ProjectedDiscriminatorConfig,
    ProjectionConfig,
    RandomProjection,
    official_projected_config,
)

LITE = "tf_efficientnet_lite0"
SMALL = ProjectedDiscriminatorConfig(
    num_classes=5,
    backbones=(LITE,),
    augment=False,
    resize=False,
    width=4,
    resolution=64,
    label_width=16,
    embedding_shape=(6, 8),
)


def random_maps(config: ProjectionConfig, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(4, channels, size >> i, size >> i, generator=generator, dtype=torch.float64)
        for i, channels in enumerate(config.channels)
    ]


def naive_projection(projection: RandomProjection, maps: list[Tensor]) -> list[Tensor]:
    """Convolution by convolution in the order of the paper: add, double, convolve."""
    state = projection.state_dict()

    def convolve(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])

    if projection.config.kind == 0:
        return maps
    mixed = [convolve(x, f"layer{i}_ccm") for i, x in enumerate(maps)]
    if projection.config.kind == 1:
        return mixed
    results: list[Tensor] = []
    for i in (3, 2, 1, 0):
        x = mixed[i] + results[0] if results else mixed[i]
        doubled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        results.insert(0, convolve(doubled, f"layer{i}_csm.out_conv"))
    return results


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("expand", [True, False])
def test_projection_mixes_channels_then_scales(kind: int, expand: bool) -> None:
    config = ProjectionConfig((5, 3, 7, 6), width=4, expand=expand, kind=kind)  # type: ignore[arg-type]
    projection = RandomProjection(config).double()
    initialise(projection, 1)
    maps = random_maps(config, 24)
    mixed = projection(maps)
    for got, want in zip(mixed, naive_projection(projection, maps), strict=True):
        torch.testing.assert_close(got, want)
    assert tuple(x.shape[1] for x in mixed) == config.out_channels
    assert not any(parameter.requires_grad for parameter in projection.parameters())


def naive_head(widths: list[int], last: nn.Conv2d) -> nn.Sequential:
    """Layers of PyTorch, with its own spectral normalisation."""
    spectral = nn.utils.spectral_norm
    layers: list[nn.Module] = []
    for i, width in enumerate(widths[1:]):
        layers += [spectral(nn.Conv2d(widths[i], width, 4, 2, 1)), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, spectral(last)).double()


def load_by_order(oracle: nn.Module, head: nn.Module) -> None:
    """Both list convolutions and normalisations in the same order."""
    for name in ("weight_orig", "weight_u", "weight_v", "bias", "weight", "running_mean", "running_var"):
        mine = [tensor for key, tensor in head.state_dict().items() if key.endswith(f".{name}")]
        theirs = [tensor for key, tensor in oracle.state_dict().items() if key.endswith(f".{name}")]
        for target, source in zip(theirs, mine, strict=True):
            target.copy_(source)


@pytest.mark.parametrize(
    ("resolution", "width", "widths"),
    [
        (64, None, [3, 128, 256, 512]),
        (28, None, [3, 256, 512]),  # as deep as for 32
        (32, 6, [3, 6, 6]),
        (8, 6, [3]),
    ],
)
def test_unconditional_head_agrees_with_layers_of_torch(resolution: int, width: int | None, widths: list[int]) -> None:
    config = HeadsConfig((3,) * 4, (resolution,) * 4, num_heads=1, width=width)
    heads = MultiScaleHeads(config).double()
    initialise(heads, 2)
    oracle = naive_head(widths, nn.Conv2d(widths[-1], 1, 4, bias=False))
    load_by_order(oracle, heads)
    x = torch.randn(4, 3, resolution, resolution, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for training in (True, True, False):
        got, want = heads.train(training)([x]), oracle.train(training)(x)
        torch.testing.assert_close(got, want.flatten(1))
    torch.testing.assert_close(
        [buffer for name, buffer in heads.named_buffers() if name.endswith("weight_u")],
        [buffer for name, buffer in oracle.named_buffers() if name.endswith("weight_u")],
    )


@pytest.mark.parametrize("resolution", [8, 64])
def test_patch_head_halves_once_whatever_the_resolution(resolution: int) -> None:
    heads = MultiScaleHeads(HeadsConfig((3,) * 4, (resolution,) * 4, num_heads=1, width=6, patch=True)).double()
    initialise(heads, 2)
    spectral, block = nn.utils.spectral_norm, naive_head([3, 6], nn.Conv2d(6, 6, 1, bias=False))
    last = [nn.BatchNorm2d(6), nn.LeakyReLU(0.2), spectral(nn.Conv2d(6, 1, 4, bias=False))]
    oracle = nn.Sequential(*block, *last).double()
    load_by_order(oracle, heads)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for training in (True, False):
        torch.testing.assert_close(heads.train(training)([x]), oracle.train(training)(x).flatten(1))
    names = {"weight_orig", "weight_u", "weight_v"}
    assert {f"mini_discs.0.main.0.main.1.{name}" for name in names} <= heads.state_dict().keys()


def test_conditional_head_projects_labels_onto_features() -> None:
    config = HeadsConfig((3, 3, 3, 3), (16, 8, 4, 2), 1, num_classes=5, embedding_shape=(7, 4), label_width=9, width=6)
    heads = MultiScaleHeads(config).double().eval()
    initialise(heads, 2)
    head = heads.get_submodule("mini_discs.0")
    oracle = naive_head([3, 6], nn.Conv2d(6, 9, 4, bias=False)).eval()
    state = head.state_dict()
    load_by_order(oracle, nn.ModuleList([head.get_submodule("main"), head.get_submodule("cls")]))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([4, 1])
    embedded = state["embed.weight"][labels] @ state["embed_proj.weight"].T / math.sqrt(4) + state["embed_proj.bias"]
    projected = F.leaky_relu(embedded, 0.2) * math.sqrt(2)
    want = torch.einsum("nchw,nc->nhw", oracle(x), projected) / 3
    torch.testing.assert_close(heads([x], F.one_hot(labels, 5).double()), want.flatten(1))


def test_heads_of_all_levels_give_patches_in_a_row() -> None:
    config = HeadsConfig((3, 4, 5, 6), (64, 32, 16, 8), width=4)
    heads = MultiScaleHeads(config).eval()
    initialise(heads, 0)
    maps = [torch.randn(2, 3 + i, 64 >> i, 64 >> i) for i in range(4)]
    logits = heads(maps)
    assert logits.shape == (2, 4 * 25)
    alone = heads.mini_discs["2"](maps[2], None)
    torch.testing.assert_close(logits[:, 50:75], alone)
    assert MultiScaleHeads(replace(config, num_heads=5)).state_dict().keys() == heads.state_dict().keys()


def test_full_size_discriminator_has_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        conditional = ProjectedDiscriminator(ProjectedDiscriminatorConfig(1000))
        logits = conditional(torch.zeros(2, 3, 64, 64), torch.zeros(2, 1000))
        native = ProjectedDiscriminator(ProjectedDiscriminatorConfig(resize=False))(torch.zeros(2, 3, 256, 256))
    trained = sum(parameter.numel() for parameter in conditional.parameters() if parameter.requires_grad)
    assert trained == 27_515_776  # specification: 27.5 M
    scratch = [parameter for name, parameter in conditional.named_parameters() if ".scratch." in name]
    assert sum(parameter.numel() for parameter in scratch) == 1_076_608  # specification: 1.08 M
    assert [tuple(x.shape) for x in logits] == [(2, 64), (2, 64)]
    assert [tuple(x.shape) for x in native] == [(2, 64), (2, 100)]  # only the convolutional network sees 256 pixels
    names = set(conditional.state_dict())
    assert {
        "feature_networks.tf_efficientnet_lite0.pretrained.layer0.0.weight",
        "feature_networks.deit_base_distilled_patch16_224.pretrained.model.dist_token",
        "feature_networks.deit_base_distilled_patch16_224.pretrained.layer4.4.weight",
        "feature_networks.tf_efficientnet_lite0.scratch.layer3_csm.out_conv.bias",
        "discriminators.deit_base_distilled_patch16_224.mini_discs.0.main.3.main.0.weight_orig",
        "discriminators.tf_efficientnet_lite0.mini_discs.3.embed_proj.weight",
    } <= names


def ready(config: ProjectedDiscriminatorConfig) -> ProjectedDiscriminator:
    discriminator = ProjectedDiscriminator(config)
    initialise(discriminator, 0)
    return discriminator


def test_each_backbone_judges_images_that_it_sees_normalised() -> None:
    discriminator = ready(SMALL).double().eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.eye(5)[:2].double()
    (logits,) = discriminator(images, labels)
    network: Any = discriminator.feature_networks[LITE]
    features = network.scratch(network.pretrained(images))  # mean and deviation of 0.5 undo the step to [0, 1]
    torch.testing.assert_close(logits, discriminator.discriminators[LITE](features, labels))
    resized = ready(replace(SMALL, resize=True)).double().eval()
    upscaled = F.interpolate(images, (224, 224), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resized(images, labels), discriminator(upscaled, labels))


def test_augmentation_takes_its_numbers_from_the_generator_and_differs_between_backbones() -> None:
    backbones = (LITE, "tf_efficientnet_lite1")
    discriminator = ready(replace(SMALL, augment=True, backbones=backbones)).eval()
    seen: list[Tensor] = []
    for name in backbones:
        backbone = discriminator.get_submodule(f"feature_networks.{name}.pretrained")
        backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images, labels = torch.ones(2, 3, 64, 64), torch.eye(5)[:2]
    for seed in (1, 1, 2):
        discriminator(images, labels, torch.Generator().manual_seed(seed))
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[4])


def test_training_touches_the_heads_only() -> None:
    discriminator = ready(SMALL).requires_grad_(False).requires_grad_(True).train()
    trained = {name for name, parameter in discriminator.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in discriminator.named_parameters() if name.startswith("discriminators.")}
    assert discriminator.discriminators.training
    backbone = f"feature_networks.{LITE}.pretrained"
    assert not any(module.training for module in discriminator.get_submodule(backbone).modules())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.eye(5)[:2]
    real, fake = discriminator(images, labels), discriminator(-images, labels)  # two passes before one gradient
    torch.autograd.backward((real[0] - fake[0]).square().sum())
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in discriminator.parameters())
    assert images.grad is not None
    copied = copy.deepcopy(discriminator).double().eval()
    assert copied(images.double(), labels.double())[0].dtype == torch.float64


def test_labels_must_fit() -> None:
    heads = MultiScaleHeads(HeadsConfig((3,) * 4, (8,) * 4, num_classes=5))
    with pytest.raises(ValueError, match="labels of 0 classes for a discriminator of 5"):
        heads([torch.zeros(1, 3, 8, 8)] * 4)
    with pytest.raises(ValueError, match="labels of 4 classes for a discriminator of 5"):
        heads([torch.zeros(1, 3, 8, 8)] * 4, torch.eye(4)[:1])
    with pytest.raises(ValueError, match="1001 classes, the table"):
        HeadsConfig((3,) * 4, (8,) * 4, num_classes=1001)


def test_projection_config_refuses_what_does_not_exist() -> None:
    with pytest.raises(ValueError, match="projection 3 is not 0"):
        ProjectionConfig((1, 2, 3, 4), kind=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 maps, a backbone gives 4"):
        ProjectionConfig((1, 2))


def test_official_projected_config_translates_nested_arguments() -> None:
    inner = {"cout": 32, "expand": False, "proj_type": 1, "num_discs": 2, "cond": True, "patch": True}
    inner |= {"cmap_dim": 16, "im_res": 64, "separable": True, "rand_embedding": True}  # without influence
    config = official_projected_config(
        {"c_dim": 10, "img_resolution": 16, "img_channels": 3, "backbones": [LITE], "interp224": True}
        | {"diffaug": False, "backbone_kwargs": inner}
    )
    assert config == ProjectedDiscriminatorConfig(
        10, (LITE,), augment=False, width=32, expand=False, projection=1, num_heads=2, patch=True
    )
    assert official_projected_config({"c_dim": 10}).num_classes == 0
    with pytest.raises(ValueError, match="unknown arguments depth"):
        official_projected_config({"backbone_kwargs": {"depth": 3}})
    with pytest.raises(ValueError, match="img_channels=1"):
        official_projected_config({"img_channels": 1})
