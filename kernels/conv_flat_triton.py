"""Convolution of flat images: 3x3 with all pixels kept, and 1x1, in half precision.

A tap is a shift of the tile by whole rows, so both operands come to shared memory as rectangles, by the copy engine,
and go to the tensor cores from there. Nothing is done to them on the way: the image comes scaled by its styles.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

from contextvars import copy_context
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.bias_act import Activation
from kernels.conv_epilogue_triton import finish, finish_arguments
from kernels.conv_flat import choose_flat_tile, flat_tiles, offset_of, reciprocal_of
from kernels.conv_geometry import Geometry
from kernels.conv_plan import NO_FUSION, Fusion, case_of_dtype, prepare_weight, processors
from kernels.flat_image import ROWS, FlatImage
from kernels.flat_image_triton import lay_flat
from kernels.launch import CompileCase, Options, architecture, launch
from kernels.modulated_conv import Epilogue


@triton.jit
def _finish_flat(
    total, scale, noise, bias, next_style, y, unscaled, flat_y,
    sample, row, reciprocal, n, batch, pitch, height, width, out_channels, noise_step, alpha, gain, clamp,
    NAME: tl.constexpr, CLAMPED: tl.constexpr, MASK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store what a layer makes of a tile that begins at `row` of its sample and at the channel `n`."""
    rows = row + tl.arange(0, BLOCK_M)
    line = tl.umulhi(rows.to(tl.uint32), reciprocal.to(tl.uint32)).to(tl.int32)
    live = (rows - line * (width + 1) < width) & (line < height)
    total = finish(
        total, scale, noise, bias, next_style, None, y, unscaled, None, None, None, None, None, None,
        sample, live, rows - line, n + tl.arange(0, BLOCK_N), 0,
        batch, height * width, width, out_channels, noise_step, alpha, gain, clamp, 0.0,
        NAME, CLAMPED, False, 0, False, False, True, BLOCK_M, MASK_N, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if flat_y is not None:
        flat_y.store([sample * pitch + row, n], tl.where(live[:, None], total, 0.0).to(flat_y.dtype))


@triton.jit
def _conv_flat_kernel(
    x, weight, scale, noise, bias, next_style, y, unscaled,
    batch, pitch, height, width, in_channels, padded_channels, out_channels, reciprocal, noise_step, alpha, gain, clamp,
    NAME: tl.constexpr, CLAMPED: tl.constexpr, TAPS: tl.constexpr, FLAT: tl.constexpr, SPECIALIZED: tl.constexpr,
    MASK_N: tl.constexpr, HALVES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`y = clamp(act(conv(x, weight) scale + noise + bias) gain) next_style`; `unscaled` is that without its style.

    `x` is flat `[N pitch, I]`, `weight` `[O, taps, padded I]`, `y` flat if `FLAT` and else `[N, H, W, O]`. A tile is
    `HALVES * BLOCK_N` channels wide; the second half has sums of its own, so that one at a time is finished.
    `reciprocal` is that of `width + 1`: see `reciprocal_of`.
    """
    row_width = width + 1
    tiles_m = pitch // BLOCK_M if FLAT else tl.cdiv(height * row_width, BLOCK_M)
    tiles_n = tl.cdiv(out_channels, HALVES * BLOCK_N)
    x_tiles = tl.make_tensor_descriptor(x, [batch * pitch, in_channels], [in_channels, 1], [BLOCK_M, BLOCK_K])
    padded_outputs = tiles_n * HALVES * BLOCK_N
    taps_channels = TAPS * padded_channels
    w_tiles = tl.make_tensor_descriptor(weight, [padded_outputs, taps_channels], [taps_channels, 1], [BLOCK_N, BLOCK_K])
    flat_y = None
    if FLAT:
        flat_y = tl.make_tensor_descriptor(y, [batch * pitch, out_channels], [out_channels, 1], [BLOCK_M, BLOCK_N])
    tiles = batch * tiles_m * tiles_n
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=False, warp_specialize=SPECIALIZED):
        tile_m = tile // tiles_n
        n = tile % tiles_n * (HALVES * BLOCK_N)
        sample = tile_m // tiles_m
        row = tile_m % tiles_m * BLOCK_M
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        second = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        steps = TAPS * (padded_channels // BLOCK_K)
        if FLAT:
            steps = steps if row < height * row_width else 0  # of the zeros after the last line
        for step in tl.range(0, steps):
            tap, k = step % TAPS, step // TAPS * BLOCK_K
            shift = 0
            if TAPS == 9:
                shift = (tap // 3 - 1) * row_width + tap % 3 - 1
            a = x_tiles.load([sample * pitch + row + shift, k])
            b = w_tiles.load([n, tap * padded_channels + k])
            total = tl.dot(a, b.T, total)
            if HALVES == 2:
                b = w_tiles.load([n + BLOCK_N, tap * padded_channels + k])
                second = tl.dot(a, b.T, second)
        _finish_flat(
            total, scale, noise, bias, next_style, None if FLAT else y, unscaled, flat_y,
            sample, row, reciprocal, n, batch, pitch, height, width, out_channels,
            noise_step, alpha, gain, clamp, NAME, CLAMPED, MASK_N, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        if HALVES == 2:
            _finish_flat(
                second, scale, noise, bias, next_style, None if FLAT else y, unscaled, flat_y,
                sample, row, reciprocal, n + BLOCK_N, batch, pitch, height, width, out_channels,
                noise_step, alpha, gain, clamp, NAME, CLAMPED, MASK_N, BLOCK_M, BLOCK_N,
            )  # fmt: skip


def convolve_flat(image: FlatImage, weight: Tensor, geometry: Geometry, fusion: Fusion = NO_FUSION) -> FlatImage:
    """Convolve a flat image with `weight`, stored `[O, I, k, k]`; what `flat_limit` names is not looked for.

    The image has the size of the output. Raises ValueError for styles: `lay_flat` multiplies by these, or the layer
    before. Not differentiable.
    """
    if fusion.style is not None or image.size != geometry.out_size:
        raise ValueError(
            f"convolve_flat: an image of {image.size} for {geometry.out_size}, and `style` "
            f"{'is' if fusion.style is None else 'is not'} None; allowed are the size of the output and None: "
            "give `lay_flat` the styles and the size"
        )
    y = FlatImage.empty(len(image.rows) // image.pitch, _outputs(weight, geometry), image.size, image.rows)
    _launch(image, weight, y.rows, geometry, fusion)
    return y


def convolve_through_flat(x: Tensor, weight: Tensor, geometry: Geometry, fusion: Fusion = NO_FUSION) -> Tensor:
    """Do the same as `convolve`, by way of a flat copy of `x` that is scaled by `fusion.style`."""
    shape = (x.shape[0], _outputs(weight, geometry), *geometry.out_size)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _launch(lay_flat(x, fusion.style, geometry.out_size, offset_of(geometry)), weight, y, geometry, fusion)
    return y


def _launch(image: FlatImage, weight: Tensor, y: Tensor, geometry: Geometry, fusion: Fusion) -> None:
    """Run the convolution into `y`, which is flat if it has two dimensions."""
    x, (height, width), flat = image.rows, image.size, y.ndim == 2
    batch, outputs = len(x) // image.pitch, y.shape[1]
    tile = choose_flat_tile(batch, image.size, (x.shape[1], outputs), x.device)
    prepared = prepare_weight(weight, geometry, tile, x.dtype, fusion.weight_gain)
    tensors, (*numbers, _), constants = finish_arguments(fusion, (y, None), (x.dtype, height * width))
    scale, noise, bias, next_style, _, _, unscaled, *_ = tensors
    halves = 2 if tile.n == 256 else 1
    constants = {name: constants[name] for name in ("NAME", "CLAMPED")} | {
        "TAPS": weight.shape[2] * weight.shape[3], "FLAT": flat, "SPECIALIZED": architecture(x.device) < 100,
        "MASK_N": outputs % tile.n != 0, "HALVES": halves,
        "BLOCK_M": tile.m, "BLOCK_N": tile.n // halves, "BLOCK_K": tile.k,
    }  # fmt: skip
    sizes = (batch, image.pitch, height, width, x.shape[1], prepared.shape[2], outputs, reciprocal_of(width))
    arguments = (x, prepared, scale, noise, bias, next_style, y, unscaled, *sizes, *numbers)
    tiles = (len(x) // ROWS if flat else flat_tiles(batch, image.size)) * triton.cdiv(outputs, tile.n)
    if tiles:
        grid = (min(tiles, processors(x.device)),)
        copy_context().run(_launch_with_workspace, grid, arguments, constants, tile.options)


def _launch_with_workspace(
    grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any], options: Options
) -> None:
    """Launch with memory for descriptors of tensors, in a context of its own: Triton keeps its allocator in one."""
    triton.set_allocator(_workspace)
    launch(_conv_flat_kernel, grid, arguments, constants, options)


def _workspace(size: int, _alignment: int, _stream: int | None) -> Tensor:
    """Bytes on the current GPU, for the stream that PyTorch is at; it aligns to 512 of them."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _outputs(weight: Tensor, geometry: Geometry) -> int:
    return weight.shape[1 if geometry.swapped else 0]


def _case(name: str, x: tuple[int, int, int, int], outputs: int, dtype: str) -> CompileCase:
    """A layer; those of a chain also scale their output for the next one, or are flat like it."""

    def call(dtype: torch.dtype) -> None:
        size, taps = (x[2], x[3]), 1 if name == "pointwise" else 3
        weight = torch.empty(outputs, x[1], taps, taps, device="meta")
        geometry = Geometry.of(size, (taps, taps), (taps // 2,) * 4)
        image = FlatImage.empty(x[0], x[1], size, torch.empty((), dtype=dtype, device="meta"))
        y = torch.empty(x[0], outputs, *size, dtype=dtype, device="meta")
        unscaled = y if name != "layer" else None
        y = FlatImage.empty(x[0], outputs, size, y).rows if name == "flat" else y
        scale, noise, bias = (torch.empty(shape, device="meta") for shape in ((x[0], outputs), size, outputs))
        epilogue = Epilogue(noise, bias, Activation("lrelu", clamp=256.0))
        next_style = None if unscaled is None else scale
        _launch(image, weight, y, geometry, Fusion(None, scale, epilogue, next_style, unscaled=unscaled))

    case = case_of_dtype(f"conv_flat/{name}-{x[1]}-{outputs}-{x[2]}", dtype, "warpgroup", call)
    return replace(case, architectures=(90, 100))


DTYPES = ("float16", "bfloat16")
COMPILE_CASES = tuple(
    _case(name, x, outputs, dtype)
    for name, x, outputs, dtypes in (
        ("layer", (16, 512, 64, 64), 512, DTYPES),
        ("flat", (16, 512, 64, 64), 512, DTYPES),
        ("flat", (16, 256, 128, 128), 256, DTYPES),
        ("flat", (16, 128, 256, 256), 128, DTYPES),
        ("chain", (16, 512, 64, 64), 512, DTYPES[:1]),
        ("layer", (16, 336, 148, 148), 208, DTYPES[:1]),
        ("pointwise", (16, 1024, 36, 36), 1024, DTYPES[:1]),
        ("flat", (1, 512, 64, 64), 64, DTYPES[:1]),
    )
    for dtype in dtypes
)
