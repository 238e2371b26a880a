"""Filtered leaky ReLU in one pass over memory: all filters of a tile are products with banded matrices.

Nothing at the high rate is written. A program goes down a strip of the image block by block, and keeps what a block
gives to the outputs of the next one. The gradient is the same kernel between the filters turned round, with the slope
in the place of the activation: it upsamples the layer's input once more to see on which side of zero a sample was.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

from kernels.banded_filters import Axes, Axis, Cuts, Fir, block, cut_image, down_matrices, up_matrices
from kernels.bias_act import LRELU_SLOPE, Activation
from kernels.bias_act_triton import bias_act_triton, clamped
from kernels.conv_plan import case_of_dtype, precision, processors
from kernels.filtered_lrelu import PLAIN, FilteredLReLU, Filters, checked_axes
from kernels.launch import CompileCase, Options, launch
from kernels.padded_conv import as_padding

OPTIONS = Options(num_warps=8)
SLOPES = {"linear": 1.0, "relu": 0.0, "lrelu": LRELU_SLOPE}
MIN_BLOCKS = 4  # of a program that goes down a part of a strip
with torch.inference_mode(False):  # whichever mode this is imported in, so that its matrices can be kept
    IDENTITY = torch.ones(1, device="cpu")


@triton.jit
def _raise(
    image, bias, by_column, by_row, first_row, first_column, channel,
    channels, height, width, channel_step, row_step, column_step,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    HIGH: tl.constexpr, RANK: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of an image plus its bias at the high rate: `[channels columns, rows]`, in float32."""
    i, j = tl.arange(0, BLOCK_ROWS)[:, None, None], tl.arange(0, BLOCK_COLUMNS)[None, None, :]
    row, column, c = first_row + i, first_column + j, channel[None, :, None]
    there = (i < ROWS) & (row >= 0) & (row < height) & (j < COLUMNS) & (column >= 0) & (column < width) & (c < channels)
    value = tl.load(image + row * row_step + c * channel_step + column * column_step, there, 0.0)
    if bias is not None:
        shift = tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)
        value = tl.where(there, value.to(tl.float32) + shift[None, :, None], 0.0).to(value.dtype)
    wide = tl.dot(tl.reshape(value, [BLOCK_ROWS * BLOCK_C, BLOCK_COLUMNS]), by_column, input_precision=PRECISION)
    wide = tl.reshape(wide.to(value.dtype), [BLOCK_ROWS, BLOCK_C, RANK, HIGH])
    wide = tl.reshape(tl.permute(wide, [1, 3, 2, 0]), [BLOCK_C * HIGH, RANK * BLOCK_ROWS])
    return tl.dot(wide, by_row, input_precision=PRECISION)


@triton.jit
def _matrix(matrix, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    return tl.load(matrix + tl.arange(0, HEIGHT)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :])


