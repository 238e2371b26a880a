"""Convolution with FIR-filtered up- or downsampling.

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958), appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from kernels.dispatch import select
from kernels.padded_conv import Padding, PaddingLike, as_padding, as_pair, padded_conv2d, padded_conv_transpose2d
from kernels.upfirdn2d import Resampling, down_padding, fir_size, up_padding, upfirdn2d_naive, upfirdn2d_reference
from kernels.upfirdn2d import triton_limit as fir_limit


@dataclass(frozen=True, slots=True)
class ResampledConv:
    """Upsample by `up`, filter, convolve, filter, downsample by `down`; `padding` counts in upsampled pixels."""

    up: int = 1
    down: int = 1
    padding: PaddingLike = 0
    groups: int = 1
    flip_weight: bool = True  # True: correlation, as torch's conv2d; False: true convolution
    flip_filter: bool = False  # False: true convolution


SAME_SIZE = ResampledConv()


def conv2d_resample(x: Tensor, weight: Tensor, fir: Tensor | None = None, conv: ResampledConv = SAME_SIZE) -> Tensor:
    """Convolve `x` `[N, I, H, W]` with `weight` `[O, I/groups, kh, kw]` at another rate. Twice differentiable.

    `fir` is a filter of `setup_filter`, or None for none; it is not used where `up` and `down` are 1.
    """
    tensors = (x, weight) if fir is None else (x, weight, fir)
    return select("conv2d_resample", *tensors, limit=triton_limit(fir, conv))(x, weight, fir, conv)


def conv2d_resample_reference(
    x: Tensor, weight: Tensor, fir: Tensor | None = None, conv: ResampledConv = SAME_SIZE
) -> Tensor:
    """PyTorch implementation of `conv2d_resample`.

    The order of filter and convolution is the cheapest that is exact, borders included: all of them are
    convolutions of one zero-padded signal, so they commute as long as the padding is done once.
    """
    check_shapes(x, weight, conv)
    padding = full_padding(fir, conv)
    if conv.up == 1 and conv.down == 1:
        return _convolve(x, weight, conv, padding)
    if conv.up == 1:
        pointwise = weight.shape[2:] == (1, 1)
        x = upfirdn2d_reference(x, fir, fir_down(conv, conv.down if pointwise else 1, padding))
        return _convolve(x, weight, conv, stride=1 if pointwise else conv.down)
    y = _convolve_up(x, weight, fir, conv, padding)
    return upfirdn2d_reference(y, fir, fir_down(conv, conv.down)) if conv.down > 1 else y


def conv2d_resample_naive(
    x: Tensor, weight: Tensor, fir: Tensor | None = None, conv: ResampledConv = SAME_SIZE
) -> Tensor:
    """The same step by step, the convolution at the high rate. The baseline of speed-ups, and a second oracle."""
    check_shapes(x, weight, conv)
    up = Resampling(conv.up, 1, full_padding(fir, conv), conv.flip_filter, float(conv.up**2))
    y = upfirdn2d_naive(x, fir if conv.up > 1 else None, up)
    y = F.conv2d(y, _oriented(weight, conv.flip_weight), groups=conv.groups)
    return upfirdn2d_naive(y, fir, fir_down(conv, conv.down)) if conv.down > 1 else y


def _convolve_up(x: Tensor, weight: Tensor, fir: Tensor | None, conv: ResampledConv, padding: Padding) -> Tensor:
    kh, kw = weight.shape[2:]
    if (kh, kw) == (1, 1):  # the filter is the same on either side, and this side has fewer pixels to multiply
        y = _convolve(x, weight, conv)
        return upfirdn2d_reference(y, fir, fir_up(conv, conv.up, padding))
    whole = (kw - 1, kw - conv.up, kh - 1, kh - conv.up)  # nothing cropped: the filter still needs the borders
    stored = _transposed(_oriented(weight, not conv.flip_weight), conv.groups)
    y = padded_conv_transpose2d(x, stored, whole, up=(conv.up, conv.up), groups=conv.groups)
    x0, x1, y0, y1 = (pad - done for pad, done in zip(padding, whole, strict=True))
    return upfirdn2d_reference(y, fir, fir_up(conv, 1, (x0, x1, y0, y1)))


def _convolve(
    x: Tensor, weight: Tensor, conv: ResampledConv, padding: Padding = (0, 0, 0, 0), stride: int = 1
) -> Tensor:
    weight = _oriented(weight, conv.flip_weight)
    return padded_conv2d(x, weight, padding, stride=(stride, stride), groups=conv.groups)


def _oriented(weight: Tensor, as_stored: bool) -> Tensor:
    return weight if as_stored else weight.flip((2, 3))


def _transposed(weight: Tensor, groups: int) -> Tensor:
    """`[O, I/groups, kh, kw]` as torch's transposed convolution wants it, `[I, O/groups, kh, kw]`."""
    per_group = weight.reshape(groups, -1, *weight.shape[1:])
    return per_group.transpose(1, 2).flatten(0, 1)


def fir_down(conv: ResampledConv, down: int, padding: Padding = (0, 0, 0, 0)) -> Resampling:
    """The filter of a convolution as it goes before one that decimates, or decimates itself."""
    return Resampling(1, down, padding, conv.flip_filter)


def fir_up(conv: ResampledConv, up: int, padding: Padding) -> Resampling:
    """The filter of a convolution as it goes after one that stuffs zeros in, or stuffs them in itself."""
    # the zeros that were stuffed in, by this step or by the transposed convolution, take the energy of up^2 samples
    return Resampling(up, 1, padding, conv.flip_filter, float(conv.up**2))


def full_padding(fir: Tensor | None, conv: ResampledConv) -> Padding:
    """Padding of the zero-stuffed input that also feeds the filters."""
    edges = [0, 0, 0, 0]
    for axis, taps in enumerate(fir_size(fir)):
        for factor, rule in ((conv.up, up_padding), (conv.down, down_padding)):
            if factor > 1:
                before, after = rule(taps, factor)
                edges[2 * axis] += before
                edges[2 * axis + 1] += after
    x0, x1, y0, y1 = (pad + edge for pad, edge in zip(as_padding(conv.padding), edges, strict=True))
    return x0, x1, y0, y1


def triton_limit(fir: Tensor | None, conv: ResampledConv) -> str | None:
    """Why the Triton kernel can't do this, or None."""
    if conv.groups > 1:
        return f"it convolves all channels as one group, and not {conv.groups} groups"
    return fir_limit(fir, Resampling(conv.up, conv.down)) if conv.up > 1 or conv.down > 1 else None


def check_shapes(x: Tensor, weight: Tensor, conv: ResampledConv) -> None:
    """Raise ValueError unless the operands of a resampled convolution fit together."""
    as_pair(conv.up, "up")
    as_pair(conv.down, "down")
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[1] * conv.groups:
        raise ValueError(
            f"conv2d_resample: x {list(x.shape)} and weight {list(weight.shape)} with groups={conv.groups}; "
            "allowed are x [N, I, H, W] and weight [O, I/groups, kh, kw]"
        )
