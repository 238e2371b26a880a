from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.metrics.path_length import STEP, kept_distances, path_length, step_distances, step_towards


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean(dim=(1, 2, 3))


def test_step_goes_a_ten_thousandth_of_the_way() -> None:
    start, end = torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[3.0, 2.0]]])
    assert torch.allclose(step_towards(start, end), torch.tensor([[[1.0002, -1.9996]]]), rtol=0, atol=1e-7)


def test_step_distance_of_an_image_that_follows_its_latent_is_the_squared_speed() -> None:
    speed = torch.tensor([0.5, 3.0], dtype=torch.float64).view(2, 1, 1, 1)
    before = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    assert step_distances(before, before + STEP * speed, mean_square).tolist() == pytest.approx([0.25, 9.0], rel=1e-9)


@pytest.mark.parametrize(("size", "seen"), [(128, 128), (256, 256), (384, 384), (512, 256), (1024, 256)])
def test_images_are_averaged_down_to_256_pixels_by_a_whole_factor(size: int, seen: int) -> None:
    shapes: list[torch.Size] = []

    def distance(a: Tensor, b: Tensor) -> Tensor:
        shapes.extend([a.shape, b.shape])
        return mean_square(a, b)

    checkers = torch.ones(1, 1, size, size)
    checkers[..., ::2, :] *= -1
    value = float(step_distances(checkers, torch.zeros_like(checkers), distance)) * STEP**2
    assert shapes == [torch.Size([1, 3, seen, seen])] * 2, "grey images are compared in three channels"
    assert value == pytest.approx(0.0 if seen < size else 1.0), "averaging cancels stripes of one pixel"


def test_kept_distances_lose_a_percent_at_either_end_and_keep_the_bounds() -> None:
    order = torch.from_numpy(np.random.default_rng(0).permutation(1000)).float()
    kept = kept_distances(order)
    assert sorted(kept.tolist()) == list(range(9, 991)), "of 0..999 the bounds are the values at 9.99 and 989.01"
    assert path_length(order) == pytest.approx(499.5)


def test_path_length_ignores_outliers_and_is_the_mean_of_few_values() -> None:
    values = torch.ones(1000)
    values[:5] = 1e9
    assert path_length(values) == 1.0
    assert path_length(torch.tensor([1.0, 2.0, 6.0])) == 3.0, "of few values none lies outside the percentiles"


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([1.0, float("nan")])])
def test_path_length_refuses_what_has_no_mean(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="finite values"):
        path_length(bad)
