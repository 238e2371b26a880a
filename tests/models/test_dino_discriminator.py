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
from models.training.dino_discriminator import (
    DinoDiscriminator,
    DinoDiscriminatorConfig,
    DiscriminatorHead,
    LocalBatchNorm,
    official_dino_config,
)

TINY_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3}
SMALL = DinoDiscriminatorConfig(6, augment=False, crop_probability=0.0, label_width=5, vit_kwargs=TINY_VIT)


def random_batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ready(config: DinoDiscriminatorConfig) -> DinoDiscriminator:
    discriminator = DinoDiscriminator(config)
    initialise(discriminator, 0)
    return discriminator


@pytest.mark.parametrize(("count", "group"), [(1, 1), (7, 7), (8, 8), (12, 6), (16, 8), (18, 6)])
def test_local_batch_norm_is_that_of_each_group(count: int, group: int) -> None:
    norm = LocalBatchNorm(5).double().eval()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 6))
        norm.bias.copy_(torch.arange(5.0))
    x = random_batch(count, 5, 9)
    wanted = [
        F.batch_norm(part, None, None, norm.weight, norm.bias, training=True, eps=1e-5) for part in x.split(group)
    ]
    torch.testing.assert_close(norm(x), torch.cat(wanted))


def test_local_batch_norm_refuses_a_batch_that_has_no_equal_groups() -> None:
    with pytest.raises(ValueError, match="batch of 11 can't be cut into 2 equal groups"):
        LocalBatchNorm(5)(torch.zeros(11, 5, 9))


@pytest.mark.parametrize("condition_width", [0, 6])
def test_head_agrees_with_layers_of_torch(condition_width: int) -> None:
    head = DiscriminatorHead(4, condition_width, label_width=5).double()
    initialise(head, 1)
    spectral = nn.utils.spectral_norm
    circular = nn.Conv1d(4, 4, 9, padding=4, padding_mode="circular")
    layers = [spectral(layer) for layer in (nn.Conv1d(4, 4, 1), circular, nn.Conv1d(4, 5 if condition_width else 1, 1))]
    for layer, name in zip(layers, ("main.0.0", "main.1.fn.0", "cls"), strict=True):
        mine = head.get_submodule(name).state_dict()
        layer.double().load_state_dict({key: tensor.clone() for key, tensor in mine.items()})
    x, c = random_batch(8, 4, 12), random_batch(8, 6)

    def activate(y: Tensor) -> Tensor:
        return F.leaky_relu(F.batch_norm(y, None, None, training=True), 0.2)

    def oracle() -> Tensor:
        y = activate(layers[0](x))
        y = layers[2]((y + activate(layers[1](y))) / math.sqrt(2))
        assert isinstance(y, Tensor)
        if not condition_width:
            return y[:, 0]
        state = head.cmapper.state_dict()
        return torch.einsum("nct,nc->nt", y, c @ state["weight"].T / math.sqrt(6)) / math.sqrt(5)

    for _ in range(2):
        torch.testing.assert_close(head(x, c if condition_width else None), oracle())


def test_full_size_discriminator_gives_a_logit_for_each_patch_of_each_tap() -> None:
    with torch.device("meta"):
        discriminator = DinoDiscriminator(DinoDiscriminatorConfig(768))
        logits = discriminator(torch.zeros(8, 3, 64, 64), torch.zeros(8, 768))
    assert logits.shape == (8, 980)
    trained = sum(parameter.numel() for parameter in discriminator.parameters() if parameter.requires_grad)
    per_head = (384 * 384 * (1 + 9) + 2 * 384 + 4 * 384) + (384 * 64 + 64) + (768 * 64 + 64)
    assert trained == 5 * per_head == 7_753_600  # no paper gives a count
    assert {"dino.model.model.cls_token", "heads.4.main.1.fn.0.weight_u", "heads.0.cmapper.bias"} <= set(
        discriminator.state_dict()
    )


def crops(probability: float, size: int, draws: int = 40) -> list[Tensor]:
    """What DINO gets to see of an image whose pixels all differ."""
    discriminator = ready(replace(SMALL, crop_probability=probability)).eval()
    seen: list[Tensor] = []
    discriminator.dino.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.linspace(-1, 1, size * size).view(1, 1, size, size).expand(2, 3, -1, -1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        discriminator(image, torch.zeros(2, 6), generator)
    return seen


def test_larger_images_are_cropped_at_one_place_with_the_given_probability() -> None:
    whole = torch.linspace(0, 1, 40 * 40).view(40, 40)
    corners = set()
    cropped = [x for x in crops(0.5, 40) if x.shape[-1] == 32]
    assert 10 < len(cropped) < 30
    for x in cropped:
        assert torch.equal(x, x[:1, :1].expand_as(x))
        top, left = divmod(int((whole - x[0, 0, 0, 0]).abs().argmin()), 40)
        torch.testing.assert_close(x[0, 0], whole[top : top + 32, left : left + 32])
        corners.add((top, left))
    assert len(corners) > 5
    assert all(x.shape[-1] == 40 for x in crops(0.0, 40, 10))


def test_images_of_the_size_of_dino_are_never_cropped() -> None:
    assert all(torch.equal(x, crops(1.0, 32, 1)[0]) for x in crops(1.0, 32, 5))
    assert all(x.shape[-1] == 32 for x in crops(1.0, 33, 5))


def test_augmentation_repeats_with_its_generator() -> None:
    discriminator = ready(replace(SMALL, augment=True)).eval()
    images, c = torch.ones(2, 3, 32, 32), torch.ones(2, 6)
    first, again, other = (discriminator(images, c, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, ready(SMALL).eval()(images, c))


def test_training_touches_the_heads_only() -> None:
    discriminator = ready(SMALL).requires_grad_(False).requires_grad_(True).train()
    assert discriminator.heads.training
    assert not any(module.training for module in discriminator.dino.modules())
    images, c = random_batch(8, 3, 32, 32).float().requires_grad_(), torch.ones(8, 6)
    difference = discriminator(images, c) - discriminator(-images, c)  # two passes before one gradient
    torch.autograd.backward(difference.square().sum())
    for name, parameter in discriminator.named_parameters():
        assert (parameter.grad is not None) == name.startswith("heads."), name
    assert images.grad is not None
    copied = copy.deepcopy(discriminator).double().eval()
    assert copied(images.double(), c.double()).dtype == torch.float64


def test_text_features_must_fit() -> None:
    discriminator = ready(SMALL)
    with pytest.raises(ValueError, match="text features of width 0 for a discriminator that takes width 6"):
        discriminator(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="text features of width 5"):
        discriminator(torch.zeros(2, 3, 32, 32), torch.zeros(2, 5))


def test_official_dino_config_translates_arguments() -> None:
    assert official_dino_config({"c_dim": 768}) == DinoDiscriminatorConfig(768)
    config = official_dino_config({"c_dim": 0, "diffaug": False, "p_crop": 0.0}, TINY_VIT)
    assert config == DinoDiscriminatorConfig(0, augment=False, crop_probability=0.0, vit_kwargs=TINY_VIT)
    with pytest.raises(ValueError, match="unknown arguments hooks"):
        official_dino_config({"c_dim": 0, "hooks": [1]})
