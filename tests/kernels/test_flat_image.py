from __future__ import annotations

import pytest
import torch

from kernels.flat_image import ROWS, FlatImage, pitch_of


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("size", [(16, 16), (13, 11), (8, 8), (1, 1), (64, 64), (127, 128)], ids=str)
def test_flat_image_has_zeros_wherever_a_shifted_tile_leaves_an_image(size: tuple[int, int]) -> None:
    height, width = size
    x = draw(3, 5, *size) + 10
    flat = FlatImage.of(x)
    assert flat.pitch % ROWS == 0
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    for sample in range(3):
        for dy, dx in ((-1, -1), (-1, 0), (0, -1), (0, 1), (1, 0), (1, 1)):
            first = sample * flat.pitch + dy * (width + 1) + dx
            at = first + torch.arange(height * (width + 1))
            rows = torch.where((at >= 0)[:, None], flat.rows[at.clamp_min(0)], 0.0)
            shifted = rows.view(height, width + 1, 5)[:, :width].permute(2, 0, 1)
            assert torch.equal(shifted, padded[sample, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width])


def test_flat_image_gives_its_pixels_as_a_view() -> None:
    x = draw(2, 6, 4, 3)
    flat = FlatImage.of(x)
    assert torch.equal(flat.image, x)
    assert flat.image.stride() == (128 * 6, 1, 4 * 6, 6)
    assert flat.image.data_ptr() == flat.rows.data_ptr()
    assert (flat.rows != 0).any(1).sum() == 2 * 4 * 3


def test_flat_image_of_a_size_has_memory_of_that_size() -> None:
    flat = FlatImage.empty(3, 8, (64, 64), torch.empty(0, dtype=torch.float16))
    assert flat.rows.shape == (3 * pitch_of((64, 64)), 8)
    assert flat.rows.dtype == torch.float16
    assert flat.image.shape == (3, 8, 64, 64)
    assert pitch_of((64, 64)) == 34 * 128


def test_flat_image_passes_gradients_on() -> None:
    x = draw(2, 3, 4, 5).requires_grad_()
    FlatImage.of(x).image.square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach())
