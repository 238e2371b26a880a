from __future__ import annotations

from typing import Any

import pytest
import torch

from models.layers import initialise
from models.training.stylegan2_discriminator import (
    DiscriminatorConfig,
    StyleGAN2Discriminator,
    official_discriminator_config,
)

ADA = "training.networks.Discriminator"
TINY: dict[str, Any] = {"resolution": 16, "channel_base": 64, "channel_max": 8, "mapping_layers": 1}


@pytest.mark.parametrize(
    ("kwargs", "count"),
    [
        ({"img_resolution": 1024}, 29_012_513),
        ({"img_resolution": 512}, 28_982_849),
        ({"img_resolution": 256}, 28_864_129),
        ({"img_resolution": 256, "channel_base": 16384}, 24_001_089),
        ({"img_resolution": 32, "c_dim": 10, "architecture": "orig"}, 23_089_664),
    ],
)
def test_full_size_discriminators_have_the_published_number_of_parameters(kwargs: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        discriminator = StyleGAN2Discriminator(official_discriminator_config(ADA, kwargs))
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == count


def test_conditional_discriminator_judges_an_image_by_its_label() -> None:
    discriminator = StyleGAN2Discriminator(DiscriminatorConfig(**TINY, num_classes=3))
    initialise(discriminator, 0)
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).expand(3, -1, -1, -1)
    logits = discriminator(image, torch.eye(3))
    assert logits.shape == (3, 1)
    assert len(set(logits.flatten().tolist())) == 3


def test_discriminator_refuses_labels_that_it_does_not_have_or_lacks() -> None:
    images = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="labels for a discriminator of 0 classes"):
        StyleGAN2Discriminator(DiscriminatorConfig(**TINY))(images, torch.eye(1))
    with pytest.raises(ValueError, match="no labels for a discriminator of 3 classes"):
        StyleGAN2Discriminator(DiscriminatorConfig(**TINY, num_classes=3))(images)


def test_discriminator_config_refuses_what_has_no_network() -> None:
    with pytest.raises(ValueError, match="resolution 24 is not a power of two"):
        DiscriminatorConfig(24)
    with pytest.raises(ValueError, match="architecture 'dense' is not one of skip, resnet, orig"):
        DiscriminatorConfig(32, architecture="dense")  # type: ignore[arg-type]


def test_official_discriminator_config_translates_nested_arguments() -> None:
    config = official_discriminator_config(
        ADA,
        {
            "c_dim": 10,
            "img_resolution": 32,
            "num_fp16_res": 4,
            "mapping_kwargs": {"num_layers": 2},
            "epilogue_kwargs": {"mbstd_group_size": None},
        },
    )
    assert config == DiscriminatorConfig(32, 10, num_fp16_res=4, mapping_layers=2, mbstd_group_size=None)
    with pytest.raises(ValueError, match=r"unknown arguments freeze_layers; known: .*block_kwargs\.freeze_layers"):
        official_discriminator_config(ADA, {"img_resolution": 32, "freeze_layers": 7})
    with pytest.raises(ValueError, match="no StyleGAN2 discriminator; known: training"):
        official_discriminator_config("training.networks.Generator", {"img_resolution": 32})
    with pytest.raises(ValueError, match="cmap_dim 0 of a conditional"):
        official_discriminator_config(ADA, {"img_resolution": 32, "c_dim": 2, "cmap_dim": 0})
