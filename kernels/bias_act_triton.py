"""Bias, activation, gain and clamp in one pass over memory, and the derivatives of that.

A tensor that is dense in memory, in whatever order, is a matrix along whose rows or columns the bias runs. Where an
activation is linear on either side of zero its slope follows from the output, so that the input need not be kept.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from operator import mul
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kernels.bias_act import HOMOGENEOUS, LINEAR, LRELU_SLOPE, Activation, check_bias
from kernels.launch import CompileCase, Options, launch

TILE, WIDEST_TILE = 4096, 1024  # elements: of a tile, and of one of its rows
MAX_COLUMNS = 65_535 * WIDEST_TILE  # CUDA takes no more programs along the second dimension of a grid
OPTIONS = Options(num_warps=4)
SELU_SCALE, SELU_ALPHA = tl.constexpr(1.0507009873554805), tl.constexpr(1.6732632423543772)


@triton.jit
def clamped(value, limit):
    """Hold `value` within +-limit; NaN stays NaN."""
    value = tl.minimum(value, limit, propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(value, -limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activate(u, alpha, NAME: tl.constexpr):
    """The activation, without its gain, of float32; NaN stays NaN."""
    negative = tl.minimum(u, 0.0)
    if NAME == "relu":
        u = tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif NAME == "lrelu":
        u = tl.where(u > 0, u, u * alpha)
    elif NAME == "tanh":
        u = 2 * tl.sigmoid(2 * u) - 1
    elif NAME == "sigmoid":
        u = tl.sigmoid(u)
    elif NAME == "elu":
        u = tl.where(u <= 0, tl.exp(negative) - 1, u)
    elif NAME == "selu":
        u = SELU_SCALE * tl.where(u <= 0, SELU_ALPHA * (tl.exp(negative) - 1), u)
    elif NAME == "softplus":
        u = u - negative + tl.log(1 + tl.exp(-tl.abs(u)))
    elif NAME == "swish":
        u = u * tl.sigmoid(u)
    return u


@triton.jit
def _derivative(u, alpha, NAME: tl.constexpr, ORDER: tl.constexpr):
    """The first or second derivative of `activate`."""
    sigmoid = tl.sigmoid(2 * u if NAME == "tanh" else u)
    bell = sigmoid * (1 - sigmoid)
    below = tl.exp(tl.minimum(u, 0.0))  # of elu
    if NAME == "relu":
        slope, curvature = tl.where(u > 0, 1.0, 0.0), tl.zeros_like(u)
    elif NAME == "lrelu":
        slope, curvature = tl.where(u > 0, 1.0, alpha), tl.zeros_like(u)
    elif NAME == "tanh":
        slope, curvature = 4 * bell, 8 * bell * (1 - 2 * sigmoid)
    elif NAME == "sigmoid":
        slope, curvature = bell, bell * (1 - 2 * sigmoid)
    elif NAME == "elu":
        slope, curvature = below, tl.where(u > 0, 0.0, below)
    elif NAME == "selu":
        slope, curvature = tl.where(u > 0, 1.0, SELU_ALPHA * below), tl.where(u > 0, 0.0, SELU_ALPHA * below)
        slope, curvature = SELU_SCALE * slope, SELU_SCALE * curvature
    elif NAME == "softplus":
        slope, curvature = sigmoid, bell
    elif NAME == "swish":
        slope, curvature = sigmoid + u * bell, bell * (2 + u * (1 - 2 * sigmoid))
    else:
        slope, curvature = tl.zeros_like(u) + 1.0, tl.zeros_like(u)
    return slope if ORDER == 1 else curvature


@triton.jit
def _bias_act_kernel(
    x, bias, gradient, gradient_bias, factor, y, sums,
    num_rows, num_columns, num_biases, alpha, gain, clamp,
    NAME: tl.constexpr, ORDER: tl.constexpr, FROM_OUTPUT: tl.constexpr, CLAMPED: tl.constexpr,
    BIAS_PER_ROW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`y = act^(ORDER)(x + bias) gain (gradient + gradient_bias) factor`; `sums` of `y` over what shares a bias."""
    tile_row, tile_column = tl.program_id(0), tl.program_id(1)
    row = tile_row * ROWS + tl.arange(0, ROWS)[:, None]
    column = tile_column * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < num_rows) & (column < num_columns)
    at = row.to(tl.int64) * num_columns + column
    which = row % num_biases if BIAS_PER_ROW else column
    known = row < num_rows if BIAS_PER_ROW else column < num_columns
    u = tl.zeros([ROWS, COLUMNS], tl.float32)
    if x is not None:
        u = tl.load(x + at, inside, 0.0).to(tl.float32)
    if bias is not None:
        u += tl.load(bias + which, known, 0.0).to(tl.float32)
    if ORDER == 0:
        out = activate(u, alpha, NAME) * gain
        if CLAMPED:
            out = clamped(out, clamp)
    else:
        out = tl.load(gradient + at, inside, 0.0).to(tl.float32)
        if gradient_bias is not None:
            out += tl.load(gradient_bias + which, known, 0.0).to(tl.float32)
        if factor is not None:
            out *= tl.load(factor + at, inside, 0.0).to(tl.float32)
        # a negative gain turns the sign of the output, and no more than its sign is used
        out *= _derivative(u * gain if FROM_OUTPUT else u, alpha, NAME, ORDER) * gain
        if CLAMPED:
            held = tl.abs(u if FROM_OUTPUT else activate(u, alpha, NAME) * gain) >= clamp
            out = tl.where(held, 0.0, out)
    tl.store(y + at, out.to(y.dtype.element_ty), inside)
    if sums is not None:
        out = tl.where(inside, out, 0.0)
        if BIAS_PER_ROW:
            tl.store(sums + row * tl.num_programs(1) + tile_column, tl.sum(out, 1)[:, None], row < num_rows)
        else:
            tl.store(sums + tile_row * num_columns + column, tl.sum(out, 0)[None, :], column < num_columns)


