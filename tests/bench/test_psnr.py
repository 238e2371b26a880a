from __future__ import annotations

import math

import pytest
import torch

from bench.metrics.psnr import psnr, psnr_of_mean_error


def grey(*levels: int) -> torch.Tensor:
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 6, 5)


def test_psnr_of_uniform_differences_has_its_closed_form() -> None:
    got = psnr(grey(0, 100, 200), grey(255, 99, 210))
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx([0, 20 * math.log10(255), 20 * math.log10(25.5)], rel=1e-14, abs=1e-12)


def test_psnr_averages_the_error_over_pixels_and_channels() -> None:
    image = grey(7).clone()
    image[0, 1, 2, 3] += 30
    assert float(psnr(grey(7), image)) == pytest.approx(10 * math.log10(255**2 * 90 / 900), rel=1e-14)


def test_psnr_of_identical_images_is_infinite() -> None:
    assert psnr(grey(1, 2), grey(1, 3)).tolist() == [math.inf, pytest.approx(20 * math.log10(255))]


def test_psnr_of_mean_error_averages_before_the_logarithm() -> None:
    first, second = grey(10, 10, 10), grey(10, 14, 12)
    assert psnr_of_mean_error(first, second) == pytest.approx(10 * math.log10(255**2 / (20 / 3)), rel=1e-14)
    assert psnr_of_mean_error(first, second) < float(psnr(first, second).mean())


@pytest.mark.parametrize("other", [grey(1).float(), grey(1, 1), grey(1)[:, :, 1:], grey(1)[0]])
def test_psnr_refuses_all_but_uint8_batches_of_one_shape(other: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="two uint8 batches of one shape"):
        psnr(grey(1), other)
