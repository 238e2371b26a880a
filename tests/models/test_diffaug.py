from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.training.diffaug import AugmentationDraws, diff_augment, draw_augmentation


def neutral(count: int, size: int) -> AugmentationDraws:
    """Changes nothing but the box that is cut out, which lies in the lower right corner."""
    return AugmentationDraws(
        brightness=torch.zeros(count),
        saturation=torch.ones(count),
        contrast=torch.ones(count),
        shift=torch.zeros(count, 2, dtype=torch.int64),
        cutout=torch.full((count, 2), size),
    )


def random_images(count: int = 4, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


def test_cutout_zeroes_a_box_of_a_fifth_of_the_size() -> None:
    draws = replace(neutral(3, 20), cutout=torch.tensor([[10, 4], [0, 10], [20, 20]]))
    kept = diff_augment(torch.ones(3, 3, 20, 20), draws)
    want = torch.ones(3, 3, 20, 20)
    want[0, :, 8:12, 2:6] = 0
    want[1, :, 0:2, 8:12] = 0  # half of it lies above the image
    want[2, :, 18:, 18:] = 0
    assert torch.equal(kept, want)


def test_translation_moves_down_and_right_and_fills_with_zeros() -> None:
    images = random_images(2)
    draws = replace(neutral(2, 16), shift=torch.tensor([[2, -1], [0, 1]]), cutout=torch.tensor([[99, 99], [99, 99]]))
    moved = diff_augment(images, draws)
    want = torch.zeros_like(images)
    want[0, :, 2:, :-1] = images[0, :, :-2, 1:]
    want[1, :, :, 1:] = images[1, :, :, :-1]
    torch.testing.assert_close(moved, want)


def test_colour_changes_brightness_then_saturation_then_contrast_of_each_image() -> None:
    images = random_images(2)
    draws = replace(
        neutral(2, 99),
        brightness=torch.tensor([0.25, 0.0]),
        saturation=torch.tensor([0.5, 1.0]),
        contrast=torch.tensor([1.5, 1.0]),
    )
    changed = diff_augment(images, draws)
    torch.testing.assert_close(changed[1], images[1])
    bright = images[0] + 0.25
    grey = bright.mean(dim=0)
    dull = 0.5 * bright + 0.5 * grey
    torch.testing.assert_close(changed[0], 1.5 * dull - 0.5 * dull.mean())


def test_gradients_reach_the_images() -> None:
    images = random_images(2, 8).requires_grad_()
    draws = draw_augmentation(images, torch.Generator().manual_seed(3))
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, draws), images)


@pytest.mark.parametrize("size", [16, 30])
def test_draws_fill_their_ranges(size: int) -> None:
    images = torch.zeros(4000, 3, size, size + 10)
    draws = draw_augmentation(images, torch.Generator().manual_seed(0))
    for values, low, high in ((draws.brightness, -0.5, 0.5), (draws.saturation, 0, 2), (draws.contrast, 0.5, 1.5)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    for axis, extent in enumerate((size, size + 10)):
        reach, box = round(extent * 0.125 + 1e-9), round(extent * 0.2)
        assert draws.shift[:, axis].unique().tolist() == list(range(-reach, reach + 1))
        assert draws.cutout[:, axis].unique().tolist() == list(range(extent + 1 - box % 2))


def test_draws_repeat_with_the_generator_and_differ_between_images() -> None:
    images = torch.zeros(8, 3, 16, 16)
    first, again, other = (draw_augmentation(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for name in AugmentationDraws.__dataclass_fields__:
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
        assert len(getattr(first, name).unique(dim=0)) > 1