@dataclass(frozen=True, slots=True)
class _Spec:
    """What is applied, and along which dimension the bias lies."""

    activation: Activation
    dim: int

    @property
    def from_output(self) -> bool:
        """Whether the slope follows from the sign of the output."""
        act = self.activation
        return act.name in HOMOGENEOUS and (act.alpha is None or act.alpha >= 0)


@dataclass(frozen=True, slots=True)
class _Operands:
    """Tensors of one launch, all of the strides of the first that is there but for the biases."""

    x: Tensor | None  # or the output, where the slope follows from it
    bias: Tensor | None = None
    gradient: Tensor | None = None
    gradient_bias: Tensor | None = None
    factor: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A dense tensor as rows and columns; a bias is for a row (`per_row`) or for a column."""

    rows: int
    columns: int
    biases: int
    per_row: bool

    @classmethod
    def of(cls, x: Tensor, dim: int | None) -> _Matrix:
        """Arrange `x` for a bias along `dim`, or for none."""
        if dim is None or x.shape[dim] == 1:
            rows = next(n for n in accumulate(x.shape, mul) if x.numel() // n <= MAX_COLUMNS)
            return cls(rows, x.numel() // rows, 1, True)
        size, step = x.shape[dim], x.stride(dim)
        per_row = step > 1
        columns = step if per_row else size
        return cls(x.numel() // columns, columns, size, per_row)

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a tile, powers of two."""
        columns = min(triton.next_power_of_2(self.columns), WIDEST_TILE)
        return min(TILE // columns, triton.next_power_of_2(self.rows)), columns

    @property
    def grid(self) -> tuple[int, int]:
        """Number of tiles along rows and columns."""
        return triton.cdiv(self.rows, self.tile[0]), triton.cdiv(self.columns, self.tile[1])

    def new_sums(self, like: Tensor) -> Tensor:
        """Room for what each tile sums up."""
        shape = (self.rows, self.grid[1]) if self.per_row else (self.grid[0], self.columns)
        return like.new_empty(shape, dtype=torch.float32)

    def total(self, sums: Tensor) -> Tensor:
        """The sums of all tiles added up in a fixed order, one for each bias."""
        return sums.reshape(-1, self.biases, sums.shape[1]).sum((0, 2)) if self.per_row else sums.sum(0)


def bias_act_triton(x: Tensor, bias: Tensor | None = None, activation: Activation = LINEAR, *, dim: int = 1) -> Tensor:
    """Triton implementation of `bias_act`; twice differentiable."""
    check_bias(x, bias, dim)
    if bias is None and activation.clamp is None and activation.name == "linear" and activation.full_gain == 1:
        return x
    y: Tensor = _BiasAct.apply(x, bias, _Spec(activation, dim))
    return y


def activation_gradient(
    dy: Tensor, y: Tensor, activation: Activation, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of what came before `activation`, whose output is `y` `[N, C, ...]`, and of its bias `[C]`.

    For activations that are linear on either side of zero; differentiable once more. No bias: `bias_dtype` None.
    """
    spec = _Spec(activation, 1)
    dx, dbias = _Gradient.apply(dy, _point(y, spec), None, spec, bias_dtype)
    return dx, dbias


class _BiasAct(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, spec: _Spec) -> Tensor:
        x = _arranged(x, torch.empty_like(x))
        y, _ = _run(_Operands(x, bias), spec, order=0, wants_sums=False)
        ctx.save_for_backward(*((_point(y, spec), None) if spec.from_output else (x, bias)))
        ctx.spec, ctx.bias_dtype = spec, None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        point, bias = ctx.saved_tensors
        dx, dbias = _Gradient.apply(dy, point, bias, ctx.spec, ctx.bias_dtype)
        return dx, dbias, None


class _Gradient(Function):
    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, point: Tensor | None, bias: Tensor | None, spec: _Spec, bias_dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor | None]:
        dx, sums = _run(_Operands(point, bias, dy), spec, order=1, wants_sums=bias_dtype is not None)
        ctx.save_for_backward(point, bias, None if spec.from_output else dy)
        ctx.spec = spec
        return dx, None if sums is None else sums.to(bias_dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ddx: Tensor, ddbias: Tensor | None) -> tuple[Tensor | None, ...]:
        point, bias, dy = ctx.saved_tensors
        gradient, _ = _run(_Operands(point, bias, ddx, ddbias), ctx.spec, order=1, wants_sums=False)
        if ctx.spec.from_output:
            return gradient, None, None, None, None
        operands = _Operands(point, bias, ddx, ddbias, factor=dy)
        dx, dbias = _run(operands, ctx.spec, order=2, wants_sums=bias is not None)
        return gradient, dx, None if dbias is None else dbias.to(bias.dtype), None, None


def _point(y: Tensor, spec: _Spec) -> Tensor | None:
    """What the slope follows from; the linear function has the same one everywhere."""
    return None if spec.activation.name == "linear" and spec.activation.clamp is None else y


def _arranged(x: Tensor, like: Tensor) -> Tensor:
    """Return `x` with the strides of `like`, which is dense."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


def _run(operands: _Operands, spec: _Spec, order: int, wants_sums: bool) -> tuple[Tensor, Tensor | None]:
    """Launch the kernel; returns its output, and its sums over all that shares a bias."""
    like = operands.x if operands.x is not None else operands.gradient
    assert like is not None
    y = torch.empty_like(like)
    x, gradient, factor = (
        None if t is None else _arranged(t, y) for t in (operands.x, operands.gradient, operands.factor)
    )
    has_bias = wants_sums or operands.bias is not None or operands.gradient_bias is not None
    if y.numel() == 0:
        return y, y.new_zeros(y.shape[spec.dim], dtype=torch.float32) if wants_sums else None
    matrix = _Matrix.of(y, spec.dim if has_bias else None)
    sums = matrix.new_sums(y) if wants_sums else None
    rows, columns = matrix.tile
    act = spec.activation
    bias, gradient_bias = (None if t is None else t.contiguous() for t in (operands.bias, operands.gradient_bias))
    tensors = (x, bias, gradient, gradient_bias, factor, y, sums)
    sizes = (matrix.rows, matrix.columns, matrix.biases)
    numbers = (LRELU_SLOPE if act.alpha is None else act.alpha, act.full_gain, stored_clamp(act.clamp, y.dtype))
    constants = {
        "NAME": act.name,
        "ORDER": order,
        "FROM_OUTPUT": spec.from_output,
        "CLAMPED": act.clamp is not None,
        "BIAS_PER_ROW": matrix.per_row,
        "ROWS": rows,
        "COLUMNS": columns,
    }
    launch(_bias_act_kernel, matrix.grid, (*tensors, *sizes, *numbers), constants, OPTIONS)
    return y, None if sums is None else matrix.total(sums)


@cache
def stored_clamp(clamp: float | None, dtype: torch.dtype) -> float:
    """The clamp as an output of this dtype holds it, so that a clamped output is found by comparing; 0 for none."""
    return 0.0 if clamp is None else float(torch.tensor(clamp, dtype=dtype, device="cpu"))


def _case(name: str, order: int, dtype: torch.dtype, memory_format: torch.memory_format) -> CompileCase:
    def call() -> None:
        x = torch.empty(16, 64, 256, 256, dtype=dtype, device="meta").to(memory_format=memory_format)
        bias = torch.empty(64, device="meta")
        operands = _Operands(x, None if order else bias, x if order else None)
        _run(operands, _Spec(Activation("lrelu", clamp=256.0), 1), order, wants_sums=order > 0)

    return CompileCase(f"bias_act/{name}", call)


COMPILE_CASES = (
    _case("forward-fp16-nhwc", 0, torch.float16, torch.channels_last),
    _case("forward-fp32-nchw", 0, torch.float32, torch.contiguous_format),
    _case("gradient-bf16-nhwc", 1, torch.bfloat16, torch.channels_last),
    _case("gradient-fp32-nchw", 1, torch.float32, torch.contiguous_format),
)
