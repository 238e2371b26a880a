"""Convolution as an implicit matrix product, with all that a modulated layer does before and after it.

Rows of the product are output pixels, columns are output channels, and the sum runs over taps and input channels of
images `[N, H, W, C]`. A transposed convolution is one such product for each phase of its output, all in one launch.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.bias_act import LRELU_SLOPE, Activation
from kernels.bias_act_triton import activate, clamped, stored_clamp
from kernels.conv_geometry import Geometry
from kernels.conv_plan import (
    NO_FUSION,
    Fusion,
    Tile,
    case_of_dtype,
    choose_tile,
    precision,
    prepare_weight,
    rows_of_sample,
)
from kernels.launch import CompileCase, Options, TensorCores, launch
from kernels.modulated_conv import Epilogue

SUM_BLOCK, SUM_OPTIONS = 32, Options(num_warps=4)  # output channels of a tile that adds up parts


@triton.jit
def _finish(
    total, scale, noise, bias, next_style, against, y, sums, sample, live, pixel, n, tile,
    batch, out_pixels, out_channels, noise_step, alpha, gain, clamp,
    NAME: tl.constexpr, CLAMPED: tl.constexpr, ONE_SAMPLE: tl.constexpr, GROUP: tl.constexpr, MASK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store what a layer makes of the convolution `total`, for a tile of pixels and output channels `n`.

    `sums` adds up `GROUP` rows at a time of `total against`.
    """
    inside_n = n < out_channels
    there = live[:, None] & inside_n[None, :] if MASK_N else live[:, None]
    at = (sample.to(tl.int64) * out_pixels + pixel)[:, None] * out_channels + n[None, :]
    if sums is not None:
        product = total * tl.load(against + at, there, 0.0).to(tl.float32)
        GROUPS: tl.constexpr = BLOCK_M // GROUP
        group_sums = tl.sum(tl.reshape(product, [GROUPS, GROUP, BLOCK_N]), 1)
        group = tile * GROUPS + tl.arange(0, GROUPS)
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
    if next_style is not None:
        total *= tl.load(next_style + by_sample, of_sample, 0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), there)


