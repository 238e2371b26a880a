from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from bench.errors import UserError
from bench.networks.extractors import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_images,
    check_pair,
    fill,
    full_float32,
    normalised,
    on_meta,
    pil_images,
)
from bench.weights import LocalWeights
from tests.bench.networks.random_networks import SHA256, noise_images

WEIGHTS = LocalWeights("vgg16", Path("own.pth"), SHA256, official=False)


@pytest.mark.parametrize("allowed", [True, False])
def test_full_float32_switches_tf32_off_and_back(allowed: bool) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = allowed
        with full_float32():
            assert matmul.fp32_precision == "ieee"
            assert cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]
            assert cudnn.deterministic
        assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic) == (allowed, allowed, False)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_check_images_refuses_what_is_no_image(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[N, 3, H, W\], got"):
        check_images(wrong)


def test_check_pair_refuses_two_shapes() -> None:
    with pytest.raises(ValueError, match="one shape and dtype"):
        check_pair(noise_images(2, 32, 32), noise_images(1, 32, 32))


def test_fill_gives_a_meta_network_its_weights_and_switches_training_off() -> None:
    state = torch.get_rng_state()
    network = on_meta(lambda: nn.Sequential(nn.Linear(2, 3), nn.Dropout()))
    fill(network, {"0.weight": torch.ones(3, 2), "0.bias": torch.zeros(3)}, WEIGHTS)
    assert network(torch.ones(1, 2)).tolist() == [[2, 2, 2]]
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "tensors", [{"weight": torch.ones(3, 2)}, {"weight": torch.ones(2, 2), "bias": torch.zeros(3)}]
)
def test_fill_says_which_file_holds_another_network_and_where_the_right_one_is(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"own\.pth does not hold the weights vgg16: .*bench fetch vgg16"):
        fill(on_meta(lambda: nn.Linear(2, 3)), tensors, WEIGHTS)


def test_pil_images_are_the_pixels() -> None:
    images = noise_images(2, 8, 12)
    pictures = pil_images(images)
    assert [picture.size for picture in pictures] == [(12, 8)] * 2
    assert torch.equal(torch.from_numpy(np.stack([np.array(p) for p in pictures])).permute(0, 3, 1, 2), images)


def test_normalised_is_torchvisions() -> None:
    pixels = noise_images(2, 8, 12).float() / 255
    expected = torchvision.transforms.functional.normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.equal(normalised(pixels, IMAGENET_MEAN, IMAGENET_STD), expected)
