"""Gradients of a modulated convolution: of what comes after it in a layer, and of its weight.

That of its input is a convolution again, of the transposed geometry. All sums are made in a fixed order, in two
stages where many programs have a part in them, so results are the same every time.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.bias_act import LRELU_SLOPE, Activation
from kernels.bias_act_triton import stored_clamp
from kernels.conv_geometry import Geometry
from kernels.conv_plan import case_of_dtype, precision, processors
from kernels.launch import CompileCase, Options, architecture, launch
from kernels.modulated_conv import Epilogue

PIXELS, CHANNELS = 64, 64  # of a tile of the layer's gradient
LAYER_OPTIONS = Options(num_warps=4)
MIN_STEPS = 8  # of a program that sums up a part of the weight's gradient
WORKSPACE_BYTES = 1 << 27


@triton.jit
def _layer_gradient_kernel(
    dy, y, scale, noise, bias, gradient, sums, scale_sums, noise_sums,
    pixels, channels, tiles, noise_step, alpha, inverse_alpha, gain, inverse_gain, clamp,
    NAME: tl.constexpr, CLAMPED: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """`gradient = g scale` where `g = dy act'`, and sums of `g`, of `g z scale`, and of `g` over channels.

    `z scale`, the demodulated convolution, follows from the layer's output `y`.
    """
    sample, first = tl.program_id(0) // tiles, tl.program_id(0) % tiles * PIXELS
    pixel = first + tl.arange(0, PIXELS)[:, None]
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    there = (pixel < pixels) & (c < channels)
    at = (sample.to(tl.int64) * pixels + pixel) * channels + c
    g = tl.load(dy + at, there, 0.0).to(tl.float32) * gain
    if y is not None:
        out = tl.load(y + at, there, 0.0).to(tl.float32)
        before = out * inverse_gain
        if NAME == "lrelu":
            g = tl.where(before > 0, g, g * alpha)
            before = tl.where(before > 0, before, before * inverse_alpha)
        elif NAME == "relu":
            g = tl.where(before > 0, g, 0.0)
        if CLAMPED:
            g = tl.where(tl.abs(out) >= clamp, 0.0, g)
        if scale_sums is not None:
            if noise is not None:
                before -= tl.load(noise + sample * noise_step + pixel, pixel < pixels, 0.0).to(tl.float32)
            if bias is not None:
                before -= tl.load(bias + c, c < channels, 0.0).to(tl.float32)
            at_sum = tl.program_id(0) * channels + c
            tl.store(scale_sums + at_sum, tl.sum(g * before, 0)[None, :], c < channels)
    if sums is not None:
        tl.store(sums + tl.program_id(0) * channels + c, tl.sum(g, 0)[None, :], c < channels)
    if noise_sums is not None:
        at_pixel = (tl.program_id(1).to(tl.int64) * (tl.num_programs(0) // tiles) + sample) * pixels + pixel
        tl.store(noise_sums + at_pixel, tl.sum(g, 1)[:, None], pixel < pixels)
    if scale is not None:
        g *= tl.load(scale + sample * channels + c, c < channels, 0.0).to(tl.float32)
    tl.store(gradient + at, g.to(gradient.dtype.element_ty), there)


@triton.jit
def _weight_gradient_kernel(
    x, dy, style, dy_style, sums,
    num_pixels, in_height, in_width, in_channels, out_height, out_width, out_channels, steps,
    PRECISION: tl.constexpr, KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, PAD_Y: tl.constexpr, PAD_X: tl.constexpr,
    DOWN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`sums[o, tap, i] = sum_p (dy dy_style)[p, o] (x style)[p down + tap - pad, i]` over some of the pixels.

    Images are `[N, H, W, C]`; the columns of a tile are input channels of one tap after the other.
    """
    columns = KERNEL_Y * KERNEL_X * in_channels
    tiles_n = tl.cdiv(columns, BLOCK_N)
    tile_m, tile_n = tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n
    o = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    tap, i = column // in_channels, column % in_channels
    tap_row, tap_column = tap // KERNEL_X - PAD_Y, tap % KERNEL_X - PAD_X
    shift = (tap_row * in_width + tap_column) * in_channels + i
    first = tl.program_id(1) * steps * BLOCK_K
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in tl.range(0, steps):
        at = first + step * BLOCK_K + tl.arange(0, BLOCK_K)
        live = at < num_pixels
        sample, pixel = at // (out_height * out_width), at % (out_height * out_width)
        row, out_column = pixel // out_width * DOWN, pixel % out_width * DOWN
        there = live[:, None] & (o < out_channels)[None, :]
        a = tl.load(dy + (at.to(tl.int64) * out_channels)[:, None] + o[None, :], there, 0.0)
        if dy_style is not None:
            a *= tl.load(dy_style + (sample * out_channels)[:, None] + o[None, :], there, 0.0)
        in_row, in_column = row[:, None] + tap_row[None, :], out_column[:, None] + tap_column[None, :]
        there = live[:, None] & (column < columns)[None, :] & (in_row >= 0) & (in_row < in_height)
        there = there & (in_column >= 0) & (in_column < in_width)
        corner = (sample.to(tl.int64) * in_height + row) * in_width + out_column
        b = tl.load(x + (corner * in_channels)[:, None] + shift[None, :], there, 0.0)
        if style is not None:
            b *= tl.load(style + (sample * in_channels)[:, None] + i[None, :], there, 0.0)
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
    at = (tl.program_id(1).to(tl.int64) * out_channels + o)[:, None] * columns + column[None, :]
    tl.store(sums + at, total, (o < out_channels)[:, None] & (column < columns)[None, :])