@triton.jit
def _conv_kernel(
    x, weight, style, scale, noise, bias, next_style, against, y, sums,
    batch, rows_per_sample, in_height, in_width, in_channels, padded_channels,
    out_height, out_width, out_channels, phase_height, phase_width, noise_step, alpha, gain, clamp,
    NAME: tl.constexpr, CLAMPED: tl.constexpr, PRECISION: tl.constexpr,
    KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, PAD_Y: tl.constexpr, PAD_X: tl.constexpr,
    UP: tl.constexpr, DOWN: tl.constexpr, ONE_SAMPLE: tl.constexpr, GROUP: tl.constexpr,
    MASK_K: tl.constexpr, MASK_N: tl.constexpr, PARTIAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`y = clamp(act(conv(x style, weight) scale + noise + bias) gain) next_style`; `sums` of `conv(...) against`.

    `x` `[N, H, W, I]`, `weight` `[O, taps, padded I]`; a program makes `BLOCK_M` pixels of one phase. A sample has
    `rows_per_sample` rows, of which those after its last pixel are idle. If `PARTIAL`, `y` is `[parts, N, H, W, O]`
    and gets nothing but the convolution, of a part of taps and channels.
    """
    tiles_n = tl.cdiv(out_channels, BLOCK_N)
    tile_m, tile_n = tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n
    phase_y, phase_x = tl.program_id(1) // UP, tl.program_id(1) % UP
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    sample = tile_m * BLOCK_M // rows_per_sample if ONE_SAMPLE else row // rows_per_sample
    pixel = row - sample * rows_per_sample
    live = pixel < phase_height * phase_width
    if not ONE_SAMPLE:
        live = live & (sample < batch)
    phase_row, phase_column = pixel // phase_width, pixel % phase_width
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = n < out_channels
    k = tl.arange(0, BLOCK_K)

    # the taps of this phase are those that meet no stuffed zero
    first_y = (phase_y * (UP - 1) + PAD_Y % UP) % UP
    first_x = (phase_x * (UP - 1) + PAD_X % UP) % UP
    taps_y, taps_x = (KERNEL_Y - first_y + UP - 1) // UP, (KERNEL_X - first_x + UP - 1) // UP
    top = phase_row * DOWN + (phase_y + first_y - PAD_Y) // UP
    left = phase_column * DOWN + (phase_x + first_x - PAD_X) // UP
    x_sample = x + sample.to(tl.int64) * in_height * in_width * in_channels
    weight_row = weight + n[None, :] * (KERNEL_Y * KERNEL_X) * padded_channels + k[:, None]
    taps = taps_y * taps_x
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    steps = taps * (padded_channels // BLOCK_K)
    begin, end = 0, steps
    if PARTIAL:
        part = tl.cdiv(steps, tl.num_programs(2))
        begin = tl.program_id(2) * part
        end = tl.minimum(begin + part, steps)
    for step in tl.range(begin, end):
        tap, first_k = step % taps, (step // taps) * BLOCK_K
        in_row, in_column = top + tap // taps_x, left + tap % taps_x
        inside = live & (in_row >= 0) & (in_row < in_height) & (in_column >= 0) & (in_column < in_width)
        at = (in_row * in_width + in_column) * in_channels + first_k
        there = inside[:, None]
        if MASK_K:
            there = there & (first_k + k < in_channels)[None, :]
        a = tl.load((x_sample + at)[:, None] + k[None, :], there, 0.0)
        if style is not None:
            known = (first_k + k < in_channels) if MASK_K else (k >= 0)
            if ONE_SAMPLE:
                a *= tl.load(style + sample * in_channels + first_k + k, known, 0.0)[None, :]
            else:
                at_style = (sample * in_channels + first_k)[:, None] + k[None, :]
                a *= tl.load(style + at_style, known[None, :] & (sample < batch)[:, None], 0.0)
        weight_tap = (first_y + tap // taps_x * UP) * KERNEL_X + first_x + tap % taps_x * UP
        b = tl.load(weight_row + weight_tap * padded_channels + first_k)
        total = tl.dot(a, b, total, input_precision=PRECISION)

    out_row, out_column = phase_row * UP + phase_y, phase_column * UP + phase_x
    live = live & (out_row < out_height) & (out_column < out_width)
    out_pixel = out_row * out_width + out_column
    if PARTIAL:
        there = live[:, None] & inside_n[None, :]
        at = (sample.to(tl.int64) * out_height * out_width + out_pixel)[:, None] * out_channels + n[None, :]
        whole = batch * out_height * out_width * out_channels  # small images only
        tl.store(y + tl.program_id(2) * whole + at, total, there)
    else:
        tiles_m = tl.num_programs(0) // tiles_n
        _finish(
            total, scale, noise, bias, next_style, against, y, sums, sample, live, out_pixel, n,
            tl.program_id(1) * tiles_m + tile_m, batch, out_height * out_width, out_channels, noise_step,
            alpha, gain, clamp, NAME, CLAMPED, ONE_SAMPLE, GROUP, MASK_N, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def _sum_kernel(
    partial, scale, noise, bias, next_style, against, y, sums,
    batch, rows_per_sample, out_pixels, out_channels, parts, noise_step, alpha, gain, clamp,
    NAME: tl.constexpr, CLAMPED: tl.constexpr, ONE_SAMPLE: tl.constexpr, GROUP: tl.constexpr, MASK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add up the parts of a convolution whose channels and taps several programs shared, and finish it."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    sample = tl.program_id(0) * BLOCK_M // rows_per_sample if ONE_SAMPLE else row // rows_per_sample
    pixel = row - sample * rows_per_sample
    live = pixel < out_pixels
    if not ONE_SAMPLE:
        live = live & (sample < batch)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = (sample.to(tl.int64) * out_pixels + pixel)[:, None] * out_channels + n[None, :]
    there = live[:, None] & (n < out_channels)[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for part in tl.range(0, parts):
        total += tl.load(partial + part * (batch * out_pixels * out_channels) + at, there, 0.0)
    _finish(
        total, scale, noise, bias, next_style, against, y, sums, sample, live, pixel, n, tl.program_id(0),
        batch, out_pixels, out_channels, noise_step, alpha, gain, clamp,
        NAME, CLAMPED, ONE_SAMPLE, GROUP, MASK_N, BLOCK_M, BLOCK_N,
    )  # fmt: skip


def convolve(x: Tensor, weight: Tensor, geometry: Geometry, fusion: Fusion = NO_FUSION) -> tuple[Tensor, Tensor | None]:
    """Convolve `x` `[N, C, H, W]` with `weight`, stored `[O, I, kh, kw]`; the output is channels_last.

    Also returns the sums `[N, C]`, in float32, that `fusion.against` asks for. Not differentiable.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    n, out_channels = x.shape[0], weight.shape[1 if geometry.swapped else 0]
    shape = (n, out_channels, *geometry.out_size)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if y.numel() == 0:
        return y, None if fusion.against is None else y.new_zeros(n, out_channels, dtype=torch.float32)
    tile = choose_tile(x, geometry, out_channels, fusion)
    prepared = prepare_weight(weight, geometry, tile, x.dtype, fusion.weight_gain)
    if tile.parts == 1:
        return y, _launch(x, prepared, y, fusion, (geometry, tile))
    partial = x.new_empty(tile.parts, n, *geometry.out_size, out_channels, dtype=torch.float32)
    _launch(x, prepared, partial, Fusion(fusion.style), (geometry, tile))
    return y, _add_parts(partial, y, fusion, tile)


def _launch(x: Tensor, weight: Tensor, y: Tensor, fusion: Fusion, plan: tuple[Geometry, Tile]) -> Tensor | None:
    """Run the convolution into `y`, whole or, if its first dimension has them, in parts; return the sums."""
    geometry, tile = plan
    n, channels, out_channels = x.shape[0], x.shape[1], y.shape[-1] if tile.parts > 1 else y.shape[1]
    phase_pixels, phases = geometry.phase_size[0] * geometry.phase_size[1], geometry.up**2
    rows, group = rows_of_sample(phase_pixels, tile.m, separate=fusion.against is not None)
    tiles = triton.cdiv(n * rows, tile.m)
    sums = _new_sums(y, fusion, (phases, tiles * tile.m // group, out_channels))
    style = None if fusion.style is None else fusion.style.to(x.dtype).contiguous()
    tensors, numbers, constants = _epilogue(fusion, y, geometry.pixels)
    sizes = (
        *(n, rows, *geometry.in_size, channels, weight.shape[2]),
        *(*geometry.out_size, out_channels, *geometry.phase_size),
    )
    constants |= {
        "PRECISION": precision(x.dtype), "KERNEL_Y": geometry.kernel[0], "KERNEL_X": geometry.kernel[1],
        "PAD_Y": geometry.pad[0], "PAD_X": geometry.pad[1], "UP": geometry.up, "DOWN": geometry.down,
        "ONE_SAMPLE": rows % tile.m == 0, "GROUP": group, "PARTIAL": tile.parts > 1,
        "MASK_K": channels % tile.k != 0, "MASK_N": out_channels % tile.n != 0,
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
    }  # fmt: skip
    grid = (tiles * triton.cdiv(out_channels, tile.n), phases, tile.parts)
    launch(_conv_kernel, grid, (x, weight, style, *tensors, y, sums, *sizes, *numbers), constants, tile.options)
    return _total(sums, n, rows // group)


def _add_parts(partial: Tensor, y: Tensor, fusion: Fusion, tile: Tile) -> Tensor | None:
    n, out_channels, pixels = y.shape[0], y.shape[1], y.shape[2] * y.shape[3]
    block = min(tile.m, 64)
    rows, group = rows_of_sample(pixels, block, separate=fusion.against is not None)
    tiles = triton.cdiv(n * rows, block)
    sums = _new_sums(y, fusion, (1, tiles * block // group, out_channels))
    tensors, numbers, constants = _epilogue(fusion, y, pixels)
    constants |= {
        "ONE_SAMPLE": rows % block == 0, "GROUP": group, "MASK_N": out_channels % SUM_BLOCK != 0,
        "BLOCK_M": block, "BLOCK_N": SUM_BLOCK,
    }  # fmt: skip
    sizes = (n, rows, pixels, out_channels, len(partial))
    grid = (tiles, triton.cdiv(out_channels, SUM_BLOCK))
    launch(_sum_kernel, grid, (partial, *tensors, y, sums, *sizes, *numbers), constants, SUM_OPTIONS)
    return _total(sums, n, rows // group)


def _epilogue(fusion: Fusion, y: Tensor, pixels: int) -> tuple[tuple[Any, ...], tuple[Any, ...], dict[str, Any]]:
    """Tensors, numbers and constants that say what happens after the convolution."""
    epilogue, act = fusion.epilogue, fusion.epilogue.activation
    noise = None if epilogue.noise is None else epilogue.noise.contiguous()
    noise_step = pixels if noise is not None and noise.numel() > pixels else 0
    scale, next_style = (None if t is None else t.contiguous() for t in (fusion.scale, fusion.next_style))
    against = None if fusion.against is None else fusion.against.contiguous(memory_format=torch.channels_last)
    alpha = LRELU_SLOPE if act.alpha is None else act.alpha
    numbers = (noise_step, alpha, act.full_gain, stored_clamp(act.clamp, y.dtype))
    constants = {"NAME": act.name, "CLAMPED": act.clamp is not None}
    return (scale, noise, epilogue.bias, next_style, against), numbers, constants


def _new_sums(y: Tensor, fusion: Fusion, shape: tuple[int, int, int]) -> Tensor | None:
    return None if fusion.against is None else y.new_empty(shape, dtype=torch.float32)


def _total(sums: Tensor | None, n: int, groups: int) -> Tensor | None:
    """Add up, in a fixed order, the `groups` of each of `n` samples in all phases; idle groups come last."""
    if sums is None:
        return None
    return sums[:, : n * groups].reshape(-1, n, groups, sums.shape[2]).sum((0, 2))


def _case(name: str, x: tuple[int, int, int, int], outputs: int, dtype: str) -> CompileCase:
    """The gradient of the input of a layer, and of its styles."""

    def call(dtype: torch.dtype) -> None:
        weight, size = torch.empty(outputs, x[1], 3, 3, device="meta"), (x[2], x[3])
        geometry = Geometry.of(size, (3, 3), (1, 1, 1, 1))
        if name.startswith("up"):
            geometry = Geometry.upsampling(size, (3, 3), 2, flipped=True)
        dy = torch.empty(x[0], outputs, *geometry.out_size, dtype=dtype, device="meta")
        image, styles = torch.empty(x, dtype=dtype, device="meta"), torch.empty(x[:2], device="meta")
        convolve(dy, weight, geometry.transposed, Fusion(scale=styles, against=image))

    return case_of_dtype(f"conv/gradient-{name}", dtype, "warpgroup", call)


def _parts_cases(x: tuple[int, int, int, int], dtype: str) -> tuple[CompileCase, CompileCase]:
    """The two launches of a layer whose images are so small that programs share the channels."""
    size, shape = (x[2], x[3]), f"{x[0]}-{x[1]}-{x[2]}"
    geometry = Geometry.of(size, (3, 3), (1, 1, 1, 1))

    def call(dtype: torch.dtype) -> None:
        image, styles = torch.empty(x, dtype=dtype, device="meta"), torch.empty(x[:2], device="meta")
        tile = choose_tile(image, geometry, x[1], NO_FUSION)
        weight = prepare_weight(torch.empty(x[1], x[1], 3, 3, device="meta"), geometry, tile, dtype, None)
        _launch(
            image, weight, torch.empty(tile.parts, x[0], *size, x[1], device="meta"), Fusion(styles), (geometry, tile)
        )

    def call_sum(dtype: torch.dtype) -> None:
        image, scale = torch.empty(x, dtype=dtype, device="meta"), torch.empty(x[:2], device="meta")
        epilogue = Epilogue(torch.empty(size, device="meta"), torch.empty(x[1], device="meta"), Activation("lrelu"))
        partial, tile = torch.empty(4, x[0], *size, x[1], device="meta"), Tile(64, 64, 64, SUM_OPTIONS, 4)
        _add_parts(partial, image, Fusion(None, scale, epilogue), tile)

    # a tile of fewer pixels than a warpgroup multiplies at once
    units: TensorCores = "warpgroup" if x[0] * x[2] * x[3] >= 64 else "any"
    return (
        case_of_dtype(f"conv/parts-{shape}", dtype, units, call),
        case_of_dtype(f"conv/sum-{shape}", dtype, "none", call_sum),
    )


COMPILE_CASES = (
    _case("512-512-64", (16, 512, 64, 64), 512, "float16"),
    _case("512-512-64", (16, 512, 64, 64), 512, "float32"),
    _case("512-512-64", (16, 512, 64, 64), 512, "tf32"),
    _case("32-32-1024", (4, 32, 1024, 1024), 32, "bfloat16"),
    _case("up-512-512-32", (16, 512, 32, 32), 512, "float16"),
    *_parts_cases((16, 512, 4, 4), "float16"),
    *_parts_cases((1, 512, 4, 4), "float16"),
    *_parts_cases((1, 512, 16, 16), "float32"),
)
