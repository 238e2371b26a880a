from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.signal
import torch
from torch.autograd import gradcheck, gradgradcheck

from kernels.upfirdn2d import Resampling, downsample2d, filter2d, setup_filter, upfirdn2d, upfirdn2d_naive, upsample2d

CASES = [
    Resampling(),
    Resampling(padding=(1, 2, 0, 3)),
    Resampling(up=2, padding=(2, 1)),
    Resampling(down=(2, 3), padding=(1, -1, 4, 2), gain=2.0),
    Resampling(up=(3, 2), padding=(-2, 4, 5, -1), flip_filter=True),
    Resampling(up=3, down=2, padding=5),
]


def by_definition(x: np.ndarray, fir: np.ndarray, r: Resampling) -> np.ndarray:
    """Zero-stuff, pad or crop, convolve with SciPy, decimate; one image plane."""
    ux, uy = (r.up, r.up) if isinstance(r.up, int) else r.up
    dx, dy = (r.down, r.down) if isinstance(r.down, int) else r.down
    p = (r.padding,) * 4 if isinstance(r.padding, int) else r.padding
    x0, x1, y0, y1 = p if len(p) == 4 else (p[0], p[0], p[1], p[1])
    stuffed = np.zeros((x.shape[0] * uy, x.shape[1] * ux))
    stuffed[::uy, ::ux] = x
    padded = np.pad(stuffed, ((max(y0, 0), max(y1, 0)), (max(x0, 0), max(x1, 0))))
    padded = padded[max(-y0, 0) : padded.shape[0] - max(-y1, 0), max(-x0, 0) : padded.shape[1] - max(-x1, 0)]
    kernel = fir[::-1, ::-1] if r.flip_filter else fir
    filtered: np.ndarray = scipy.signal.convolve2d(padded, kernel, mode="valid")
    return r.gain * filtered[::dy, ::dx]


@pytest.mark.parametrize("resampling", CASES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("function", [upfirdn2d, upfirdn2d_naive])
def test_upfirdn2d_matches_scipy(
    resampling: Resampling, channels_last: bool, function: Callable[..., torch.Tensor]
) -> None:
    rng = np.random.default_rng(3)
    x, fir = rng.standard_normal((3, 2, 9, 7)), rng.standard_normal((6, 5))
    image = torch.from_numpy(x).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    got = function(image, torch.from_numpy(fir), resampling)
    want = np.array([[by_definition(plane, fir, resampling) for plane in sample] for sample in x])
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("resampling", CASES, ids=str)
def test_upfirdn2d_separable_equals_outer_product(resampling: Resampling) -> None:
    x, taps = torch.randn(1, 3, 10, 9, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(
        upfirdn2d(x, taps, resampling), upfirdn2d(x, torch.outer(taps, taps), resampling), rtol=0, atol=1e-12
    )


def test_upfirdn2d_naive_takes_separable_filters_and_none() -> None:
    x, taps = torch.randn(1, 3, 10, 9, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    for fir in (taps, None):
        torch.testing.assert_close(upfirdn2d_naive(x, fir, CASES[3]), upfirdn2d(x, fir, CASES[3]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("resampling", CASES, ids=str)
@pytest.mark.parametrize("ndim", [1, 2])
def test_upfirdn2d_is_twice_differentiable(resampling: Resampling, ndim: int) -> None:
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    fir = torch.randn((3,) * ndim, dtype=torch.float64)
    assert gradcheck(lambda x: upfirdn2d(x, fir, resampling).square(), x, fast_mode=True)
    assert gradgradcheck(lambda x: upfirdn2d(x, fir, resampling).square(), x, fast_mode=True)


def test_up_and_down_keep_size_and_brightness() -> None:
    x, fir = torch.full((1, 3, 12, 10), 0.7), setup_filter([1, 3, 3, 1])
    for y, size in ((upsample2d(x, fir), (24, 20)), (downsample2d(x, fir), (6, 5)), (filter2d(x, fir), (12, 10))):
        assert y.shape == (1, 3, *size)
        torch.testing.assert_close(y[:, :, 2:-2, 2:-2], torch.full_like(y[:, :, 2:-2, 2:-2], 0.7))


def test_setup_filter_stays_one_dimensional_from_eight_taps() -> None:
    assert setup_filter([1.0] * 7).shape == (7, 7)
    assert setup_filter([1.0] * 8).shape == (8,)


def test_upfirdn2d_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"x of shape \[3, 3\]; allowed is \[N, C, H, W\]"):
        upfirdn2d(torch.zeros(3, 3), None)
    with pytest.raises(ValueError, match=r"taps of shape \[1, 1, 1\]"):
        setup_filter(torch.ones(1, 1, 1))
    with pytest.raises(ValueError, match="2-D taps can't be used"):
        setup_filter([[1, 2]], separable=True)
