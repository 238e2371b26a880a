"""What a layer does with a tile of its convolution while it still is in registers, and the host code of that."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.bias_act import LRELU_SLOPE
from kernels.bias_act_triton import activate, clamped, stored_clamp
from kernels.conv_plan import Fusion


@triton.jit
def finish(
    total, scale, noise, bias, next_style, against, y, unscaled, sums,
    rgb_weight, rgb_bias, skip, skip_fir, image, sample, live, pixel, n, tile,
    batch, out_pixels, out_width, out_channels, noise_step, alpha, gain, clamp, rgb_clamp,
    NAME: tl.constexpr, CLAMPED: tl.constexpr, MOMENTS: tl.constexpr,
    COLOURS: tl.constexpr, RGB_CLAMPED: tl.constexpr, DOUBLED: tl.constexpr,
    ONE_SAMPLE: tl.constexpr, GROUP: tl.constexpr, MASK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store what a layer makes of the convolution `total`, for a tile of pixels and output channels `n`.

    `sums` adds up `GROUP` rows at a time of `total against`. If `MOMENTS` it has the mean of these rows of the output
    instead, and after it the sum of the squares by which they differ from it.
    """
    inside_n = n < out_channels
    there = live[:, None] & inside_n[None, :] if MASK_N else live[:, None]
    at = (sample.to(tl.int64) * out_pixels + pixel)[:, None] * out_channels + n[None, :]
    GROUPS: tl.constexpr = BLOCK_M // GROUP
    group = tile * GROUPS + tl.arange(0, GROUPS)
    if against is not None:
        product = total * tl.load(against + at, there, 0.0).to(tl.float32)
        group_sums = tl.sum(tl.reshape(product, [GROUPS, GROUP, BLOCK_N]), 1)
        tl.store(sums + group[:, None] * out_channels + n[None, :], group_sums, inside_n[None, :])
    by_sample = sample * out_channels + n[None, :] if ONE_SAMPLE else sample[:, None] * out_channels + n[None, :]
    of_sample = inside_n[None, :] if ONE_SAMPLE else inside_n[None, :] & (sample < batch)[:, None]
    if scale is not None:
        total *= tl.load(scale + by_sample, of_sample, 0.0).to(tl.float32)
    if noise is not None:
        total += tl.load(noise + sample * noise_step + pixel, live, 0.0).to(tl.float32)[:, None]
    if bias is not None:
        total += tl.load(bias + n, inside_n, 0.0).to(tl.float32)[None, :]
    total = activate(total, alpha, NAME) * gain
    if CLAMPED:
        total = clamped(total, clamp)
    if MOMENTS:
        known = tl.reshape(tl.where(live[:, None], total, 0.0), [GROUPS, GROUP, BLOCK_N])
        counted = tl.reshape(live.to(tl.float32), [GROUPS, GROUP])
        mean = tl.sum(known, 1) / tl.maximum(tl.sum(counted, 1), 1.0)[:, None]
        difference = (known - mean[:, None, :]) * counted[:, :, None]
        at_sum = sums + group[:, None] * 2 * out_channels + n[None, :]
        tl.store(at_sum, mean, inside_n[None, :])
        tl.store(at_sum + out_channels, tl.sum(difference * difference, 1), inside_n[None, :])
    if COLOURS > 0:
        for colour in tl.static_range(COLOURS):
            by_colour = (sample * COLOURS + colour) * out_channels
            by_colour = by_colour + n[None, :] if ONE_SAMPLE else by_colour[:, None] + n[None, :]
            value = tl.sum(total * tl.load(rgb_weight + by_colour, of_sample, 0.0), 1)
            if rgb_bias is not None:
                value += tl.load(rgb_bias + colour).to(tl.float32)
            if RGB_CLAMPED:
                value = clamped(value, rgb_clamp)
            plane = sample.to(tl.int64) * COLOURS + colour
            if skip is not None:
                value += _skipped(skip, skip_fir, plane, pixel, live, out_pixels, out_width, DOUBLED)
            tl.store(image + plane * out_pixels + pixel, value, live)
    if unscaled is not None:
        tl.store(unscaled + at, total.to(unscaled.dtype.element_ty), there)
    if next_style is not None:
        total *= tl.load(next_style + by_sample, of_sample, 0.0).to(tl.float32)
    if y is not None:
        tl.store(y + at, total.to(y.dtype.element_ty), there)
    return total


