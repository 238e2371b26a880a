from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.padded_conv import Padding, as_padding, as_pair, padded_conv2d, padded_conv_transpose2d

PADDINGS: list[Padding] = [(0, 0, 0, 0), (1, 1, 2, 2), (3, 1, 0, 2), (-1, 2, 1, -2), (-4, -3, -3, -4)]


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_padded_conv2d_pads_and_crops(padding: Padding) -> None:
    x, weight = torch.randn(2, 3, 12, 11, dtype=torch.float64), torch.randn(4, 3, 3, 2, dtype=torch.float64)
    want = F.conv2d(F.pad(x, padding), weight, stride=(2, 3))
    torch.testing.assert_close(padded_conv2d(x, weight, padding, stride=(3, 2)), want)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_padded_conv_transpose2d_is_a_convolution_of_the_stuffed_image(padding: Padding) -> None:
    x, weight = torch.randn(2, 3, 6, 5, dtype=torch.float64), torch.randn(3, 4, 3, 2, dtype=torch.float64)
    stuffed = x.new_zeros(2, 3, 12, 15)
    stuffed[:, :, ::2, ::3] = x
    want = F.conv2d(F.pad(stuffed, padding), weight.flip((2, 3)).transpose(0, 1))
    torch.testing.assert_close(padded_conv_transpose2d(x, weight, padding, up=(3, 2)), want)


def test_as_padding_and_as_pair_take_x_first() -> None:
    assert as_padding(2) == (2, 2, 2, 2)
    assert as_padding((1, 3)) == (1, 1, 3, 3)
    assert as_padding((1, 2, 3, 4)) == (1, 2, 3, 4)
    assert (as_pair(2, "up"), as_pair((2, 3), "up")) == ((2, 2), (2, 3))


def test_wrong_values_are_named() -> None:
    with pytest.raises(ValueError, match="up: got 0; allowed are"):
        as_pair(0, "up")
    with pytest.raises(ValueError, match=r"padding: got \(1, 2, 3\)"):
        as_padding((1, 2, 3))  # type: ignore[arg-type]
