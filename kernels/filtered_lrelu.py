"""Leaky ReLU at a higher sampling rate, between an upsampling and a downsampling filter, so that it doesn't alias.

Karras et al. 2021, "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423), section 3.2 and appendix D.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.banded_filters import MAX_FACTOR, MAX_RANK, MAX_TAPS, RESIDUAL, Fir
from kernels.bias_act import HOMOGENEOUS, Activation, activate, bias_act_reference, split_gain
from kernels.dispatch import INTERPRETED, select
from kernels.padded_conv import Padding, PaddingLike, as_padding, as_pair
from kernels.upfirdn2d import Resampling, fir_size, upfirdn2d_naive, upfirdn2d_reference

# on a CPU one tile is filtered at a time, so that the high rate, 4 to 16 times the memory, stays in the cache
TILE_SAMPLES = 1_000_000  # of the high rate
TILE_CHANNELS = 16  # one vector; fewer channels make larger tiles, which share less of their edges
WHOLE_CHANNELS = 64  # up to so many channels are read together, since single ones would waste half of every line
MATRIX_SIDE = 112  # matrix products cost the more per sample the larger a tile is

LRELU = Activation("lrelu")
Filters = tuple[Tensor | None, Tensor | None]  # of the upsampling and of the downsampling


@dataclass(frozen=True, slots=True)
class FilteredLReLU:
    """Geometry and activation of a filtered leaky ReLU; four paddings are (x0, x1, y0, y1), negative ones crop."""

    up: int = 1
    down: int = 1
    padding: PaddingLike = 0  # of the zero-stuffed image
    activation: Activation = LRELU
    flip_filter: bool = False  # False: true convolution; True: correlation

    def __post_init__(self) -> None:
        as_pair(self.up, "filtered_lrelu: up")
        as_pair(self.down, "filtered_lrelu: down")
        as_padding(self.padding)


PLAIN = FilteredLReLU()


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of an image on its way through."""

    size: int
    up: int
    down: int
    taps: tuple[int, int]  # of the upsampling and the downsampling filter
    padding: tuple[int, int]

    @property
    def high_size(self) -> int:
        """Samples between the filters."""
        return self.size * self.up + sum(self.padding) - self.taps[0] + 1

    @property
    def out_size(self) -> int:
        return (self.high_size - self.taps[1]) // self.down + 1

    def tiles(self, count: int) -> Iterator[_Tile]:
        """Cut the output into about `count` parts."""
        # a multiple of `up`, so that all tiles crop as evenly as the whole image does
        step = math.ceil(self.out_size / count / self.up) * self.up
        for first in range(0, self.out_size, step):
            last = min(first + step, self.out_size)
            # what the tile needs of the zero-stuffed image, and the samples that lie there
            start = first * self.down - self.padding[0]
            end = (last - 1) * self.down + sum(self.taps) - 1 - self.padding[0]
            high = -(-end // self.up)
            low = min(-(-start // self.up), high - 1)
            inside = slice(max(low, 0), max(min(high, self.size), 0))
            zeros = (min(max(-low, 0), high - low), min(max(high - self.size, 0), high - low))
            yield _Tile(inside, zeros, (low * self.up - start, end - high * self.up), slice(first, last))


@dataclass(frozen=True, slots=True)
class _Tile:
    """Part of an axis: `inputs` between `zeros` zeros, zero-stuffed and padded, become `outputs`."""

    inputs: slice
    zeros: tuple[int, int]
    padding: tuple[int, int]
    outputs: slice


def filtered_lrelu(
    x: Tensor,
    bias: Tensor | None = None,
    up_filter: Tensor | None = None,
    down_filter: Tensor | None = None,
    spec: FilteredLReLU = PLAIN,
) -> Tensor:
    """Add `bias` `[C]` to `x` `[N, C, H, W]`, upsample, activate, downsample. Twice differentiable.

    A filter is `[n]` (separable), `[h, w]` or None (identity); brightness is kept where it sums to 1. The output is
    `(H * up + y0 + y1 - h_up - h_down + 1) // down + 1` high, in the dtype of `x`. ValueError for other shapes.
    """
    tensors = [tensor for tensor in (x, bias) if tensor is not None]
    # the limit looks at the numbers of a filter, which a graph that is being compiled doesn't have
    can_ask = (x.is_cuda or INTERPRETED) and not torch.compiler.is_compiling()
    limit = triton_limit((up_filter, down_filter), spec, x.dtype) if can_ask else None
    return select("filtered_lrelu", *tensors, limit=limit)(x, bias, up_filter, down_filter, spec)


def filtered_lrelu_reference(
    x: Tensor,
    bias: Tensor | None = None,
    up_filter: Tensor | None = None,
    down_filter: Tensor | None = None,
    spec: FilteredLReLU = PLAIN,
) -> Tensor:
    """PyTorch implementation: polyphase filters, which touch no zeros; on a CPU without autograd, tile by tile."""
    axes = checked_axes(x, bias, (up_filter, down_filter), spec)
    if up_filter is None and down_filter is None and spec.up == spec.down == 1 and not any(as_padding(spec.padding)):
        return bias_act_reference(x, bias, spec.activation)
    bias = None if bias is None else bias.to(x.dtype)
    filters = (up_filter, down_filter)
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, bias, *filters))
    if x.device.type != "cpu" or recorded:
        (rows,), (columns,) = (axis.tiles(1) for axis in axes)
        return _filter(_part(x, bias, rows, columns), filters, spec, (*columns.padding, *rows.padding))
    n, c, _, _ = x.shape
    out = x.new_empty(n, axes[0].out_size, axes[1].out_size, c).permute(0, 3, 1, 2)
    for samples, channels, rows, columns in _tiles(x, axes):
        part = _part(x[samples, channels], None if bias is None else bias[channels], rows, columns)
        padding = (*columns.padding, *rows.padding)
        out[samples, channels, rows.outputs, columns.outputs] = _filter(part, filters, spec, padding)
    return out


def filtered_lrelu_naive(
    x: Tensor,
    bias: Tensor | None = None,
    up_filter: Tensor | None = None,
    down_filter: Tensor | None = None,
    spec: FilteredLReLU = PLAIN,
) -> Tensor:
    """The same step by step, all of it at the high rate. The baseline that speed-ups divide by, and a second oracle."""
    checked_axes(x, bias, (up_filter, down_filter), spec)
    up_filter = x.new_ones(1) if up_filter is None else up_filter
    up_filter = up_filter.to(x.dtype) * spec.up**up_filter.ndim  # a 1-D filter runs along both axes
    up = Resampling(up=spec.up, padding=spec.padding, flip_filter=spec.flip_filter)
    x = x if bias is None else x + bias.to(x.dtype)[:, None, None]
    x = bias_act_reference(upfirdn2d_naive(x, up_filter, up), None, spec.activation)
    return upfirdn2d_naive(x, down_filter, Resampling(down=spec.down, flip_filter=spec.flip_filter))


def checked_axes(x: Tensor, bias: Tensor | None, filters: Filters, spec: FilteredLReLU) -> tuple[_Axis, _Axis]:
    """Return the vertical and the horizontal axis."""
    if x.ndim != 4 or (bias is not None and bias.shape != x.shape[1:2]):
        raise ValueError(
            f"filtered_lrelu: x {list(x.shape)}, bias {None if bias is None else list(bias.shape)}; "
            "allowed are x [N, C, H, W] and bias [C] or None"
        )
    if any(fir is not None and (fir.ndim not in (1, 2) or fir.numel() == 0) for fir in filters):
        shapes = [None if fir is None else list(fir.shape) for fir in filters]
        raise ValueError(f"filtered_lrelu: filters {shapes}; allowed are [n], [h, w], not empty, or None")
    (x_up, y_up), (x_down, y_down) = fir_size(filters[0]), fir_size(filters[1])
    x0, x1, y0, y1 = as_padding(spec.padding)
    vertical = _Axis(x.shape[2], spec.up, spec.down, (y_up, y_down), (y0, y1))
    horizontal = _Axis(x.shape[3], spec.up, spec.down, (x_up, x_down), (x0, x1))
    if min(vertical.out_size, horizontal.out_size) < 1:
        raise ValueError(
            f"filtered_lrelu: x {list(x.shape)} with up {spec.up} and padding {(x0, x1, y0, y1)} is smaller than the "
            f"filters of {(y_up, x_up)} and {(y_down, x_down)} taps; use more padding"
        )
    return vertical, horizontal


def triton_limit(filters: Filters, spec: FilteredLReLU, dtype: torch.dtype) -> str | None:
    """Why the Triton kernel can't do this for images of `dtype`, or None."""
    taps = max(max(fir_size(fir)) for fir in filters)
    if taps > MAX_TAPS:
        return f"it takes filters of up to {MAX_TAPS} taps along an axis, and this one has {taps}"
    if max(spec.up, spec.down) > MAX_FACTOR:
        return f"it resamples by up to {MAX_FACTOR}, and not by {max(spec.up, spec.down)}"
    if any(fir is not None and fir.requires_grad for fir in filters):
        return "it gives no gradient of the filters, and one of these needs it"
    if spec.activation.name not in HOMOGENEOUS:
        return f"it has the activations {', '.join(HOMOGENEOUS)}, and not {spec.activation.name}"
    large = [fir for fir in filters if fir is not None and fir.ndim == 2 and min(fir.shape) > MAX_RANK]
    ranks = [Fir(fir, flipped=False).rank(dtype) for fir in large if dtype in RESIDUAL]
    if max(ranks, default=1) > MAX_RANK:
        return f"it takes filters that are sums of up to {MAX_RANK} separable ones, and this one has {max(ranks)}"
    return None


def _tiles(x: Tensor, axes: tuple[_Axis, _Axis]) -> Iterator[tuple[slice, slice, _Tile, _Tile]]:
    """Cut into tiles of about `TILE_SAMPLES` at the high rate: samples, channels, rows, columns."""
    n, c, _, _ = x.shape
    height, width = (axis.high_size for axis in axes)
    area = height * width if _is_convolved(x) else min(height * width, MATRIX_SIDE**2)
    least = c if c <= WHOLE_CHANNELS else TILE_CHANNELS
    channels = min(c, max(least, TILE_SAMPLES // area // TILE_CHANNELS * TILE_CHANNELS))
    channels = math.ceil(c / math.ceil(c / channels) / TILE_CHANNELS) * TILE_CHANNELS  # evenly
    area = min(area, max(1, TILE_SAMPLES // channels))
    across = math.ceil(width / max(math.sqrt(area), area / height))
    down = math.ceil(height * width / area / across)
    samples = max(1, TILE_SAMPLES // (channels * area)) if across * down == 1 and channels >= c else 1
    yield from itertools.product(
        (slice(first, first + samples) for first in range(0, n, samples)),
        (slice(first, first + channels) for first in range(0, c, channels)),
        axes[0].tiles(down),
        axes[1].tiles(across),
    )


def _part(x: Tensor, bias: Tensor | None, rows: _Tile, columns: _Tile) -> Tensor:
    """Return what a tile is made of, with its bias and its zeros around it."""
    x = x[:, :, rows.inputs, columns.inputs]
    x = x if bias is None else x + bias[:, None, None]
    zeros = (*columns.zeros, *rows.zeros)
    return F.pad(x, zeros) if any(zeros) else x


def _filter(x: Tensor, filters: Filters, spec: FilteredLReLU, padding: Padding) -> Tensor:
    """All but the bias."""
    gain, rest = split_gain(spec.activation)
    up_filter, down_filter = (
        fir.flip(tuple(range(fir.ndim))) if fir is not None and spec.flip_filter else fir for fir in filters
    )
    high = _resample(x, up_filter, (spec.up, 1), padding, spec.up**2 * gain)
    high = activate(high, rest, inplace=high is not x and not high.requires_grad)
    return _resample(high, down_filter, (1, spec.down), (0, 0, 0, 0), 1.0)


def _resample(x: Tensor, fir: Tensor | None, factors: tuple[int, int], padding: Padding, gain: float) -> Tensor:
    """Return `upfirdn2d` by `factors` (up, down); it may be `x` itself."""
    up, down = factors
    if fir is None and up == down == 1:
        x = x * gain if gain != 1 else x
        return F.pad(x, padding) if any(padding) else x
    fir = x.new_ones(1) if fir is None else fir
    if not _is_convolved(x) or min(fir_size(fir)) < up:
        return _by_matrices(x, fir, factors, padding, gain)
    if fir.ndim == 2 or up == 1:
        return upfirdn2d_reference(x, fir, Resampling(up, down, padding, gain=gain))
    # along y first: the pass over all samples is then the one along x, which reads what it has just read
    x0, x1, y0, y1 = padding
    x = upfirdn2d_reference(x, fir[:, None], Resampling((1, up), 1, (0, 0, y0, y1), gain=gain))
    return upfirdn2d_reference(x, fir[None], Resampling((up, 1), 1, (x0, x1, 0, 0)))


def _is_convolved(x: Tensor) -> bool:
    """Whether filters run as convolutions; a CPU has a fast one only of float32 and for more than one channel."""
    return x.device.type != "cpu" or (x.dtype == torch.float32 and x.shape[1] > 1)


def _by_matrices(x: Tensor, fir: Tensor, factors: tuple[int, int], padding: Padding, gain: float) -> Tensor:
    """Return `sum_k A_k x B_k^T` with banded matrices, each of which stuffs, pads, filters and decimates one axis."""
    fir = fir.to(x.dtype)
    terms = [(fir, fir)] if fir.ndim == 1 else list(zip(torch.eye(len(fir)).to(fir), fir, strict=True))
    rows = [_banded(taps * gain, x.shape[2], factors, padding[2:]) for taps, _ in terms]
    columns = [_banded(taps, x.shape[3], factors, padding[:2]) for _, taps in terms]
    products = [a @ x @ b.T for a, b in zip(rows, columns, strict=True)]
    return sum(products[1:], products[0])


def _banded(taps: Tensor, size: int, factors: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Return `[out, size]`: stuff an axis with zeros, pad, convolve with `taps`, keep every `down`-th sample."""
    up, down = factors
    out_size = (size * up + sum(padding) - len(taps)) // down + 1
    first = len(taps) - 1 - padding[0]  # where the last tap lies on the zero-stuffed axis, for the first output
    tap = (
        torch.arange(out_size, device=taps.device)[:, None] * down + first - torch.arange(size, device=taps.device) * up
    )
    return torch.where((tap >= 0) & (tap < len(taps)), taps[tap.clamp(0, len(taps) - 1)], 0)
