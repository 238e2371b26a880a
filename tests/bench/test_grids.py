from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bench.grids import image_grid, triptych


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def plain(*colours: int, side: int = 128) -> torch.Tensor:
    return torch.tensor(colours, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, side, side)


def test_grid_lays_images_out_row_by_row() -> None:
    pixels = opened(image_grid(plain(10, 20, 30), columns=2))
    assert pixels.shape == (2 * 128 + 2, 2 * 128 + 2, 3)
    assert [pixels[0, 0, 0], pixels[0, 130, 0], pixels[130, 0, 0], pixels[130, 130, 0]] == [10, 20, 30, 255]


def test_grid_enlarges_tiny_images_without_smoothing() -> None:
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = opened(image_grid(image))
    assert pixels.shape == (128, 128, 3)
    assert np.array_equal(pixels[::4, ::4], image[0].permute(1, 2, 0).numpy())
    assert np.array_equal(pixels[3::4, 3::4], pixels[::4, ::4])


def test_grid_reduces_large_images_by_averaging() -> None:
    image = torch.zeros(1, 3, 512, 512, dtype=torch.uint8)
    image[..., ::2] = 200
    pixels = opened(image_grid(image))
    assert pixels.shape == (256, 256, 3)
    assert np.all(pixels == 100)


def test_grid_writes_labels_above_their_images() -> None:
    with_labels, without = opened(image_grid(plain(10, 10), labels=["0", "1"])), opened(image_grid(plain(10, 10)))
    head = with_labels.shape[0] - without.shape[0]
    assert head > 0
    assert np.array_equal(with_labels[head:], without)
    assert with_labels[:head].min() < 100  # black text on white


def test_grid_gives_the_same_bytes_each_time() -> None:
    assert image_grid(plain(1, 2, 3), labels=["a", "b", "c"]) == image_grid(plain(1, 2, 3), labels=["a", "b", "c"])


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), plain()])
def test_grid_refuses_what_is_no_batch_of_images(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[N, 3, H, W\]"):
        image_grid(images)
    with pytest.raises(ValueError, match="3 labels for 1 images"):
        image_grid(plain(1), labels=["a", "b", "c"])


def test_triptych_shows_target_inversion_and_amplified_difference() -> None:
    pixels = opened(triptych(plain(200, 10), plain(190, 90)))
    head = pixels.shape[0] - (2 * 128 + 2)
    rows = [[int(pixels[head + y, x, 0]) for x in (0, 130, 260)] for y in (0, 130)]
    assert rows == [[200, 190, 4 * 10], [10, 90, 255]]


def test_triptych_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        triptych(plain(1), plain(1, 2))
