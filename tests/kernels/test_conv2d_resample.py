from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from kernels.conv2d_resample import ResampledConv, conv2d_resample
from kernels.padded_conv import PaddingLike, as_padding
from kernels.upfirdn2d import Resampling, setup_filter, upfirdn2d

FIR = setup_filter([1, 3, 3, 1]).double()
GEOMETRIES: tuple[tuple[PaddingLike, int], ...] = ((1, 3), (0, 1), ((2, 0, 1, 1), 3), ((-1, 2), 3))
CASES = [
    (ResampledConv(up, down, padding, groups, flip_weight), kernel)
    for up, down, (padding, kernel), groups, flip_weight in itertools.product(
        (1, 2, 3), (1, 2), GEOMETRIES, (1, 2), (True, False)
    )
]


def by_definition(x: Tensor, weight: Tensor, fir: Tensor | None, conv: ResampledConv) -> Tensor:
    """Pad once, filter at the upsampled rate, convolve, filter again, decimate."""
    taps = 1 if fir is None else fir.shape[0]
    before = after = 0
    if conv.up > 1:
        before, after = (taps + conv.up - 1) // 2, (taps - conv.up) // 2
    if conv.down > 1:
        before, after = before + (taps - conv.down + 1) // 2, after + (taps - conv.down) // 2
    x0, x1, y0, y1 = as_padding(conv.padding)
    padding = (x0 + before, x1 + after, y0 + before, y1 + after)
    x = upfirdn2d(x, fir if conv.up > 1 else None, Resampling(conv.up, 1, padding, gain=conv.up**2))
    y = F.conv2d(x, weight if conv.flip_weight else weight.flip((2, 3)), groups=conv.groups)
    return y if conv.down == 1 else upfirdn2d(y, fir, Resampling(1, conv.down))


@pytest.mark.parametrize(("conv", "kernel"), CASES, ids=str)
@pytest.mark.parametrize("fir", [FIR, None], ids=["fir", "no-fir"])
def test_conv2d_resample_matches_definition(conv: ResampledConv, kernel: int, fir: Tensor | None) -> None:
    x = torch.randn(3, 4, 9, 7, dtype=torch.float64)
    weight = torch.randn(6, 4 // conv.groups, kernel, kernel, dtype=torch.float64)
    want = by_definition(x, weight, fir, conv)
    for layout in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(conv2d_resample(layout, weight, fir, conv), want, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "conv", [ResampledConv(2, 1, 1), ResampledConv(1, 2, 1), ResampledConv(2, 2, (2, 0, 1, 1))], ids=str
)
def test_conv2d_resample_is_twice_differentiable(conv: ResampledConv) -> None:
    x, weight = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((1, 2, 4, 5), (2, 2, 3, 3)))
    assert gradcheck(lambda x, w: conv2d_resample(x, w, FIR, conv), (x, weight), fast_mode=True)
    assert gradgradcheck(lambda x, w: conv2d_resample(x, w, FIR, conv), (x, weight), fast_mode=True)


def test_conv2d_resample_names_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"x \[1, 3, 4, 4\] and weight \[2, 2, 3, 3\] with groups=1"):
        conv2d_resample(torch.zeros(1, 3, 4, 4), torch.zeros(2, 2, 3, 3))
