"""FIR filters on images: upsample by zero-stuffing, pad, filter, keep every down-th sample.

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958), appendix B, and
the operator of that name in signal processing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.dispatch import select
from kernels.padded_conv import Padding, PaddingLike, Pair, as_padding, as_pair, padded_conv2d, padded_conv_transpose2d

MAX_TAPS, MAX_FACTOR = 24, 4  # of the Triton kernel: its taps are unrolled
Taps = Sequence[float] | Sequence[Sequence[float]] | Tensor | None
SEPARABLE_TAPS = 8  # a 1-D filter of this many taps or more stays 1-D and runs along x and y in turn


@dataclass(frozen=True, slots=True)
class Resampling:
    """How a FIR filter is applied; pairs are (x, y), four paddings are (x0, x1, y0, y1), negative ones crop."""

    up: Pair = 1
    down: Pair = 1
    padding: PaddingLike = 0  # of the zero-stuffed image
    flip_filter: bool = False  # False: true convolution; True: correlation
    gain: float = 1.0


PLAIN, UP2, DOWN2 = Resampling(), Resampling(up=2), Resampling(down=2)


def setup_filter(
    taps: Taps,
    *,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1.0,
    separable: bool | None = None,
) -> Tensor:
    """Return a float32 filter: `[h, w]`, or `[n]` if it is separable and runs along x and y in turn.

    `taps` are 1-D, 2-D, or None for the identity; `normalize` makes the sum 1; `gain` counts for both axes
    together; `separable` None keeps 1-D taps from 8 up as they are.
    """
    # under a default device of "meta", arithmetic would import most of torch's compiler
    device = taps.device if isinstance(taps, Tensor) else torch.get_default_device()
    with torch.device("cpu") if device.type == "meta" else nullcontext():
        return _set_up(taps, normalize, flip_filter, gain, separable).to(device)


def _set_up(taps: Taps, normalize: bool, flip_filter: bool, gain: float, separable: bool | None) -> Tensor:
    fir = torch.as_tensor(1.0 if taps is None else taps, dtype=torch.float32)
    fir = fir.reshape(1) if fir.ndim == 0 else fir
    if fir.ndim > 2 or fir.numel() == 0:
        raise ValueError(f"setup_filter: got taps of shape {list(fir.shape)}; allowed are [n] and [h, w], not empty")
    if separable is None:
        separable = fir.ndim == 1 and fir.numel() >= SEPARABLE_TAPS
    if separable and fir.ndim == 2:
        raise ValueError("setup_filter: 2-D taps can't be used as a separable filter; give 1-D taps")
    if fir.ndim == 1 and not separable:
        fir = torch.outer(fir, fir)
    if normalize:
        fir = fir / fir.sum()
    if flip_filter:
        fir = fir.flip(tuple(range(fir.ndim)))
    return fir * float(gain ** (fir.ndim / 2))


def upfirdn2d(x: Tensor, fir: Tensor | None, resampling: Resampling = PLAIN) -> Tensor:
    """Filter `x` `[N, C, H, W]` with `fir` `[h, w]`, `[n]` (separable) or None (identity). Twice differentiable.

    The output is `(H * up + y0 + y1 - h) // down + 1` high.
    """
    tensors = (x,) if fir is None else (x, fir)
    return select("upfirdn2d", *tensors, limit=triton_limit(fir, resampling))(x, fir, resampling)


def filter2d(x: Tensor, fir: Tensor | None, resampling: Resampling = PLAIN) -> Tensor:
    """Filter `x` `[N, C, H, W]`, size kept; the padding of `resampling` comes on top."""
    taps = fir_size(fir)
    return _padded(x, fir, resampling, tuple((n // 2, (n - 1) // 2) for n in taps), 1.0)


def upsample2d(x: Tensor, fir: Tensor | None, resampling: Resampling = UP2) -> Tensor:
    """Upsample `x` `[N, C, H, W]` to `[N, C, H * up, W * up]`, brightness kept; extra padding comes on top."""
    factors = as_pair(resampling.up, "up")
    edges = tuple(up_padding(n, up) for n, up in zip(fir_size(fir), factors, strict=True))
    return _padded(x, fir, resampling, edges, float(factors[0] * factors[1]))


def downsample2d(x: Tensor, fir: Tensor | None, resampling: Resampling = DOWN2) -> Tensor:
    """Downsample `x` `[N, C, H, W]` to `[N, C, H / down, W / down]`; extra padding comes on top."""
    factors = as_pair(resampling.down, "down")
    edges = tuple(down_padding(n, down) for n, down in zip(fir_size(fir), factors, strict=True))
    return _padded(x, fir, resampling, edges, 1.0)


def fir_size(fir: Tensor | None) -> tuple[int, int]:
    """Return the taps (x, y) of a filter."""
    return (1, 1) if fir is None else (fir.shape[-1], fir.shape[0])


def out_size(x: Tensor, fir: Tensor | None, resampling: Resampling) -> tuple[int, int]:
    """Return the height and width of the output of `upfirdn2d`; ValueError where there is none."""
    if x.ndim != 4:
        raise ValueError(f"upfirdn2d: got x of shape {list(x.shape)}; allowed is [N, C, H, W]")
    up, down = as_pair(resampling.up, "up"), as_pair(resampling.down, "down")
    x0, x1, y0, y1 = as_padding(resampling.padding)
    taps = fir_size(fir)
    width, height = (
        (size * up[axis] + pad - taps[axis]) // down[axis] + 1
        for axis, (size, pad) in enumerate(((x.shape[3], x0 + x1), (x.shape[2], y0 + y1)))
    )
    if width < 1 or height < 1:
        raise ValueError(
            f"upfirdn2d: x {list(x.shape)} with up {up} and padding {(x0, x1, y0, y1)} is smaller than the filter of "
            f"{taps} taps (x, y); use more padding"
        )
    return height, width


def up_padding(taps: int, up: int) -> tuple[int, int]:
    """Padding (before, after) that makes an upsampled signal `up` times as long and centres the filter."""
    return (taps + up - 1) // 2, (taps - up) // 2


def down_padding(taps: int, down: int) -> tuple[int, int]:
    """Padding (before, after) that makes a downsampled signal `1 / down` as long and centres the filter."""
    return (taps - down + 1) // 2, (taps - down) // 2


def upfirdn2d_reference(x: Tensor, fir: Tensor | None, resampling: Resampling = PLAIN) -> Tensor:
    """PyTorch implementation of `upfirdn2d`; one depthwise convolution, or two for a separable filter."""
    out_size(x, fir, resampling)
    up, down = as_pair(resampling.up, "up"), as_pair(resampling.down, "down")
    x0, x1, y0, y1 = as_padding(resampling.padding)
    fir = x.new_ones(1, 1) if fir is None else fir
    first = (fir * resampling.gain).to(x.dtype)
    if fir.ndim == 2:
        return _depthwise(x, _oriented(first, resampling), up, down, (x0, x1, y0, y1))
    rows, columns = _oriented(first[None, :], resampling), _oriented(fir.to(x.dtype)[:, None], resampling)
    x = _depthwise(x, rows, (up[0], 1), (down[0], 1), (x0, x1, 0, 0))
    return _depthwise(x, columns, (1, up[1]), (1, down[1]), (0, 0, y0, y1))


def upfirdn2d_naive(x: Tensor, fir: Tensor | None, resampling: Resampling = PLAIN) -> Tensor:
    """The same step by step: stuff zeros, pad, filter at the high rate, decimate. The baseline of speed-ups."""
    (up_x, up_y), (down_x, down_y) = as_pair(resampling.up, "up"), as_pair(resampling.down, "down")
    n, channels, height, width = x.shape
    stuffed = x.new_zeros(n, channels, height, up_y, width, up_x)
    stuffed[:, :, :, 0, :, 0] = x
    padded = F.pad(stuffed.reshape(n, channels, height * up_y, width * up_x), as_padding(resampling.padding))
    fir = x.new_ones(1, 1) if fir is None else fir
    for taps in (fir,) if fir.ndim == 2 else (fir[None, :], fir[:, None]):
        weight = _oriented(taps.to(x.dtype), resampling).flip((0, 1)).expand(channels, 1, *taps.shape)
        padded = F.conv2d(padded, weight, groups=channels)
    return padded[:, :, ::down_y, ::down_x] * resampling.gain


def triton_limit(fir: Tensor | None, resampling: Resampling) -> str | None:
    """Why the Triton kernel can't do this, or None."""
    taps, factors = fir_size(fir), (*as_pair(resampling.up, "up"), *as_pair(resampling.down, "down"))
    if max(taps) > MAX_TAPS:
        return f"it takes filters of up to {MAX_TAPS} taps along an axis, and this one has {max(taps)}"
    if max(factors) > MAX_FACTOR:
        return f"it resamples by up to {MAX_FACTOR}, and not by {max(factors)}"
    if fir is not None and fir.requires_grad:
        return "it gives no gradient of the filter, and this filter needs one"
    return None