@dataclass(frozen=True, slots=True)
class LayerGradient:
    """Gradients of what comes after a convolution; None where they are not asked for."""

    gradient: Tensor  # [N, O, H, W] of the convolution before its scale
    scale: Tensor | None  # [N, O], float32
    noise: Tensor | None  # [N, 1, H, W], float32
    bias: Tensor | None  # [O], float32


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's output `[N, O, H, W]`, the scale `[N, O]` of its convolution, and what came after that."""

    y: Tensor
    scale: Tensor | None
    epilogue: Epilogue


def recoverable(activation: Activation) -> bool:
    """Whether what came before the activation follows from its output, wherever its gradient isn't zero."""
    homogeneous = activation.name in ("linear", "relu", "lrelu")
    return homogeneous and activation.full_gain != 0 and (activation.alpha is None or activation.alpha >= 0)


def layer_gradient(dy: Tensor, layer: Layer, wants: tuple[bool, bool, bool]) -> LayerGradient:
    """Return the gradients of a layer whose activation is `recoverable`; `wants` those of scale, noise and bias."""
    scale, epilogue, act = layer.scale, layer.epilogue, layer.epilogue.activation
    dy = dy.contiguous(memory_format=torch.channels_last)
    n, channels, height, width = dy.shape
    gradient = torch.empty_like(dy, memory_format=torch.channels_last)
    pixels, strips = height * width, triton.cdiv(channels, CHANNELS)
    tiles = triton.cdiv(pixels, PIXELS)
    wants_scale, wants_noise, wants_bias = wants
    scale_sums, sums = (
        dy.new_zeros(n, tiles, channels, dtype=torch.float32) if wanted else None
        for wanted in (wants_scale, wants_bias)
    )
    noise_sums = dy.new_zeros(strips, n, 1, height, width, dtype=torch.float32) if wants_noise else None
    plain = act.name == "linear" and act.clamp is None and scale_sums is None
    noise, bias, scale = (None if t is None else t.contiguous() for t in (epilogue.noise, epilogue.bias, scale))
    noise_step = pixels if noise is not None and noise.numel() > pixels else 0
    alpha = LRELU_SLOPE if act.alpha is None else act.alpha
    numbers = (
        *(pixels, channels, tiles, noise_step, alpha, 1 / alpha if alpha else 0.0),
        *(act.full_gain, 1 / act.full_gain, stored_clamp(act.clamp, dy.dtype)),
    )
    constants = {"NAME": act.name, "CLAMPED": act.clamp is not None, "PIXELS": PIXELS, "CHANNELS": CHANNELS}
    y = None if plain else layer.y.contiguous(memory_format=torch.channels_last)
    tensors = (dy, y, scale, noise, bias, gradient, sums, scale_sums, noise_sums)
    if dy.numel():
        launch(_layer_gradient_kernel, (n * tiles, strips), (*tensors, *numbers), constants, LAYER_OPTIONS)
    return LayerGradient(
        gradient,
        None if scale_sums is None or scale is None else scale_sums.sum(1) / scale,
        None if noise_sums is None else noise_sums.sum(0),
        None if sums is None else sums.sum((0, 1)),
    )


def weight_gradient(x: Tensor, dy: Tensor, geometry: Geometry, style: Tensor | None = None) -> Tensor:
    """Return the gradient, in float32, of the weight that `convolve(x * style, weight, geometry)` has."""
    if geometry.up > 1:  # the same sum, with the roles of input and output changed
        return _weight_gradient(dy, x, geometry.transposed, None, style)
    return _weight_gradient(x, dy, geometry, style, None)


