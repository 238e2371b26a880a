from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.layers import initialise
from models.training.losses import r1_penalty
from models.training.stylegan1_discriminator import (
    DiscriminatorConfig,
    StyleGAN1Discriminator,
    build,
    official_discriminator_config,
)
from tests.models import naive_stylegan1

SMALL: dict[str, Any] = {"resolution": 16, "fmaps_base": 128, "fmaps_max": 12}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"resolution": 8, "image_channels": 1, "minibatch_std_group_size": 2},
    {"resolution": 128, "fmaps_base": 512, "fmaps_max": 6},
    {"fused_scale": True, "label_size": 3},
    {"fused_scale": False, "use_wscale": False, "minibatch_std_group_size": 1},
]


def make(**kwargs: Any) -> StyleGAN1Discriminator:
    discriminator = StyleGAN1Discriminator(official_discriminator_config({**SMALL, **kwargs}))
    discriminator.load_state_dict(naive_stylegan1.randomised(list(discriminator.state_dict().items()), 0))
    return discriminator


def images(discriminator: StyleGAN1Discriminator, count: int = 4) -> Tensor:
    config = discriminator.config
    shape = (count, config.img_channels, config.resolution, config.resolution)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_discriminator_agrees_with_its_formulas(options: dict[str, Any]) -> None:
    discriminator, kwargs = make(**options).double(), {**SMALL, **options}
    real = images(discriminator).double().requires_grad_()
    label = torch.eye(3).double()[[0, 1, 2, 0]] if "label_size" in options else None
    for lod in (0, 1):
        want = naive_stylegan1.scores(dict(discriminator.state_dict()), kwargs, real, label, lod)
        got = discriminator(real, label, lod=float(lod))
        assert got.shape == (4, 1)
        assert (got - want).abs().max() < 1e-9 * want.abs().max()
        gradients = [torch.autograd.grad(scores.sum(), real)[0] for scores in (got, want)]
        assert (gradients[0] - gradients[1]).abs().max() < 1e-9 * gradients[1].abs().max()


def test_between_two_lods_the_features_fade() -> None:
    discriminator = make().double()
    real = images(discriminator).double()
    below, above = discriminator(real, lod=1e-9), discriminator(real, lod=1 - 1e-9)
    assert torch.allclose(below, discriminator(real, lod=0.0), rtol=1e-6)
    assert torch.allclose(above, discriminator(real, lod=1.0), rtol=1e-6)
    assert not torch.allclose(below, above, rtol=1e-3)
    discriminator.lod.fill_(0.5)
    assert torch.equal(discriminator(real), discriminator(real, lod=0.5))
    with pytest.raises(ValueError, match=r"lod 2.5; allowed are 0 .* to 2"):
        discriminator(real, lod=2.5)


def test_r1_penalty_reaches_the_weights() -> None:
    discriminator = make()
    real = images(discriminator).requires_grad_()
    r1_penalty(discriminator(real), real).mean().backward()
    for name in ("layer0.weight", "layer1.weight", "input0.weight"):
        gradient = discriminator.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(("resolution", "count"), [(1024, 23_087_249), (256, 23_052_353)])
def test_full_size_discriminators_have_the_papers_number_of_parameters(resolution: int, count: int) -> None:
    with torch.device("meta"):
        discriminator = build(resolution=resolution)  # the paper prints 23.1 M
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == count


def test_discriminator_refuses_labels_that_it_does_not_have_or_lacks() -> None:
    with pytest.raises(ValueError, match="labels for a discriminator of 0 classes"):
        make()(torch.zeros(1, 3, 16, 16), torch.eye(1))
    with pytest.raises(ValueError, match="no labels for a discriminator of 3 classes"):
        make(label_size=3)(torch.zeros(1, 3, 16, 16))


def test_official_discriminator_config_refuses_what_it_does_not_know() -> None:
    assert official_discriminator_config({"resolution": 16, "label_size": 2}) == DiscriminatorConfig(16, 2)
    with pytest.raises(ValueError, match="unknown arguments cmap_dim"):
        official_discriminator_config({"resolution": 16, "cmap_dim": 7})
    with pytest.raises(ValueError, match="fused_scale 'no' is not one of True, False, auto"):
        official_discriminator_config({"resolution": 16, "fused_scale": "no"})
    with pytest.raises(ValueError, match="resolution 24 is not a power of two"):
        DiscriminatorConfig(24)


def test_discriminator_is_made_again_from_its_kwargs_and_starts_at_random() -> None:
    discriminator = make(label_size=3, use_wscale=False)
    again = build(**discriminator.kwargs)
    assert again.config == discriminator.config
    initialise(again, 0)
    scores = again(images(again), torch.eye(3)[[0, 1, 2, 0]])
    assert scores.std() > 0
    assert again.target == "models.training.stylegan1_discriminator:build"
