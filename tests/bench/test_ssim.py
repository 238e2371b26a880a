from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage

from bench.metrics.ssim import ssim


def images(n: int, height: int, width: int, seed: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def ssim_by_scipy(a: torch.Tensor, b: torch.Tensor) -> float:
    """SSIM of two planes by SciPy's Gaussian filter (radius 5), whose padded border of 5 pixels is cut off."""

    def smooth(plane: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        filtered: npt.NDArray[np.float64] = ndimage.gaussian_filter(plane, sigma=1.5, radius=5)[5:-5, 5:-5]
        return filtered

    x, y = a.double().numpy(), b.double().numpy()
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y, cov = smooth(x**2) - mean_x**2, smooth(y**2) - mean_y**2, smooth(x * y) - mean_x * mean_y
    c1, c2 = 6.5025, 58.5225
    index = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(index.mean())


def test_ssim_agrees_with_scipy_per_channel() -> None:
    a = images(2, 24, 31, seed=0)
    b = (a.double() * 0.7 + images(2, 24, 31, seed=1).double() * 0.3).to(torch.uint8)
    expected = [np.mean([ssim_by_scipy(a[i, c], b[i, c]) for c in range(3)]) for i in range(2)]
    got = ssim(a, b)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx(expected, rel=1e-12)
    assert 0.2 < min(expected) < max(expected) < 0.99


def test_ssim_of_an_image_with_itself_is_one() -> None:
    a = images(2, 16, 16, seed=0)
    assert ssim(a, a).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_ssim_of_flat_images_compares_luminance_only() -> None:
    a, b = (torch.full((1, 3, 11, 11), level, dtype=torch.uint8) for level in (50, 150))
    assert float(ssim(a, b)) == pytest.approx((2 * 50 * 150 + 6.5025) / (50**2 + 150**2 + 6.5025), rel=1e-10)


def test_ssim_of_a_negative_is_negative() -> None:
    a = images(1, 32, 32, seed=0)
    assert float(ssim(a, 255 - a)) < -0.5


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match=r"\[10, 40\] pixels are smaller"):
        ssim(images(1, 10, 40, seed=0), images(1, 10, 40, seed=1))
    with pytest.raises(ValueError, match="two uint8 batches"):
        ssim(images(1, 16, 16, seed=0).float(), images(1, 16, 16, seed=1).float())