@triton.jit
def _skipped(skip, fir, plane, pixel, live, out_pixels, out_width, DOUBLED: tl.constexpr):
    """Pixels of a plane of the image so far; if `DOUBLED` it has half the size, and `fir` of 4 x 4 taps doubles it."""
    if not DOUBLED:
        return tl.load(skip + plane * out_pixels + pixel, live, 0.0).to(tl.float32)
    row, column = pixel // out_width, pixel % out_width
    width, height = out_width // 2, out_pixels // out_width // 2
    # of every four taps along an axis, the two of one parity meet no stuffed zero
    top, left = row // 2 - 1 + row % 2, column // 2 - 1 + column % 2
    value = tl.zeros_like(pixel).to(tl.float32)
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            inside = live & (top + i >= 0) & (top + i < height) & (left + j >= 0) & (left + j < width)
            before = tl.load(skip + plane * height * width + (top + i) * width + left + j, inside, 0.0).to(tl.float32)
            value += 4 * before * tl.load(fir + (3 - row % 2 - 2 * i) * 4 + 3 - column % 2 - 2 * j)
    return value


def finish_arguments(
    fusion: Fusion, outputs: tuple[Tensor | None, Tensor | None], shape: tuple[torch.dtype, int]
) -> tuple[tuple[Any, ...], tuple[Any, ...], dict[str, Any]]:
    """Tensors, numbers and constants of `finish`; `outputs` are y and sums, `shape` is the dtype and pixels of y."""
    epilogue, act, colours = fusion.epilogue, fusion.epilogue.activation, fusion.colours
    (y, sums), (dtype, pixels) = outputs, shape
    noise = None if epilogue.noise is None else epilogue.noise.contiguous()
    noise_step = pixels if noise is not None and noise.numel() > pixels else 0
    scale, next_style, bias = (
        None if t is None else t.contiguous() for t in (fusion.scale, fusion.next_style, epilogue.bias)
    )
    against = None if fusion.against is None else fusion.against.contiguous(memory_format=torch.channels_last)
    alpha = LRELU_SLOPE if act.alpha is None else act.alpha
    painted: tuple[Tensor | None, ...] = (None,) * 5
    if colours is not None:
        read = (colours.weight, colours.bias, colours.skip, colours.fir)
        painted = (*(None if t is None else t.contiguous() for t in read), colours.image)
    rgb_clamp = None if colours is None else colours.clamp
    tensors = (scale, noise, bias, next_style, against, y, fusion.unscaled, sums, *painted)
    numbers = (noise_step, alpha, act.full_gain, stored_clamp(act.clamp, dtype), rgb_clamp or 0.0)
    constants = {
        "NAME": act.name, "CLAMPED": act.clamp is not None, "MOMENTS": fusion.moments,
        "COLOURS": 0 if colours is None else colours.image.shape[1], "RGB_CLAMPED": rgb_clamp is not None,
        "DOUBLED": colours is not None and colours.fir is not None,
    }  # fmt: skip
    return tensors, numbers, constants


def new_sums(fusion: Fusion, like: Tensor, shape: tuple[int, int, int]) -> Tensor | None:
    """A buffer of phases, groups of rows and channels for what `fusion` wants summed up, if anything."""
    if fusion.against is None and not fusion.moments:
        return None
    phases, groups, channels = shape
    return like.new_empty(phases, groups, 2 if fusion.moments else 1, channels, dtype=torch.float32)


def add_up(sums: Tensor | None, fusion: Fusion, n: int, rows: tuple[int, int, int]) -> Tensor | None:
    """Put together, in a fixed order, the sums `[N, C]`, or the moments `[2, N, C]`: mean and variance.

    `rows` are those of a sample, of a group, and those that are pixels; idle rows come last.
    """
    if sums is None:
        return None
    padded, group, pixels = rows
    groups = padded // group
    found = sums[:, : n * groups].reshape(-1, n, groups, *sums.shape[2:])
    if not fusion.moments:
        return found[:, :, :, 0].sum((0, 2))
    # of equal parts, or nearly so: the squares of differences are small ones, and nothing is lost (Chan et al. 1979)
    weights = (pixels - torch.arange(groups, device=sums.device) * group).clamp(0, group)[:, None] / pixels
    means, squares = found[0].unbind(2)
    mean = (means * weights).sum(1)
    return torch.stack([mean, ((means - mean[:, None]).square() * weights).sum(1) + squares.sum(1) / pixels])
