from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from models.layers import initialise
from models.training.feature_networks import (
    DINO,
    DeitFeatures,
    DinoFeatures,
    EfficientNetFeatures,
    build_feature_network,
)

DEIT = "deit_tiny_distilled_patch16_224"
LITE = "tf_efficientnet_lite0"
TINY_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3}


def images(size: int, count: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def randomised(name: str, **kwargs: Any) -> Any:
    network = timm.create_model(name, pretrained=False, **kwargs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return network.eval()


def test_efficientnet_taps_are_those_of_timm_with_weights_of_timm() -> None:
    oracle = randomised(LITE)
    network = EfficientNetFeatures(LITE)
    network.load_backbone(oracle.state_dict())
    wanted = oracle.forward_intermediates(images(64), indices=[1, 2, 3, 4], intermediates_only=True)
    for got, want in zip(network(images(64)), wanted, strict=True):
        torch.testing.assert_close(got, want)
    assert network.channels == (24, 40, 112, 320)
    names = network.state_dict().keys()
    assert {"layer0.0.weight", "layer0.1.running_mean", "layer0.3.0.conv_dw.weight", "layer3.1.0.bn3.bias"} <= names


def test_efficientnet_refuses_weights_that_lack_a_tensor() -> None:
    weights = timm.create_model(LITE, pretrained=False).state_dict()
    del weights["blocks.3.0.bn1.bias"]
    with pytest.raises(RuntimeError, match=r"layer2\.0\.0\.bn1\.bias"):
        EfficientNetFeatures(LITE).load_backbone(weights)


def test_deit_maps_are_convolved_tokens_without_class_and_distillation() -> None:
    oracle = randomised(DEIT)
    network = DeitFeatures(DEIT)
    initialise(network, 0)
    network.load_backbone(oracle.state_dict())
    maps = network(images(224))
    assert [tuple(x.shape[1:]) for x in maps] == [(24, 56, 56), (48, 28, 28), (96, 14, 14), (192, 7, 7)]
    tapped = oracle.forward_intermediates(images(224), indices=[2, 5, 8, 11], intermediates_only=True)
    state = network.state_dict()
    for i, (got, tokens) in enumerate(zip(maps, tapped, strict=True)):
        name = f"layer{i + 1}"
        want = nn.functional.conv2d(tokens, state[f"{name}.3.weight"], state[f"{name}.3.bias"])
        if i < 2:
            want = nn.functional.conv_transpose2d(
                want, state[f"{name}.4.weight"], state[f"{name}.4.bias"], stride=(4, 2)[i]
            )
        if i == 3:
            want = nn.functional.conv2d(want, state[f"{name}.4.weight"], state[f"{name}.4.bias"], stride=2, padding=1)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_reset_draws_the_convolutions_behind_deit_and_leaves_the_backbone() -> None:
    network = DeitFeatures(DEIT)
    backbone = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    initialise(network, 5)
    weight = network.state_dict()["layer4.3.weight"].clone()
    bound = 1 / np.sqrt(192)
    assert 0.99 * bound < weight.abs().max() <= bound
    assert abs(weight.mean()) < 0.01 * bound
    initialise(network, 6)
    assert not torch.equal(weight, network.state_dict()["layer4.3.weight"])
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in network.model.state_dict().items())


def test_dino_adds_the_class_token_and_takes_the_embedded_patches_last() -> None:
    oracle = randomised(DINO, num_classes=0, **TINY_VIT)
    network = DinoFeatures(vit_kwargs=TINY_VIT)
    network.load_backbone(oracle.state_dict())
    features = network(images(64, 2))
    assert [tuple(x.shape) for x in features] == [(2, 24, 16)] * 5
    pooled = nn.functional.avg_pool2d(images(64, 2), 2)  # what "area" is where sizes divide
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalized = (pooled - mean[:, None, None]) / std[:, None, None]
    tapped = oracle.forward_intermediates(
        normalized, indices=[2, 5, 8, 11], return_prefix_tokens=True, intermediates_only=True
    )
    for got, (patches, prefix) in zip(features[:4], tapped, strict=True):
        torch.testing.assert_close(got, patches.flatten(2) + prefix.transpose(1, 2))
    embedded = oracle.patch_embed(normalized) + oracle.pos_embed[:, 1:]
    token = oracle.cls_token + oracle.pos_embed[:, :1]
    torch.testing.assert_close(features[4], (embedded + token).transpose(1, 2))


def test_dino_without_a_twelfth_block_is_refused() -> None:
    with pytest.raises(ValueError, match="has 6 blocks"):
        DinoFeatures(vit_kwargs={**TINY_VIT, "depth": 6})


def test_feature_networks_are_frozen_and_the_same_each_time() -> None:
    before = torch.random.get_rng_state()
    network, again = (EfficientNetFeatures(LITE).train() for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())
    image = images(64).requires_grad_()
    torch.autograd.backward(network(network.normalize(image))[3].sum())
    assert image.grad is not None
    assert image.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("name", "value"), [(LITE, [-1.0, -1.0, -1.0]), (DEIT, [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])]
)
def test_normalisation_is_that_of_the_training_of_each_network(name: str, value: list[float]) -> None:
    black = build_feature_network(name).normalize(torch.zeros(1, 3, 1, 1))
    assert black.flatten().tolist() == pytest.approx(value)


def test_unknown_feature_network_is_refused() -> None:
    with pytest.raises(ValueError, match="no feature network 'resnet50'; allowed are tf_efficientnet_lite0 to 4"):
        build_feature_network("resnet50")
