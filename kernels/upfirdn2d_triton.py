"""FIR filters on images in one pass: upsample, filter, decimate, and all that a layer does after its convolution.

A lane makes a patch of outputs, so that an input is read once for all outputs near it. Patches repeat with the phases
of the up- and downsampling, so which tap meets which input is known at compile time, and no stuffed zero is touched.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

from kernels.bias_act import HOMOGENEOUS, LRELU_SLOPE, Activation
from kernels.bias_act_triton import activate, activation_gradient, bias_act_triton, clamped, stored_clamp
from kernels.launch import CompileCase, Options, launch
from kernels.modulated_conv import NOTHING, Epilogue
from kernels.padded_conv import as_padding, as_pair
from kernels.upfirdn2d import PLAIN, Resampling, fir_size, out_size

PATCH = 4  # outputs of a lane along an axis, and half as many along the second one
SMALL_FILTER = 36  # taps; with more of them rows are looped over, and a lane makes one output of each phase
ACCUMULATORS = 8192  # float32 sums of a program
TILE_BYTES, TILE_LANES = 2048, 256  # of one input of a program: 16 bytes a thread of channels_last, 2 samples of planes
BLOCK_CHANNELS = 64
OPTIONS = Options(num_warps=4)


@triton.jit
def _add_row(
    sums, x, fir, start, i, in_row, in_column, inside, height, width, depth,
    TAPS_Y: tl.constexpr, UP_Y: tl.constexpr, DOWN_Y: tl.constexpr, PHASE_Y: tl.constexpr, ROWS: tl.constexpr,
    TAPS_X: tl.constexpr, UP_X: tl.constexpr, DOWN_X: tl.constexpr, PHASE_X: tl.constexpr, COLUMNS: tl.constexpr,
    FLIPPED: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """Add to every output of a patch what it takes of input row `i`."""
    row_there = inside & (in_row + i >= 0) & (in_row + i < height)
    for j in tl.static_range(((COLUMNS - 1) * DOWN_X - PHASE_X + TAPS_X - 1) // UP_X + 1):
        there = row_there & (in_column + j >= 0) & (in_column + j < width)
        value = tl.load(x + start + (i * width + j) * depth, there, 0.0).to(tl.float32)
        for k in tl.static_range(ROWS * COLUMNS):
            ky = UP_Y * i - DOWN_Y * (k // COLUMNS) + PHASE_Y
            kx = UP_X * j - DOWN_X * (k % COLUMNS) + PHASE_X
            if kx >= 0 and kx < TAPS_X and (not UNROLLED or (ky >= 0 and ky < TAPS_Y)):
                tap = (TAPS_Y - 1 - ky) * TAPS_X + (TAPS_X - 1 - kx) if FLIPPED else ky * TAPS_X + kx
                weight = tl.load(fir + tap, (ky >= 0) & (ky < TAPS_Y), 0.0).to(tl.float32)
                sums = sums[:k] + (sums[k] + value * weight,) + sums[k + 1 :]
    return sums


@triton.jit
def _upfirdn2d_kernel(
    x, fir, noise, bias, scale, y,
    num_patches, channels, height, width, out_height, out_width, first_row, first_column, noise_step,
    fir_gain, alpha, gain, clamp,
    NAME: tl.constexpr, CLAMPED: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNROLLED: tl.constexpr,
    TAPS_Y: tl.constexpr, UP_Y: tl.constexpr, DOWN_Y: tl.constexpr, PHASE_Y: tl.constexpr, ROWS: tl.constexpr,
    TAPS_X: tl.constexpr, UP_X: tl.constexpr, DOWN_X: tl.constexpr, PHASE_X: tl.constexpr, COLUMNS: tl.constexpr,
    FLIPPED: tl.constexpr, LANES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`y = clamp(act(fir * x + noise + bias) gain) scale`; `fir` correlates, or if `FLIPPED` convolves.

    Images are `[N, H, W, C]`, or planes `[N C, H, W, 1]`. Output row `ROWS m + r` meets tap `UP_Y i - DOWN_Y r +
    PHASE_Y` at input row `ROWS DOWN_Y / UP_Y m - first_row + i`.
    """
    patch = tl.program_id(0) * LANES + tl.arange(0, LANES)[:, None]
    patches_x, patches_y = tl.cdiv(out_width, COLUMNS), tl.cdiv(out_height, ROWS)
    column, row = patch % patches_x, (patch // patches_x) % patches_y
    image = patch // (patches_x * patches_y)
    depth = channels if CHANNELS_LAST else 1
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    inside = (patch < num_patches) & (c < depth)
    channel = c if CHANNELS_LAST else image % channels
    sample = image if CHANNELS_LAST else image // channels

    in_row = row * (ROWS * DOWN_Y // UP_Y) - first_row
    in_column = column * (COLUMNS * DOWN_X // UP_X) - first_column
    start = ((image.to(tl.int64) * height + in_row) * width + in_column) * depth + c
    sums = (tl.zeros([LANES, BLOCK_C], tl.float32),) * (ROWS * COLUMNS)
    IN_ROWS: tl.constexpr = ((ROWS - 1) * DOWN_Y - PHASE_Y + TAPS_Y - 1) // UP_Y + 1
    if UNROLLED:
        for i in tl.static_range(IN_ROWS):
            sums = _add_row(
                sums, x, fir, start, i, in_row, in_column, inside, height, width, depth, TAPS_Y, UP_Y, DOWN_Y, PHASE_Y,
                ROWS, TAPS_X, UP_X, DOWN_X, PHASE_X, COLUMNS, FLIPPED, UNROLLED,
            )  # fmt: skip
    else:
        for i in tl.range(IN_ROWS):
            sums = _add_row(
                sums, x, fir, start, i, in_row, in_column, inside, height, width, depth, TAPS_Y, UP_Y, DOWN_Y, PHASE_Y,
                ROWS, TAPS_X, UP_X, DOWN_X, PHASE_X, COLUMNS, FLIPPED, UNROLLED,
            )  # fmt: skip

    shift = tl.zeros([LANES, BLOCK_C], tl.float32)
    if bias is not None:
        shift += tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)
    if scale is not None:
        factor = tl.load(scale + sample * channels + channel, inside, 0.0).to(tl.float32)
    for k in tl.static_range(ROWS * COLUMNS):
        out_row, out_column = row * ROWS + k // COLUMNS, column * COLUMNS + k % COLUMNS
        there = (patch < num_patches) & (out_row < out_height) & (out_column < out_width)
        out = sums[k] * fir_gain + shift
        if noise is not None:
            out += tl.load(noise + (sample * noise_step + out_row) * out_width + out_column, there, 0.0).to(tl.float32)
        out = activate(out, alpha, NAME) * gain
        if CLAMPED:
            out = clamped(out, clamp)
        if scale is not None:
            out *= factor
        at = ((image.to(tl.int64) * out_height + out_row) * out_width + out_column) * depth + c
        tl.store(y + at, out.to(y.dtype.element_ty), there & inside)


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of a pass, and how many outputs of it a lane makes."""

    size: int
    out_size: int
    taps: int
    up: int
    down: int
    pad: int  # before the first sample, of the zero-stuffed image

    @property
    def transposed(self) -> _Axis:
        """The axis of the gradient: every output gives back to the inputs that it came from."""
        return _Axis(self.out_size, self.size, self.taps, self.down, self.up, self.taps - 1 - self.pad)

    def patch(self, wanted: int) -> int:
        """The largest number of outputs up to `wanted` after which the phases repeat, or else the smallest."""
        period = self.up // math.gcd(self.up, self.down)
        return max(wanted // period, 1) * period if self.taps > 1 else period

    def constants(self, suffix: str) -> dict[str, int]:
        """What the kernel knows of the axis at compile time."""
        known = {"TAPS": self.taps, "UP": self.up, "DOWN": self.down, "PHASE": self.pad % self.up}
        return {f"{name}_{suffix}": value for name, value in known.items()}


@dataclass(frozen=True, slots=True)
class _Pass:
    """One launch: a 2-D filter, or one direction of a separable one."""

    y: _Axis
    x: _Axis
    flipped: bool
    gain: float

    @property
    def transposed(self) -> _Pass:
        """The pass that takes gradients of the output to gradients of the input."""
        return replace(self, y=self.y.transposed, x=self.x.transposed, flipped=not self.flipped)

    @property
    def unrolled(self) -> bool:
        """Whether all taps stand in the code one by one."""
        return self.y.taps * self.x.taps <= SMALL_FILTER

    @property
    def patch(self) -> tuple[int, int]:
        """Rows and columns of the outputs of one lane."""
        if not self.unrolled:
            return self.y.patch(1), self.x.patch(1)
        rows = self.y.patch(PATCH)
        return rows, self.x.patch(max(PATCH // rows, PATCH // 2))


def upfirdn2d_triton(x: Tensor, fir: Tensor | None, resampling: Resampling = PLAIN) -> Tensor:
    """Triton implementation of `upfirdn2d`; differentiable any number of times, but not by the filter."""
    for taps, which in _passes(x, fir, resampling):
        x = _Upfirdn2d.apply(x, taps, which)
    return x


def upfirdn2d_epilogue_triton(
    x: Tensor, fir: Tensor | None, resampling: Resampling, epilogue: Epilogue = NOTHING, scale: Tensor | None = None
) -> Tensor:
    """Return `clamp(act(upfirdn2d(x) + noise + bias) gain) scale`, the second half of an up-convolution.

    `scale` `[N, C]`, by which the next layer would scale its input, is for inference. Twice differentiable without;
    activations other than linear, relu and lrelu take another pass over memory.
    """
    *before, (taps, last) = _passes(x, fir, resampling)
    for earlier_taps, which in before:
        x = _Upfirdn2d.apply(x, earlier_taps, which)
    if scale is not None:
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, scale, epilogue.bias)):
            raise ValueError("upfirdn2d: a scale is for inference; use torch.no_grad(), or scale the output")
        return _run(x, taps, last, epilogue, scale)
    if epilogue.activation.name not in HOMOGENEOUS:
        y = _layer(x, taps, last, Epilogue(epilogue.noise))
        return bias_act_triton(y, epilogue.bias, epilogue.activation)
    return _layer(x, taps, last, epilogue)


def _layer(x: Tensor, fir: Tensor, which: _Pass, epilogue: Epilogue) -> Tensor:
    y: Tensor = _WithEpilogue.apply(x, fir, epilogue.noise, epilogue.bias, (which, epilogue.activation))
    return y


class _Upfirdn2d(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fir: Tensor, which: _Pass) -> Tensor:
        ctx.save_for_backward(fir)
        ctx.which = which
        return _run(x, fir, which)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (fir,) = ctx.saved_tensors
        return _Upfirdn2d.apply(dy, fir, ctx.which.transposed), None, None


class _WithEpilogue(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, fir: Tensor, noise: Tensor | None, bias: Tensor | None, spec: tuple[_Pass, Activation]
    ) -> Tensor:
        ctx.which, ctx.activation = spec
        y = _run(x, fir, ctx.which, Epilogue(noise, bias, ctx.activation))
        ctx.save_for_backward(fir, y)
        ctx.noise = noise if noise is None else (noise.shape, noise.dtype)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        fir, y = ctx.saved_tensors
        gradient, dbias = activation_gradient(dy, y, ctx.activation, ctx.bias_dtype)
        dnoise = None
        if ctx.needs_input_grad[2]:
            shape, dtype = ctx.noise
            dnoise = gradient.sum(1, keepdim=True, dtype=torch.float32).sum_to_size(shape).to(dtype)
        dx = _Upfirdn2d.apply(gradient, fir, ctx.which.transposed) if ctx.needs_input_grad[0] else None
        return dx, None, dnoise, dbias, None


def _passes(x: Tensor, fir: Tensor | None, resampling: Resampling) -> list[tuple[Tensor, _Pass]]:
    """The launches, each with its filter `[h, w]`."""
    height, width = out_size(x, fir, resampling)
    (up_x, up_y), (down_x, down_y) = as_pair(resampling.up, "up"), as_pair(resampling.down, "down")
    x0, _, y0, _ = as_padding(resampling.padding)
    taps_x, taps_y = fir_size(fir)
    rows = _Axis(x.shape[2], height, taps_y, up_y, down_y, y0)
    columns = _Axis(x.shape[3], width, taps_x, up_x, down_x, x0)
    flipped = not resampling.flip_filter  # the kernel correlates
    fir = x.new_ones(1, 1, dtype=torch.float32) if fir is None else fir.contiguous()
    if fir.ndim == 2:
        return [(fir, _Pass(rows, columns, flipped, resampling.gain))]
    kept = _Axis(x.shape[2], x.shape[2], 1, 1, 1, 0)
    first = (fir[None], _Pass(kept, columns, flipped, resampling.gain))
    return [first, (fir[:, None], _Pass(rows, _Axis(width, width, 1, 1, 1, 0), flipped, 1.0))]


def _run(x: Tensor, fir: Tensor, which: _Pass, epilogue: Epilogue = NOTHING, scale: Tensor | None = None) -> Tensor:
    """Launch one pass; the output has the layout of `x`: contiguous, or else channels_last."""
    planes = x.is_contiguous()
    memory_format = torch.contiguous_format if planes else torch.channels_last
    x = x.contiguous(memory_format=memory_format)
    n, channels, height, width = x.shape
    rows, columns = which.y, which.x
    shape = (n, channels, rows.out_size, columns.out_size)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    patch_rows, patch_columns = which.patch
    images, depth = (n * channels, 1) if planes else (n, channels)
    patches = images * triton.cdiv(rows.out_size, patch_rows) * triton.cdiv(columns.out_size, patch_columns)
    block = min(triton.next_power_of_2(depth), BLOCK_CHANNELS)
    widest = TILE_LANES if planes else TILE_BYTES // x.element_size()
    tile = min(widest, 1 << (ACCUMULATORS // (patch_rows * patch_columns)).bit_length() - 1)
    _check_epilogue(y, epilogue)
    noise, bias, scale = (None if t is None else t.contiguous() for t in (epilogue.noise, epilogue.bias, scale))
    noise_step = rows.out_size if noise is not None and noise.numel() > rows.out_size * columns.out_size else 0
    act = epilogue.activation
    sizes = (patches, channels, height, width, rows.out_size, columns.out_size)
    starts = (rows.pad // rows.up, columns.pad // columns.up, noise_step)
    alpha = LRELU_SLOPE if act.alpha is None else act.alpha
    numbers = (which.gain, alpha, act.full_gain, stored_clamp(act.clamp, y.dtype))
    constants = {
        **rows.constants("Y"), **columns.constants("X"), "ROWS": patch_rows, "COLUMNS": patch_columns,
        "NAME": act.name, "CLAMPED": act.clamp is not None, "CHANNELS_LAST": not planes, "FLIPPED": which.flipped,
        "UNROLLED": which.unrolled,        "LANES": tile // block, "BLOCK_C": block,
    }  # fmt: skip
    grid = (triton.cdiv(patches, tile // block), triton.cdiv(depth, block))
    launch(_upfirdn2d_kernel, grid, (x, fir, noise, bias, scale, y, *sizes, *starts, *numbers), constants, OPTIONS)
    return y


def _check_epilogue(y: Tensor, epilogue: Epilogue) -> None:
    n, channels, height, width = y.shape
    noise, bias = (None if t is None else tuple(t.shape) for t in (epilogue.noise, epilogue.bias))
    noises = (None, (height, width), (1, 1, height, width), (n, 1, height, width))
    if noise not in noises or bias not in (None, (channels,)):
        raise ValueError(
            f"upfirdn2d: noise {noise and list(noise)}, bias {bias and list(bias)}; allowed are noise "
            f"[{height}, {width}] or [N, 1, {height}, {width}] and bias [{channels}], or None"
        )


def _case(
    name: str, x: tuple[torch.dtype, torch.memory_format, int, int], which: _Pass, layer: bool = False
) -> CompileCase:
    dtype, memory_format, channels, size = x

    def call() -> None:
        image = torch.empty(16, channels, size, size, dtype=dtype, device="meta").to(memory_format=memory_format)
        noise, bias = (
            torch.empty(which.y.out_size, which.x.out_size, device="meta"),
            torch.empty(channels, device="meta"),
        )
        styles = torch.empty(16, channels, device="meta")
        epilogue = Epilogue(noise, bias, Activation("lrelu", clamp=256.0)) if layer else NOTHING
        fir = torch.empty(which.y.taps, which.x.taps, device="meta")
        _run(image, fir, which, epilogue, styles if layer else None)

    return CompileCase(f"upfirdn2d/{name}", call)


_BLUR = _Axis(513, 512, 4, 1, 1, 1)  # after a transposed convolution that doubles 256
_UP, _DOWN = _Axis(512, 1024, 4, 2, 1, 2), _Axis(1024, 512, 4, 1, 2, 1)
_RADIAL = _Axis(276, 138, 12, 1, 2, 5)
_HALF, _FLOAT = (torch.float16, torch.channels_last), (torch.float32, torch.contiguous_format)
COMPILE_CASES = (
    _case("layer-fp16-nhwc", (*_HALF, 64, 513), _Pass(_BLUR, _BLUR, True, 4.0), layer=True),
    _case("layer-fp32-nhwc", (torch.float32, torch.channels_last, 64, 513), _Pass(_BLUR, _BLUR, True, 4.0), layer=True),
    _case("blur-bf16-nhwc", (torch.bfloat16, torch.channels_last, 64, 513), _Pass(_BLUR, _BLUR, True, 1.0)),
    _case("up2-fp32-nchw", (*_FLOAT, 3, 512), _Pass(_UP, _UP, True, 4.0)),
    _case("down2-fp16-nhwc", (*_HALF, 64, 1024), _Pass(_DOWN, _DOWN, True, 1.0)),
    _case("radial-fp16-nhwc", (*_HALF, 64, 276), _Pass(_RADIAL, _RADIAL, True, 1.0)),
    _case(
        "wavelet-fp32-nchw",
        (*_FLOAT, 3, 512),
        _Pass(_Axis(512, 512, 1, 1, 1, 0), _Axis(512, 1024, 12, 2, 1, 6), True, 2.0),
    ),
)
