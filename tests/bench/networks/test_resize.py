from __future__ import annotations

import pytest
import torch
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from bench.networks.resize import tf1_bilinear
from tests.bench.networks.random_networks import noise_images


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 300), (299, 64), (512, 40)])
@pytest.mark.parametrize("size", [224, 299])
def test_tf1_bilinear_is_torch_fidelitys_to_the_bit(height: int, width: int, size: int) -> None:
    images = noise_images(2, height, width)
    reference = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(size, size), align_corners=False)
    assert torch.equal(tf1_bilinear(images, size), reference)


def test_tf1_bilinear_leaves_the_images_alone() -> None:
    images = noise_images(1, 24, 24).float()
    before = images.clone()
    tf1_bilinear(images, 24)
    tf1_bilinear(images, 48)
    assert torch.equal(images, before)