def _weight_gradient(
    x: Tensor, dy: Tensor, geometry: Geometry, style: Tensor | None, dy_style: Tensor | None
) -> Tensor:
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    style, dy_style = (None if t is None else t.to(x.dtype).contiguous() for t in (style, dy_style))
    n, channels, out_channels = x.shape[0], x.shape[1], dy.shape[1]
    columns, num_pixels = geometry.kernel[0] * geometry.kernel[1] * channels, n * geometry.pixels
    m, k = (min(max(triton.next_power_of_2(out_channels), 16), 64), 32 if x.element_size() == 4 else 64)
    width = min(max(triton.next_power_of_2(columns), 16), 128)
    tiles = triton.cdiv(out_channels, m) * triton.cdiv(columns, width)
    steps = _steps(num_pixels, k, tiles, out_channels * columns, x.device)
    parts = max(triton.cdiv(triton.cdiv(num_pixels, k), steps), 1)
    sums = x.new_empty(parts, out_channels, *geometry.kernel, channels, dtype=torch.float32)
    constants = {
        "PRECISION": precision(x.dtype), "KERNEL_Y": geometry.kernel[0], "KERNEL_X": geometry.kernel[1],
        "PAD_Y": geometry.pad[0], "PAD_X": geometry.pad[1], "DOWN": geometry.down,
        "BLOCK_M": m, "BLOCK_N": width, "BLOCK_K": k,
    }  # fmt: skip
    sizes = (num_pixels, *geometry.in_size, channels, *geometry.out_size, out_channels, steps)
    few = 90 <= architecture(x.device) < 100 and m > 16  # elsewhere 4 spill
    options = Options(num_warps=4 if few else 8, num_stages=3)
    launch(_weight_gradient_kernel, (tiles, parts), (x, dy, style, dy_style, sums, *sizes), constants, options)
    found = sums.sum(0).permute((3, 0, 1, 2) if geometry.swapped else (0, 3, 1, 2))
    return (found.flip(2, 3) if geometry.flipped else found).contiguous()


def _steps(num_pixels: int, block: int, tiles: int, size: int, device: torch.device) -> int:
    """Steps of a program, such that all processors have work and the partial sums stay few."""
    parts = max(min(triton.cdiv(2 * processors(device), tiles), WORKSPACE_BYTES // (4 * size)), 1)
    needed: int = triton.cdiv(triton.cdiv(num_pixels, block), parts)
    return max(needed, MIN_STEPS)


def _weight_case(name: str, x: tuple[int, int, int, int], outputs: int, dtype: str) -> CompileCase:
    def call(dtype: torch.dtype) -> None:
        size, taps = (x[2], x[3]), 1 if name.startswith("rgb") else 3
        geometry = Geometry.of(size, (taps, taps), (taps // 2,) * 4)
        if name.startswith("up"):
            geometry = Geometry.upsampling(size, (3, 3), 2, flipped=True)
        dy = torch.empty(x[0], outputs, *geometry.out_size, dtype=dtype, device="meta")
        image, styles = torch.empty(x, dtype=dtype, device="meta"), torch.empty(x[:2], device="meta")
        weight_gradient(image, dy, geometry, styles)

    return case_of_dtype(f"conv_gradient/weight-{name}", dtype, "warpgroup" if outputs > 32 else "any", call)


def _layer_case(dtype: str) -> CompileCase:
    def call(dtype: torch.dtype) -> None:
        images = (torch.empty(4, 64, 512, 512, dtype=dtype, device="meta") for _ in range(2))
        scale, bias = (torch.empty(shape, device="meta") for shape in ((4, 64), 64))
        epilogue = Epilogue(torch.empty(512, 512, device="meta"), bias, Activation("lrelu", clamp=256.0))
        layer_gradient(next(images), Layer(next(images), scale, epilogue), (True, True, True))

    return case_of_dtype("conv_gradient/layer", dtype, "none", call)


COMPILE_CASES = (
    _layer_case("float16"),
    _layer_case("float32"),
    _weight_case("512-512-64", (16, 512, 64, 64), 512, "float16"),
    _weight_case("512-512-64", (16, 512, 64, 64), 512, "float32"),
    _weight_case("512-512-64", (16, 512, 64, 64), 512, "tf32"),
    _weight_case("up-512-512-32", (16, 512, 32, 32), 512, "bfloat16"),
    _weight_case("32-32-1024", (4, 32, 1024, 1024), 32, "float16"),
    _weight_case("rgb-512-3-64", (16, 512, 64, 64), 3, "float16"),
)