@triton.jit
def _filtered_lrelu_kernel(
    x, gate, bias, y, up_x, up_y, gate_x, gate_y, begun_y, ended_y, down_x,
    channels, height, width, x_sample, x_channel, x_row, x_column, first_row, first_column,
    gate_height, gate_width, gate_sample, gate_channel, gate_row, gate_column, gate_first_row, gate_first_column,
    out_height, out_width, y_sample, y_channel, y_row, y_column, strips, parts, blocks, alpha, clamp,
    CLAMPED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
    RANK_UP: tl.constexpr, RANK_DOWN: tl.constexpr, RANK_GATE: tl.constexpr,
    STEP_IN_Y: tl.constexpr, STEP_IN_X: tl.constexpr, STEP_GATE_Y: tl.constexpr, STEP_GATE_X: tl.constexpr,
    IN_Y: tl.constexpr, IN_X: tl.constexpr, GATE_Y: tl.constexpr, GATE_X: tl.constexpr,
    OUT_Y: tl.constexpr, OUT_X: tl.constexpr, BLOCK_IN_Y: tl.constexpr, BLOCK_IN_X: tl.constexpr,
    BLOCK_GATE_Y: tl.constexpr, BLOCK_GATE_X: tl.constexpr, BLOCK_OUT_Y: tl.constexpr, BLOCK_OUT_X: tl.constexpr,
    HIGH_Y: tl.constexpr, HIGH_X: tl.constexpr,
):  # fmt: skip
    """`y = D act(U (x + bias))`, or with a gate `y = D (act'(G (gate + bias)) U x)`; images of any strides.

    A program makes `BLOCK_C` channels of `blocks` blocks of `OUT_Y` x `OUT_X` outputs, one below the other.
    """
    tiles_c = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    channel = program % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    strip = program // tiles_c % strips
    first_block = program // (tiles_c * strips) % parts * blocks
    sample = (program // (tiles_c * strips * parts)).to(tl.int64)
    dtype = x.dtype.element_ty
    raise_x, raise_y = _matrix(up_x, BLOCK_IN_X, RANK_UP * HIGH_X), _matrix(up_y, RANK_UP * BLOCK_IN_Y, HIGH_Y)
    if gate is not None:
        side_x = _matrix(gate_x, BLOCK_GATE_X, RANK_GATE * HIGH_X)
        side_y = _matrix(gate_y, RANK_GATE * BLOCK_GATE_Y, HIGH_Y)
    begun = _matrix(begun_y, HIGH_Y, RANK_DOWN * BLOCK_OUT_Y)
    ended = _matrix(ended_y, HIGH_Y, RANK_DOWN * BLOCK_OUT_Y)
    lower_x = _matrix(down_x, RANK_DOWN * HIGH_X, BLOCK_OUT_X)
    kept = tl.zeros([BLOCK_C * HIGH_X, RANK_DOWN * BLOCK_OUT_Y], tl.float32)
    for step in tl.range(0, blocks + 1):
        block = first_block + step
        high = _raise(
            x + sample * x_sample, None if gate is not None else bias, raise_x, raise_y,
            first_row + block * STEP_IN_Y, first_column + strip * STEP_IN_X, channel,
            channels, height, width, x_channel, x_row, x_column,
            IN_Y, IN_X, BLOCK_IN_Y, BLOCK_IN_X, HIGH_X, RANK_UP, BLOCK_C, PRECISION,
        )  # fmt: skip
        if gate is not None:
            side = _raise(
                gate + sample * gate_sample, bias, side_x, side_y,
                gate_first_row + block * STEP_GATE_Y, gate_first_column + strip * STEP_GATE_X, channel,
                channels, gate_height, gate_width, gate_channel, gate_row, gate_column,
                GATE_Y, GATE_X, BLOCK_GATE_Y, BLOCK_GATE_X, HIGH_X, RANK_GATE, BLOCK_C, PRECISION,
            )  # fmt: skip
            high = tl.where(side > 0, high, high * alpha)
            if CLAMPED:
                high = tl.where(tl.abs(tl.where(side > 0, side, side * alpha)) >= clamp, 0.0, high)
        else:
            high = tl.where(high > 0, high, high * alpha)
            if CLAMPED:
                high = clamped(high, clamp)
        high = high.to(dtype)
        # the first time it is nobody's block, and isn't stored; Triton 3.6 compiles no branch around this for a B200
        total = tl.dot(high, ended, kept, input_precision=PRECISION).to(dtype)
        total = tl.permute(tl.reshape(total, [BLOCK_C, HIGH_X, RANK_DOWN, BLOCK_OUT_Y]), [3, 0, 2, 1])
        total = tl.reshape(total, [BLOCK_OUT_Y * BLOCK_C, RANK_DOWN * HIGH_X])
        total = tl.dot(total, lower_x, input_precision=PRECISION).to(dtype)
        i, j = tl.arange(0, BLOCK_OUT_Y)[:, None, None], tl.arange(0, BLOCK_OUT_X)[None, None, :]
        row, column, c = (block - 1) * OUT_Y + i, strip * OUT_X + j, channel[None, :, None]
        there = (
            (i < OUT_Y)
            & (row >= first_block * OUT_Y)
            & (row < out_height)
            & (j < OUT_X)
            & (column < out_width)
            & (c < channels)
        )
        at = y + sample * y_sample + row * y_row + c * y_channel + column * y_column
        tl.store(at, tl.reshape(total, [BLOCK_OUT_Y, BLOCK_C, BLOCK_OUT_X]), there)
        kept = tl.dot(high, begun, input_precision=PRECISION)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Filters and geometry of one launch, and the upsampling by which the slope is found, if it stands in."""

    axes: Axes
    up: Fir
    down: Fir
    activation: Activation
    gate: tuple[Axes, Fir] | None = None

    @classmethod
    def of(cls, x: Tensor, bias: Tensor | None, filters: Filters, spec: FilteredLReLU) -> _Plan:
        """The plan of a forward pass; ValueError for shapes that don't fit."""
        y_axis, x_axis = (
            Axis(axis.size, axis.out_size, axis.up, axis.down, axis.taps, (axis.padding[0], 0))
            for axis in checked_axes(x, bias, filters, spec)
        )
        # all that is multiplied goes into the filters: the gain before the activation, its sign behind the clamp
        gain = spec.activation.full_gain
        gains = ((abs(gain) * spec.up, float(spec.up)), (math.copysign(1.0, gain), 1.0))
        up, down = (
            Fir(IDENTITY if fir is None else fir, spec.flip_filter, both)
            for fir, both in zip(filters, gains, strict=True)
        )
        return cls((y_axis, x_axis), up, down, spec.activation)

    @property
    def transposed(self) -> _Plan:
        """The plan that takes gradients of the output to gradients of the input."""
        y, x = self.axes
        gate = self.gate or (self.axes, self.up)
        return _Plan((y.transposed, x.transposed), self.down.transposed, self.up.transposed, self.activation, gate)

    def cuts(self, dtype: torch.dtype) -> Cuts:
        """How an image of `dtype` is cut."""
        axes, fir = self.gate or (None, None)
        ranks = (self.up.rank(dtype), self.down.rank(dtype), fir.rank(dtype) if fir else 0)
        copies = 1 if dtype != torch.float32 else 3 if precision(dtype) == "tf32x3" else 2
        return cut_image(self.axes, axes, ranks, copies=copies)


def filtered_lrelu_triton(
    x: Tensor,
    bias: Tensor | None = None,
    up_filter: Tensor | None = None,
    down_filter: Tensor | None = None,
    spec: FilteredLReLU = PLAIN,
) -> Tensor:
    """Triton implementation of `filtered_lrelu`; differentiable any number of times, but not by the filters.

    NaN and infinity spread over the tiles that they are in.
    """
    plan = _Plan.of(x, bias, (up_filter, down_filter), spec)
    if up_filter is None and down_filter is None and spec.up == spec.down == 1 and not any(as_padding(spec.padding)):
        return bias_act_triton(x, bias, spec.activation)
    y: Tensor = _FilteredLReLU.apply(x, bias, plan)
    return y


class _FilteredLReLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, plan: _Plan) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.plan = plan
        return _run(x, None, bias, plan)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        dx = _Gated.apply(dy, x, bias, ctx.plan.transposed)
        dbias = dx.sum((0, 2, 3), dtype=torch.float32).to(bias.dtype) if ctx.needs_input_grad[1] else None
        return dx, dbias, None


