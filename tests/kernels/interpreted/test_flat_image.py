from __future__ import annotations

import pytest
import torch

from kernels.flat_image import FlatImage
from kernels.flat_image_triton import lay_flat


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).half()


@pytest.mark.parametrize("shape", [(2, 64, 16, 16), (3, 48, 13, 11), (5, 600, 4, 4), (1, 16, 1, 1)], ids=str)
def test_lay_flat_copies_and_writes_every_zero(shape: tuple[int, ...]) -> None:
    x = draw(*shape)
    assert torch.equal(lay_flat(x).rows, FlatImage.of(x).rows)


def test_lay_flat_scales_and_rounds_once() -> None:
    x, style = draw(3, 48, 13, 11).contiguous(memory_format=torch.channels_last), draw(3, 48).float() + 1.001
    want = FlatImage.of((x.float() * style[:, :, None, None]).half())
    assert torch.equal(lay_flat(x, style).rows, want.rows)


def test_lay_flat_puts_an_image_into_a_larger_one() -> None:
    x = draw(2, 16, 5, 3)
    want = FlatImage.of(torch.nn.functional.pad(x, (2, 1, 1, 3)))
    assert torch.equal(lay_flat(x, None, (9, 6), (1, 2)).rows, want.rows)


@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")
def test_lay_flat_keeps_zeros_where_a_style_is_infinite() -> None:
    flat = lay_flat(draw(1, 16, 3, 3) + 9, torch.full((1, 16), torch.inf))
    assert flat.image.isinf().all()
    assert torch.equal(flat.rows.isinf().sum(), torch.tensor(9 * 16))
    assert not flat.rows.isnan().any()


def test_lay_flat_says_where_an_image_sticks_out() -> None:
    with pytest.raises(ValueError, match=r"an image \[4, 4\] at \[0, 1\] sticks out of \[4, 4\]; enlarge `frame`"):
        lay_flat(draw(1, 16, 4, 4), None, None, (0, 1))


def test_lay_flat_of_nothing_is_nothing() -> None:
    assert lay_flat(draw(0, 16, 4, 4)).image.shape == (0, 16, 4, 4)
