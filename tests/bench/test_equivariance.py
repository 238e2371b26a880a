"""EQ-T and EQ-R on images whose shifted and rotated versions have closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.metrics import equivariance
from bench.metrics.equivariance import Transformed

SIZE = 48


def positions(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """x and y of the pixels in pixels from the centre, float64 `[size, size]`."""
    line = torch.arange(size, dtype=torch.float64) + 0.5 - size / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y


def wave(frequency: tuple[float, float], right: float = 0.0, down: float = 0.0) -> Tensor:
    """A plane wave of cycles a pixel, moved by pixels, `[1, 1, SIZE, SIZE]`."""
    x, y = positions()
    phase = frequency[0] * (x - right) + frequency[1] * (y - down)
    return torch.cos(2 * math.pi * phase)[None, None]


def rings(frequency: float) -> Tensor:
    """A radial image that has one spatial frequency only, a Bessel function of cycles a pixel."""
    x, y = positions()
    values: Tensor = torch.special.bessel_j0(2 * math.pi * frequency * torch.hypot(x, y))
    return values[None, None]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def largest_gap(transformed: Transformed, expected: Tensor) -> float:
    """Over the pixels that count."""
    return float(((transformed.images - expected) * transformed.mask).abs().max())


@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, -2), (-5, 4), (6, 6)])
def test_whole_shift_is_a_roll_where_it_counts(right: int, down: int) -> None:
    images = noise(2, 3, 20, 24)
    moved = equivariance.shift_whole(images, right, down)
    assert largest_gap(moved, images.roll((down, right), dims=(2, 3))) == 0
    assert int(moved.mask.sum()) == (24 - abs(right)) * (20 - abs(down))


def test_shift_out_of_sight_leaves_nothing_that_counts() -> None:
    assert not equivariance.shift_whole(noise(1, 1, 8, 8), 9, 0).mask.any()
    with pytest.raises(ValueError, match="no pixel counts"):
        equivariance.equivariance_psnr(torch.zeros(3, 2))


@pytest.mark.parametrize(("right", "down"), [(0.0, 0.0), (2.0, -3.0)])
def test_shift_by_whole_numbers_needs_no_filter(right: float, down: float) -> None:
    images = noise(1, 2, SIZE, SIZE)
    moved = equivariance.shift(images, right, down)
    assert largest_gap(moved, images.roll((int(down), int(right)), dims=(2, 3))) < 1e-14
    inside = (SIZE - 5 - max(0, abs(right) - 2)) * (SIZE - 5 - max(0, abs(down) - 3))
    assert int(moved.mask.sum()) == inside, "five pixels along each axis are the filter's margin"


@pytest.mark.parametrize(("right", "down"), [(2.3, -4.6), (-0.5, 0.5), (-5.9, 5.01)])
def test_shift_moves_a_band_limited_image(right: float, down: float) -> None:
    for frequency, tolerance in (((0.05, 0.02), 0.01), ((0.2, -0.1), 0.03)):
        moved = equivariance.shift(wave(frequency), right, down)
        assert largest_gap(moved, wave(frequency, right, down)) < tolerance
        assert largest_gap(moved, wave(frequency, -right, -down)) > 10 * tolerance, "the other direction is wrong"


@pytest.mark.parametrize("turns", [0, 1, 2, -1])
def test_rotation_by_right_angles_moves_pixels(turns: int) -> None:
    image = wave((0.2, 0.1))
    rotated = equivariance.rotate(image, turns * math.pi / 2)
    assert largest_gap(rotated, torch.rot90(image, turns, dims=(2, 3))) < 1e-4
    assert int(rotated.mask.sum()) == (SIZE - 12) ** 2


def test_rotation_takes_a_blob_where_it_belongs() -> None:
    x, y = positions()
    angle = math.pi / 3
    cos, sin = math.cos(angle), math.sin(angle)

    def blob(right: float, down: float) -> Tensor:
        return torch.exp(-((x - right) ** 2 + (y - down) ** 2) / 18)[None, None]

    rotated = equivariance.rotate(blob(8, 4), angle)
    assert largest_gap(rotated, blob(8 * cos + 4 * sin, 4 * cos - 8 * sin)) < 3e-3, "counter-clockwise on the screen"


@pytest.mark.parametrize("angle", [0.3, 1.0, -2.5])
def test_rotation_leaves_rings_as_they_are(angle: float) -> None:
    for frequency, tolerance in ((0.1, 0.004), (0.2, 0.015)):
        assert largest_gap(equivariance.rotate(rings(frequency), angle), rings(frequency)) < tolerance
        assert largest_gap(equivariance.limit_as_rotation(rings(frequency), angle), rings(frequency)) < tolerance


def test_limit_takes_the_corners_of_the_spectrum_only_if_the_rotation_loses_them() -> None:
    corner = wave((0.42, 0.42))
    assert largest_gap(equivariance.limit_as_rotation(corner, 0.0), corner) < 1e-2
    assert largest_gap(equivariance.limit_as_rotation(corner, math.pi / 2), corner) < 1e-2
    assert largest_gap(equivariance.limit_as_rotation(corner, math.pi / 4), torch.zeros_like(corner)) < 0.2


def test_limit_takes_what_the_rotated_image_can_not_have() -> None:
    angle = 0.7
    cos, sin = math.cos(angle), math.sin(angle)
    low, corner = (0.1, 0.15), (-0.42, 0.42)  # before the rotation the corner's frequency is past the band
    assert abs(cos * corner[0] - sin * corner[1]) > 0.5
    turned = (cos * low[0] + sin * low[1], cos * low[1] - sin * low[0])
    image = wave(turned) + wave(corner)
    rotated, limited = equivariance.rotate(wave(low), angle), equivariance.limit_as_rotation(image, angle)
    both = Transformed(rotated.images, rotated.mask & limited.mask)
    with_limit = equivariance.equivariance_psnr(equivariance.squared_errors(both, limited.images))
    without = equivariance.equivariance_psnr(equivariance.squared_errors(both, image))
    assert with_limit > 25
    assert without < 15


@pytest.mark.parametrize(
    "transform",
    [
        lambda images: equivariance.shift(images, 1.3, -2.2),
        lambda images: equivariance.rotate(images, 0.4),
        lambda images: equivariance.limit_as_rotation(images, 0.4),
    ],
)
def test_brightness_is_kept_wherever_pixels_count(transform: object) -> None:
    grey = torch.full((1, 2, 33, 40), 0.7, dtype=torch.float64)
    moved = transform(grey)  # type: ignore[operator]
    assert moved.mask.any()
    assert largest_gap(moved, grey) < 1e-14


def test_matrices_say_where_an_output_position_comes_from() -> None:
    at = torch.tensor([0.1, 0.2, 1.0], dtype=torch.float64)
    shifted = equivariance.shift_input(0.05, -0.1) @ at
    assert shifted.tolist() == pytest.approx([0.05, 0.3, 1])
    turned = equivariance.rotate_input(math.pi / 2) @ at
    assert turned.tolist() == pytest.approx([-0.2, 0.1, 1])


def test_psnr_pools_the_error_of_all_values_that_count() -> None:
    reference = Transformed(torch.zeros(2, 3, 4, 4), torch.ones(4, 4, dtype=torch.bool))
    images = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.4)])
    sums = equivariance.squared_errors(reference, images)
    assert sums[:, 1].tolist() == [48, 48]
    assert equivariance.equivariance_psnr(sums) == pytest.approx(10 * math.log10(4 / 0.1), rel=1e-6)
    few = sums * torch.tensor([[1.0], [0.25]], dtype=torch.float64)  # an image of which fewer pixels count weighs less
    assert equivariance.equivariance_psnr(few) == pytest.approx(10 * math.log10(4 * 60 / (48 * 0.04 + 12 * 0.16)))
    assert equivariance.equivariance_psnr(torch.tensor([[0.0, 5.0]])) == math.inf


def test_masked_values_do_not_count() -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 0] = True
    images = torch.full((1, 3, 4, 4), 7.0)
    images[..., 0, 0] = 0.5
    sums = equivariance.squared_errors(Transformed(torch.zeros(1, 3, 4, 4), mask), images)
    assert sums.tolist() == [[0.75, 3.0]]
