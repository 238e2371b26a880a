"""Convolution as an implicit matrix product, with all that a modulated layer does before and after it.

Rows of the product are output pixels, columns are output channels, and the sum runs over taps and input channels of
images `[N, H, W, C]`. A transposed convolution is one such product for each phase of its output, all in one launch.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.bias_act import Activation
from kernels.conv_epilogue_triton import add_up, finish, finish_arguments, new_sums
from kernels.conv_flat import flat_limit, flat_pays
from kernels.conv_flat_triton import convolve_through_flat
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
def _conv_kernel(
    x, weight, style, scale, noise, bias, next_style, against, y, unscaled, sums,
    rgb_weight, rgb_bias, skip, skip_fir, image,
    batch, rows_per_sample, in_height, in_width, in_channels, padded_channels,
    out_height, out_width, out_channels, phase_height, phase_width, noise_step, alpha, gain, clamp, rgb_clamp,
    NAME: tl.constexpr, CLAMPED: tl.constexpr, MOMENTS: tl.constexpr, PRECISION: tl.constexpr,
    COLOURS: tl.constexpr, RGB_CLAMPED: tl.constexpr, DOUBLED: tl.constexpr,
    IN_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr,
    KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, PAD_Y: tl.constexpr, PAD_X: tl.constexpr,
    UP: tl.constexpr, DOWN: tl.constexpr, ONE_SAMPLE: tl.constexpr, GROUP: tl.constexpr,
    MASK_K: tl.constexpr, MASK_N: tl.constexpr, PARTIAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`y = clamp(act(conv(x style, weight) scale + noise + bias) gain) next_style`; `sums` of `conv(...) against`.

    `x` `[N, H, W, I]`, `weight` `[O, taps, padded I]`; a program makes `BLOCK_M` pixels of one phase. A sample has
    `rows_per_sample` rows, of which those after its last pixel are idle. If `PARTIAL`, `y` is `[parts, N, H, W, O]`
    and gets nothing but the convolution, of a part of taps and channels. Channels are counted in units.
    """
    in_channels, out_channels = in_channels * IN_UNIT, out_channels * OUT_UNIT
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
        finish(
            total, scale, noise, bias, next_style, against, y, unscaled, sums,
            rgb_weight, rgb_bias, skip, skip_fir, image, sample, live, out_pixel, n,
            tl.program_id(1) * tiles_m + tile_m, batch, out_height * out_width, out_width, out_channels, noise_step,
            alpha, gain, clamp, rgb_clamp, NAME, CLAMPED, MOMENTS, COLOURS, RGB_CLAMPED, DOUBLED,
            ONE_SAMPLE, GROUP, MASK_N, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def _sum_kernel(
    partial, scale, noise, bias, next_style, against, y, unscaled, sums,
    batch, rows_per_sample, out_pixels, out_channels, parts, noise_step, alpha, gain, clamp,
    NAME: tl.constexpr, CLAMPED: tl.constexpr, MOMENTS: tl.constexpr,
    ONE_SAMPLE: tl.constexpr, GROUP: tl.constexpr, MASK_N: tl.constexpr,
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
    finish(
        total, scale, noise, bias, next_style, against, y, unscaled, sums, None, None, None, None, None,
        sample, live, pixel, n, tl.program_id(0),
        batch, out_pixels, 1, out_channels, noise_step, alpha, gain, clamp, 0.0,
        NAME, CLAMPED, MOMENTS, 0, False, False, ONE_SAMPLE, GROUP, MASK_N, BLOCK_M, BLOCK_N,
    )  # fmt: skip


def convolve(x: Tensor, weight: Tensor, geometry: Geometry, fusion: Fusion = NO_FUSION) -> tuple[Tensor, Tensor | None]:
    """Convolve `x` `[N, C, H, W]` with `weight`, stored `[O, I, kh, kw]`; the output is channels_last.

    Also returns, in float32, the sums `[N, C]` that `fusion.against` asks for, or the moments `[2, N, C]`. An output
    that isn't kept comes back without values, on the device "meta". Not differentiable.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    n, out_channels = x.shape[0], weight.shape[1 if geometry.swapped else 0]
    if flat_pays(x, geometry, out_channels) and flat_limit(x, geometry, out_channels, fusion) is None:
        return convolve_through_flat(x, weight, geometry, fusion), None
    shape = (n, out_channels, *geometry.out_size)
    device = x.device if fusion.keep else torch.device("meta")
    y = torch.empty(shape, dtype=x.dtype, device=device, memory_format=torch.channels_last)
    if y.numel() == 0:
        return y, x.new_zeros((2, *shape[:2]) if fusion.moments else shape[:2]).float() if fusion.sums_up else None
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
    rows, group = rows_of_sample(phase_pixels, tile.m, separate=fusion.sums_up)
    tiles = triton.cdiv(n * rows, tile.m)
    sums = new_sums(fusion, x, (phases, tiles * tile.m // group, out_channels))
    style = None if fusion.style is None else fusion.style.to(x.dtype).contiguous()
    tensors, numbers, constants = finish_arguments(
        fusion, (y if fusion.keep else None, sums), (y.dtype, geometry.pixels)
    )
    in_unit, out_unit = (8 if count % 16 == 8 else 1 for count in (channels, out_channels))  # Triton sees 16 itself
    sizes = (
        *(n, rows, *geometry.in_size, channels // in_unit, weight.shape[2]),
        *(*geometry.out_size, out_channels // out_unit, *geometry.phase_size),
    )
    constants |= {
        "PRECISION": precision(x.dtype), "IN_UNIT": in_unit, "OUT_UNIT": out_unit,
        "KERNEL_Y": geometry.kernel[0], "KERNEL_X": geometry.kernel[1],
        "PAD_Y": geometry.pad[0], "PAD_X": geometry.pad[1], "UP": geometry.up, "DOWN": geometry.down,
        "ONE_SAMPLE": rows % tile.m == 0, "GROUP": group, "PARTIAL": tile.parts > 1,
        "MASK_K": channels % tile.k != 0, "MASK_N": out_channels % tile.n != 0,
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
    }  # fmt: skip
    grid = (tiles * triton.cdiv(out_channels, tile.n), phases, tile.parts)
    launch(_conv_kernel, grid, (x, weight, style, *tensors, *sizes, *numbers), constants, tile.options)
    return add_up(sums, fusion, n, (rows, group, phase_pixels))


def _add_parts(partial: Tensor, y: Tensor, fusion: Fusion, tile: Tile) -> Tensor | None:
    n, out_channels, pixels = y.shape[0], y.shape[1], y.shape[2] * y.shape[3]
    block = min(tile.m, 64)
    rows, group = rows_of_sample(pixels, block, separate=fusion.sums_up)
    tiles = triton.cdiv(n * rows, block)
    sums = new_sums(fusion, partial, (1, tiles * block // group, out_channels))
    (*tensors, _, _, _, _, _), (*numbers, _), constants = finish_arguments(fusion, (y, sums), (y.dtype, pixels))
    constants = {name: constants[name] for name in ("NAME", "CLAMPED", "MOMENTS")} | {
        "ONE_SAMPLE": rows % block == 0, "GROUP": group, "MASK_N": out_channels % SUM_BLOCK != 0,
        "BLOCK_M": block, "BLOCK_N": SUM_BLOCK,
    }  # fmt: skip
    sizes = (n, rows, pixels, out_channels, len(partial))
    grid = (tiles, triton.cdiv(out_channels, SUM_BLOCK))
    launch(_sum_kernel, grid, (partial, *tensors, *sizes, *numbers), constants, SUM_OPTIONS)
    return add_up(sums, fusion, n, (rows, group, pixels))


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


def _reader_case(name: str, x: tuple[int, int, int, int], dtype: str) -> CompileCase:
    """A layer whose input its producer has scaled, and what it makes for those that read its output."""

    def call(dtype: torch.dtype) -> None:
        size, channels = (x[2], x[3]), x[1]
        image, unscaled = (torch.empty(x, dtype=dtype, device="meta") for _ in range(2))
        weight, scale, bias = (
            torch.empty(shape, device="meta") for shape in ((channels, channels, 3, 3), x[:2], channels)
        )
        epilogue = Epilogue(torch.empty(size, device="meta"), bias, Activation("lrelu", clamp=256.0))
        fusion = Fusion(None, scale, epilogue, moments=True)
        if name == "two-readers":
            fusion = Fusion(None, scale, epilogue, scale, unscaled=unscaled)
        geometry = Geometry.of(size, (3, 3), (1, 1, 1, 1))
        if name == "forwarded-up":
            geometry, fusion = Geometry.upsampling(size, (3, 3), 2, flipped=True), Fusion(scale=scale)
        convolve(image, weight, geometry, fusion)

    return case_of_dtype(f"conv/{name}-{x[1]}-{x[1]}-{x[2]}", dtype, "warpgroup", call)


COMPILE_CASES = (
    replace(_reader_case("two-readers", (16, 512, 64, 64), "float16"), architectures=(80, 100)),  # flat on Hopper
    _reader_case("forwarded-up", (16, 512, 32, 32), "float16"),
    _reader_case("moments", (16, 512, 64, 64), "float16"),
    _reader_case("moments", (16, 512, 64, 64), "float32"),
    _case("512-512-64", (16, 512, 64, 64), 512, "float16"),
    _case("512-512-64", (16, 512, 64, 64), 512, "float32"),
    _case("512-512-64", (16, 512, 64, 64), 512, "tf32"),
    _case("32-32-1024", (4, 32, 1024, 1024), 32, "bfloat16"),
    _case("up-512-512-32", (16, 512, 32, 32), 512, "float16"),
    *_parts_cases((16, 512, 4, 4), "float16"),
    *_parts_cases((1, 512, 4, 4), "float16"),
    *_parts_cases((1, 512, 16, 16), "float32"),
)
