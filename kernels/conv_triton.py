"""Convolution as an implicit matrix product, with all that a modulated layer does before and after it.

Rows of the product are output pixels, columns are output channels, and the sum runs over taps and input channels of
images `[N, H, W, C]`. A transposed convolution is one such product for each phase of its output, all in one launch.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kernels.bias_act import LRELU_SLOPE
from kernels.bias_act_triton import activate, clamped, stored_clamp
from kernels.conv_geometry import Geometry
from kernels.launch import CompileCase, Options, launch
from kernels.modulated_conv import NOTHING, Epilogue

PROCESSORS = {
    "cpu": 1,
    "meta": 132,
}  # of a GPU that isn't there: the interpreter wants few tiles, the compile gate an H100


@triton.jit
def _conv_kernel(
    x, weight, style, scale, noise, bias, next_style, against, y, sums,
    batch, rows_per_sample, in_height, in_width, in_channels, padded_channels,
    out_height, out_width, out_channels, phase_height, phase_width, noise_step, alpha, gain, clamp,
    NAME: tl.constexpr, CLAMPED: tl.constexpr, PRECISION: tl.constexpr,
    KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, PAD_Y: tl.constexpr, PAD_X: tl.constexpr,
    UP: tl.constexpr, DOWN: tl.constexpr, ONE_SAMPLE: tl.constexpr, GROUP: tl.constexpr,
    MASK_K: tl.constexpr, MASK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`y = clamp(act(conv(x style, weight) scale + noise + bias) gain) next_style`; `sums` of `conv(...) against`.

    `x` `[N, H, W, I]`, `weight` `[O, taps, padded I]`; a program makes `BLOCK_M` pixels of one phase. A sample has
    `rows_per_sample` rows, of which those after its last pixel are idle; `sums` adds up `GROUP` rows at a time.
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
    for step in tl.range(0, taps * (padded_channels // BLOCK_K)):
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
    there = live[:, None] & inside_n[None, :] if MASK_N else live[:, None]
    at = (sample.to(tl.int64) * out_height * out_width + out_pixel)[:, None] * out_channels + n[None, :]
    if sums is not None:
        product = total * tl.load(against + at, there, 0.0).to(tl.float32)
        GROUPS: tl.constexpr = BLOCK_M // GROUP
        group_sums = tl.sum(tl.reshape(product, [GROUPS, GROUP, BLOCK_N]), 1)
        groups = tl.num_programs(0) // tiles_n * GROUPS
        group = tl.program_id(1) * groups + tile_m * GROUPS + tl.arange(0, GROUPS)
        tl.store(sums + group[:, None] * out_channels + n[None, :], group_sums, inside_n[None, :])
    by_sample = sample * out_channels + n[None, :] if ONE_SAMPLE else sample[:, None] * out_channels + n[None, :]
    of_sample = inside_n[None, :] if ONE_SAMPLE else inside_n[None, :] & (sample < batch)[:, None]
    if scale is not None:
        total *= tl.load(scale + by_sample, of_sample, 0.0).to(tl.float32)
    if noise is not None:
        total += tl.load(noise + sample * noise_step + out_pixel, live, 0.0).to(tl.float32)[:, None]
    if bias is not None:
        total += tl.load(bias + n, inside_n, 0.0).to(tl.float32)[None, :]
    total = activate(total, alpha, NAME) * gain
    if CLAMPED:
        total = clamped(total, clamp)
    if next_style is not None:
        total *= tl.load(next_style + by_sample, of_sample, 0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), there)


@dataclass(frozen=True, slots=True)
class Fusion:
    """What one launch does beside the convolution; styles and scales are `[N, channels]`."""

    style: Tensor | None = None  # by which the input is multiplied
    scale: Tensor | None = None  # by which the convolution is multiplied
    epilogue: Epilogue = NOTHING
    next_style: Tensor | None = None  # by which the output is multiplied, for the layer that reads it
    against: Tensor | None = None  # like the output: the sum over pixels of its product with the convolution is wanted
    weight_gain: Tensor | None = None  # [O] of the stored weight, put in when the weight is prepared


@dataclass(frozen=True, slots=True)
class Tile:
    """Pixels, output channels and input channels of one step, and how it is compiled."""

    m: int
    n: int
    k: int
    options: Options


NO_FUSION = Fusion()
_prepared: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def convolve(x: Tensor, weight: Tensor, geometry: Geometry, fusion: Fusion = NO_FUSION) -> tuple[Tensor, Tensor | None]:
    """Convolve `x` `[N, C, H, W]` with `weight`, stored `[O, I, kh, kw]`; the output is channels_last.

    Also returns the sums `[N, C]`, in float32, that `fusion.against` asks for. Not differentiable.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    n, channels = x.shape[:2]
    out_channels = weight.shape[1 if geometry.swapped else 0]
    shape = (n, out_channels, *geometry.out_size)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    wants_sums = fusion.against is not None
    if y.numel() == 0:
        return y, y.new_zeros(n, out_channels, dtype=torch.float32) if wants_sums else None
    phase_pixels = geometry.phase_size[0] * geometry.phase_size[1]
    tile = choose_tile(x, geometry, out_channels, fusion)
    rows, group = rows_of_sample(phase_pixels, tile.m, separate=wants_sums)
    tiles = triton.cdiv(n * rows, tile.m)
    sums = x.new_empty(geometry.up**2, tiles * tile.m // group, out_channels, dtype=torch.float32)
    operands = prepare_weight(weight, geometry, tile, x.dtype, fusion.weight_gain)
    sizes = (
        n, rows, *geometry.in_size, channels, operands.shape[2], *geometry.out_size, out_channels, *geometry.phase_size,
    )  # fmt: skip
    _launch(x, operands, y, (fusion, sums if wants_sums else None), (geometry, tile, group), sizes)
    if not wants_sums:
        return y, None
    per_sample = rows // group
    return y, sums[:, : n * per_sample].reshape(-1, n, per_sample, out_channels).sum((0, 2))


def _launch(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    extra: tuple[Fusion, Tensor | None],
    layout: tuple[Geometry, Tile, int],
    sizes: tuple[int, ...],
) -> None:
    (fusion, sums), (geometry, tile, group) = extra, layout
    epilogue, act = fusion.epilogue, fusion.epilogue.activation
    noise = None if epilogue.noise is None else epilogue.noise.contiguous()
    noise_step = geometry.pixels if noise is not None and noise.numel() > geometry.pixels else 0
    style = None if fusion.style is None else fusion.style.to(x.dtype).contiguous()
    scale, next_style = (None if t is None else t.contiguous() for t in (fusion.scale, fusion.next_style))
    against = None if fusion.against is None else fusion.against.contiguous(memory_format=torch.channels_last)
    tensors = (x, weight, style, scale, noise, epilogue.bias, next_style, against, y, sums)
    alpha = LRELU_SLOPE if act.alpha is None else act.alpha
    numbers = (noise_step, alpha, act.full_gain, stored_clamp(act.clamp, y.dtype))
    constants = {
        "NAME": act.name, "CLAMPED": act.clamp is not None, "PRECISION": precision(x.dtype),
        "KERNEL_Y": geometry.kernel[0], "KERNEL_X": geometry.kernel[1],
        "PAD_Y": geometry.pad[0], "PAD_X": geometry.pad[1], "UP": geometry.up, "DOWN": geometry.down,
        "ONE_SAMPLE": sizes[1] % tile.m == 0, "GROUP": group,
        "MASK_K": x.shape[1] % tile.k != 0, "MASK_N": y.shape[1] % tile.n != 0,
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
    }  # fmt: skip
    grid = (triton.cdiv(sizes[0] * sizes[1], tile.m) * triton.cdiv(y.shape[1], tile.n), geometry.up**2)
    launch(_conv_kernel, grid, (*tensors, *sizes, *numbers), constants, tile.options)


def choose_tile(x: Tensor, geometry: Geometry, out_channels: int, fusion: Fusion) -> Tile:
    """The largest tile that the channels fill and of which there are enough to keep all processors at work."""
    wide = x.element_size() == 4
    rows = x.shape[0] * geometry.phase_size[0] * geometry.phase_size[1] * geometry.up**2
    # at least 16 channels, and as few as possible of zeros that fill up the last step
    k = min((32, 16) if wide else (64, 32, 16), key=lambda k: triton.cdiv(x.shape[1], k) * (k + 4))
    n = min(max(triton.next_power_of_2(out_channels), 16), 128)
    m = 128
    if x.shape[1] % 8:  # each channel is loaded and masked on its own, which takes registers
        m, n = 64, min(n, 64)
    while m * n > 512 and triton.cdiv(rows, m) * triton.cdiv(out_channels, n) < processors(x.device):
        m, n = (m, n // 2) if n > max(32, m // 2) else (m // 2, n)
    simple = geometry.up == 1 and geometry.pixels % m == 0 and fusion.against is None
    if simple and not wide and m == 128 and out_channels >= 256 and rows * out_channels >= 1 << 24:
        n = 256
    warps = 8 if m * n * x.element_size() > 16384 else 4 if m * n > 1024 else 2
    return Tile(m, n, k, Options(num_warps=warps, num_stages=3 if m * n > 4096 else 4))


def rows_of_sample(pixels: int, block: int, *, separate: bool) -> tuple[int, int]:
    """Rows that a sample takes up, and how many of them, all of one sample, may be added up in a tile of `block`.

    With `separate` no such group has pixels of two samples. Small images otherwise share a tile.
    """
    if block % pixels == 0:
        return pixels, pixels
    padded = triton.cdiv(pixels, block) * block
    return (padded, block) if separate or padded - pixels <= pixels // 8 else (pixels, block)


def prepare_weight(weight: Tensor, geometry: Geometry, tile: Tile, dtype: torch.dtype, gain: Tensor | None) -> Tensor:
    """Return `weight` as the kernel reads it, `[outputs, taps, inputs]`; zeros fill up the last tiles."""

    def make() -> Tensor:
        stored = weight if gain is None else weight * gain[:, None, None, None]
        stored = stored.flip(2, 3) if geometry.flipped else stored
        order = (1, 2, 3, 0) if geometry.swapped else (0, 2, 3, 1)
        ordered = stored.permute(order).flatten(1, 2)
        outputs, taps, inputs = ordered.shape
        shape = (triton.cdiv(outputs, tile.n) * tile.n, taps, triton.cdiv(inputs, tile.k) * tile.k)
        prepared = ordered.new_zeros(shape, dtype=dtype)
        prepared[:outputs, :, :inputs] = ordered
        return prepared

    made: Tensor = remember(weight, (geometry.flipped, geometry.swapped, tile.n, tile.k, dtype, gain is None), make)
    return made


def remember(weight: Tensor, key: Hashable, make: Callable[[], Any]) -> Any:
    """Return what `make` makes of a weight and nothing else; it is kept until the weight changes or is gone."""
    if weight.is_inference():  # changes of these aren't counted
        return make()
    state = weight._version, weight.data_ptr(), weight.dtype
    before, kept = _prepared.get(weight, (None, {}))
    if before != state:
        _prepared[weight] = state, (kept := {})
    if key not in kept:
        with torch.no_grad():
            kept[key] = make()
    return kept[key]


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied, as PyTorch's flag for convolutions says; three TF32 products are as good as one."""
    return "tf32" if dtype != torch.float32 or torch.backends.cudnn.allow_tf32 else "tf32x3"


@cache
def processors(device: torch.device) -> int:
    """Number of multiprocessors of a GPU."""
    if device.type != "cuda":
        return PROCESSORS[device.type]
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _case(name: str, x: tuple[int, int, int, int], outputs: int, dtype: torch.dtype) -> CompileCase:
    """The gradient of the input of a layer, and of its styles."""

    def call() -> None:
        weight, size = torch.empty(outputs, x[1], 3, 3, device="meta"), (x[2], x[3])
        geometry = Geometry.of(size, (3, 3), (1, 1, 1, 1))
        if name.startswith("up"):
            geometry = Geometry.upsampling(size, (3, 3), 2, flipped=True)
        dy = torch.empty(x[0], outputs, *geometry.out_size, dtype=dtype, device="meta")
        image, styles = torch.empty(x, dtype=dtype, device="meta"), torch.empty(x[:2], device="meta")
        convolve(dy, weight, geometry.transposed, Fusion(scale=styles, against=image))

    return CompileCase(f"conv/{name}-gradient-{str(dtype)[6:]}", call, "any" if outputs < 64 else "warpgroup")


COMPILE_CASES = (
    _case("512-512-64", (16, 512, 64, 64), 512, torch.float16),
    _case("512-512-64", (16, 512, 64, 64), 512, torch.float32),
    _case("32-32-1024", (4, 32, 1024, 1024), 32, torch.bfloat16),
    _case("up-512-512-32", (16, 512, 32, 32), 512, torch.float16),
    _case("512-512-4", (16, 512, 4, 4), 512, torch.float16),
)