def _oriented(fir: Tensor, resampling: Resampling) -> Tensor:
    return fir.flip((0, 1)) if resampling.flip_filter else fir


def _depthwise(x: Tensor, fir: Tensor, up: tuple[int, int], down: tuple[int, int], padding: Padding) -> Tensor:
    channels = x.shape[1]
    if up == (1, 1):
        weight = fir.flip((0, 1)).expand(channels, 1, *fir.shape)
        return padded_conv2d(x, weight, padding, stride=down, groups=channels)
    # a transposed depthwise convolution touches no zeros, and on a CPU it is ten times as fast in channels_last
    x = x.contiguous(memory_format=torch.channels_last)
    weight = fir.expand(channels, 1, *fir.shape)
    y = padded_conv_transpose2d(x, weight, padding, up=up, groups=channels)
    return y if down == (1, 1) else y[:, :, :: down[1], :: down[0]]


def _padded(
    x: Tensor, fir: Tensor | None, resampling: Resampling, edges: tuple[tuple[int, int], ...], gain: float
) -> Tensor:
    extra = as_padding(resampling.padding)
    (x0, x1), (y0, y1) = edges
    padding = (extra[0] + x0, extra[1] + x1, extra[2] + y0, extra[3] + y1)
    full = Resampling(resampling.up, resampling.down, padding, resampling.flip_filter, resampling.gain * gain)
    return upfirdn2d(x, fir, full)