class _Gated(Function):
    """Linear in its first argument. The slope is constant on either side of zero, so the others get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, bias: Tensor | None, plan: _Plan) -> Tensor:
        ctx.save_for_backward(gate, bias)
        ctx.plan = plan
        return _run(x, gate, bias, plan)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        gate, bias = ctx.saved_tensors
        return _Gated.apply(dy, gate, bias, ctx.plan.transposed), None, None, None


def _run(x: Tensor, gate: Tensor | None, bias: Tensor | None, plan: _Plan) -> Tensor:
    """Launch the kernel; the output has the layout of the layer's input: contiguous, or else channels_last."""
    n, channels = x.shape[:2]
    planes = (x if gate is None else gate).is_contiguous()
    memory_format = torch.contiguous_format if planes else torch.channels_last
    shape = (n, channels, *(axis.out_size for axis in plan.axes))
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    if y.numel() == 0:
        return y
    cuts = plan.cuts(x.dtype)
    block_c = min(triton.next_power_of_2(channels), cuts.channels(), _most_channels(x.dtype, cuts))
    blocks, strips = (
        triton.cdiv(size, cut.outputs) for size, cut in zip(shape[2:], (cuts.y, cuts.x), strict=True)
    )  # fmt: skip
    tiles = triton.cdiv(channels, block_c) * strips * n
    parts = max(1, min(4 * processors(x.device) // tiles, blocks // MIN_BLOCKS))
    sizes = (channels, *_view(x, plan.axes, plan.axes), *_view(gate, plan.gate[0] if plan.gate else (), plan.axes))
    counts = (*shape[2:], *y.stride(), strips, parts, triton.cdiv(blocks, parts))
    act = plan.activation
    numbers = (SLOPES[act.name] if act.alpha is None else act.alpha, 0.0 if act.clamp is None else act.clamp)
    constants = {"CLAMPED": act.clamp is not None, "PRECISION": precision(x.dtype), "BLOCK_C": block_c}
    constants |= _constants(plan, cuts)
    tensors = (x, gate, None if bias is None else bias.contiguous(), y, *_matrices(plan, cuts, x))
    launch(_filtered_lrelu_kernel, (tiles * parts,), (*tensors, *sizes, *counts, *numbers), constants, OPTIONS)
    return y


def _most_channels(dtype: torch.dtype, cuts: Cuts) -> int:
    """16 bytes of channels_last; fewer where a product is made of three, whose operands wait in registers."""
    if dtype == torch.float32 and precision(dtype) == "tf32x3":
        return max(4 // max(cuts.ranks), 1)
    return 16 // dtype.itemsize


def _view(image: Tensor | None, axes: tuple[Axis, ...], output: Axes) -> tuple[int, ...]:
    """Sizes and strides of an image, and the row and the column at which the first block of the output begins."""
    if image is None:
        return (0,) * 8
    starts = (-(axis.lead(out) // axis.up) for axis, out in zip(axes, output, strict=True))
    return (*image.shape[2:], *image.stride(), *starts)


def _constants(plan: _Plan, cuts: Cuts) -> dict[str, int]:
    """What the kernel knows of filters and axes at compile time."""
    known = dict(zip(("RANK_UP", "RANK_DOWN", "RANK_GATE"), cuts.ranks, strict=True))
    gates = plan.gate[0] if plan.gate else (None, None)
    for suffix, axis, gate, cut in zip("YX", plan.axes, gates, (cuts.y, cuts.x), strict=True):
        known |= {
            f"STEP_IN_{suffix}": cut.step // axis.up,
            f"STEP_GATE_{suffix}": cut.step // gate.up if gate else 0,
            f"IN_{suffix}": cut.inputs, f"GATE_{suffix}": cut.gate_inputs, f"OUT_{suffix}": cut.outputs,
            f"BLOCK_IN_{suffix}": block(cut.inputs), f"BLOCK_GATE_{suffix}": block(cut.gate_inputs),
            f"BLOCK_OUT_{suffix}": block(cut.outputs), f"HIGH_{suffix}": cut.high,
        }  # fmt: skip
    return known


def _matrices(plan: _Plan, cuts: Cuts, x: Tensor) -> tuple[Tensor | None, ...]:
    up = up_matrices(plan.up, plan.axes, plan.axes, ((cuts.y.inputs, cuts.y.high), (cuts.x.inputs, cuts.x.high)), x)
    gate: tuple[Tensor | None, ...] = (None, None)
    if plan.gate is not None:
        sizes = ((cuts.y.gate_inputs, cuts.y.high), (cuts.x.gate_inputs, cuts.x.high))
        gate = up_matrices(plan.gate[1], plan.gate[0], plan.axes, sizes, x)
    return (*up, *gate, *down_matrices(plan.down, plan.axes, cuts, x))


def _case(name: str, x: tuple[int, int, int], spec: FilteredLReLU, dtype: str, rank: int = 1) -> CompileCase:
    """A layer of so many samples, channels and rows, or its gradient; `rank` of its downsampling filter."""

    def call(dtype: torch.dtype) -> None:
        n, channels, size = x
        memory_format = torch.contiguous_format if name.endswith("planes") else torch.channels_last
        image = torch.empty(n, channels, size, size, dtype=dtype, device="meta").to(memory_format=memory_format)
        down = torch.ones(6 * spec.down) if rank == 1 else torch.diag((torch.arange(6 * spec.down) < rank).float())
        plan = _Plan.of(image, None, (torch.ones(6 * spec.up), down), spec)
        if not name.startswith("gradient"):
            _run(image, None, None, plan)
            return
        dy = torch.empty(n, channels, *(axis.out_size for axis in plan.axes), dtype=dtype, device="meta")
        _run(dy.to(memory_format=memory_format), image, None, plan.transposed)

    return case_of_dtype(f"filtered_lrelu/{name}", dtype, "any", call)


_LRELU = Activation("lrelu", clamp=256.0)
_UP2, _UP4 = FilteredLReLU(2, 2, (9, 8, 9, 8), _LRELU), FilteredLReLU(4, 2, (-6, -9, -6, -9), _LRELU)
_RADIAL2, _RADIAL4 = FilteredLReLU(2, 2, (11, 10, 11, 10), _LRELU), FilteredLReLU(4, 2, (-2, -5, -2, -5), _LRELU)
_LAST = FilteredLReLU(2, 2, (-11, -12, -11, -12), _LRELU)
# StyleGAN3-T and -R of 1024 pixels and StyleGAN-XL of 256, by their layers
COMPILE_CASES = (
    _case("t-2", (16, 512, 38), _UP4, "float32"),
    _case("t-2", (16, 512, 38), _UP4, "tf32"),
    _case("t-3", (16, 512, 54), _UP2, "float32"),
    _case("t-9", (16, 128, 278), _UP4, "float16"),
    _case("t-10", (16, 81, 534), _UP4, "float16"),
    _case("t-12", (16, 32, 1046), _UP2, "float16"),
    _case("t-12", (16, 32, 1046), _UP2, "bfloat16"),
    _case("t-13-planes", (16, 32, 1046), _LAST, "float16"),
    _case("gradient-t-3", (16, 512, 54), _UP2, "float32"),
    _case("gradient-t-9", (16, 128, 278), _UP4, "float16"),
    _case("gradient-t-12", (16, 32, 1046), _UP2, "float16"),
    _case("r-3", (16, 1024, 52), _RADIAL2, "float32", rank=4),
    _case("r-9", (16, 256, 276), _RADIAL4, "float16", rank=2),
    _case("r-11", (16, 102, 1044), _RADIAL2, "float16", rank=4),
    _case("gradient-r-3", (16, 1024, 52), _RADIAL2, "float32", rank=4),
    _case("gradient-r-9", (16, 256, 276), _RADIAL4, "float16", rank=2),
    _case("gradient-r-11", (16, 102, 1044), _RADIAL2, "float16", rank=4),
    _case("xl-7", (16, 1024, 36), _RADIAL2, "float16", rank=4),
    _case("xl-29", (16, 256, 278), _UP2, "float16"),
)
