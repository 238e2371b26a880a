"""FIR resampling as products with banded matrices, and how an image is cut into tiles that such products handle.

A tile is `Y = sum_r D_r phi(sum_q U_q X V_q) E_r`: `U` and `V` stuff with zeros and filter along y and x, `D` and `E`
filter and decimate. A filter `[h, w]` is a sum of separable ones, by its singular value decomposition.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from kernels.conv_plan import remember

MAX_TAPS, MAX_FACTOR, MAX_RANK = 24, 4, 8  # what the tiles have room for
# of what a sum of separable filters may leave out of a filter, relative to its norm
RESIDUAL = {torch.float32: 1e-6, torch.float16: 2e-4, torch.bfloat16: 2e-4}
WIDTHS, HEIGHTS = (32, 64, 128), (16, 32, 64)  # of a block at the high rate
MAX_INPUTS = 64  # of a block along an axis
SUMS = 1 << 15  # float32 sums of a program
COEFFICIENTS = 1 << 14  # of the matrices, which a program holds in registers and shared memory
SECTOR_CHANNELS = 8  # of channels_last, from which on reading is efficient
MOVED = 24  # multiplications that take as long as it takes to load or store a sample, or to convert it between two
Terms = tuple[Tensor, Tensor]  # taps along y `[rank, h]` and along x `[rank, w]`


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of an image, from `size` samples over the high rate to `out_size`.

    Input `i` reaches high sample `h` by tap `h + taps[0] - 1 - offsets[0] - up i`, and that reaches output `o` by tap
    `down o + taps[1] - 1 - offsets[1] - h`.
    """

    size: int
    out_size: int
    up: int
    down: int
    taps: tuple[int, int]
    offsets: tuple[int, int]

    @property
    def transposed(self) -> Axis:
        """The axis of the gradient, whose filters are turned round: every output gives back to its inputs."""
        offsets = (self.taps[1] - 1 - self.offsets[1], self.taps[0] - 1 - self.offsets[0])
        return Axis(self.out_size, self.size, self.down, self.up, self.taps[::-1], offsets)

    def inputs(self, high: int) -> int:
        """The number of inputs that `high` samples of the high rate are made of."""
        return (high + self.taps[0] - 2) // self.up + 1

    def lead(self, output: Axis) -> int:
        """By how many high samples the first input begins before the first output of the axis `output`."""
        return self.offsets[0] + output.offsets[1]


Axes = tuple[Axis, Axis]  # (y, x)


@dataclass(frozen=True, slots=True)
class Fir:
    """A filter `[n]` or `[h, w]`, whether it is turned round, and what it is multiplied with along y and along x."""

    taps: Tensor
    flipped: bool
    gains: tuple[float, float] = (1.0, 1.0)

    @property
    def transposed(self) -> Fir:
        """The filter of the gradient."""
        return replace(self, flipped=not self.flipped)

    def rank(self, dtype: torch.dtype) -> int:
        """Of how many separable filters it is the sum, as a power of two."""
        return next_power_of_2(len(self.terms(dtype)[0]))

    def terms(self, dtype: torch.dtype) -> Terms:
        """Those filters, as many as images of `dtype` ask for; float64."""
        rows, columns = remember(self.taps, ("terms", RESIDUAL[dtype]), lambda: _terms(self.taps, RESIDUAL[dtype]))
        if self.flipped:
            rows, columns = rows.flip(1), columns.flip(1)
        return rows * self.gains[0], columns * self.gains[1]


@dataclass(frozen=True, slots=True)
class Cut:
    """How an axis is cut: from one block to the next, and in a block. A kernel pads blocks to powers of two."""

    step: int  # at the high rate
    high: int  # power of two
    inputs: int
    gate_inputs: int  # of the image that the slope is taken from; 0 for none
    outputs: int


@dataclass(frozen=True, slots=True)
class Cuts:
    """How an image is cut: strips along y, which a program goes down block by block."""

    y: Cut
    x: Cut
    ranks: tuple[int, int, int]  # of the upsampling and the downsampling filter, and of that of the gate, 0 for none

    def sums(self) -> int:
        """Float32 sums of one channel that are held at a time, at the most."""
        (up, down, gate), x, y = self.ranks, self.x, self.y
        kept, high = down * x.high * block(y.outputs), x.high * y.high
        gated = high * (gate > 0)
        raised = max(up * x.high * block(y.inputs), gated + gate * x.high * block(y.gate_inputs))
        return kept + max(high + gated + kept, raised)

    def channels(self) -> int:
        """How many channels a program has room for, a power of two."""
        return 1 << max(SUMS // self.sums(), 1).bit_length() - 1

    def coefficients(self) -> int:
        """Elements of all matrices."""
        (up, down, gate), x, y = self.ranks, self.x, self.y
        raising = up * (block(x.inputs) * x.high + block(y.inputs) * y.high)
        gating = gate * (block(x.gate_inputs) * x.high + block(y.gate_inputs) * y.high)
        return raising + gating + down * (2 * y.high * block(y.outputs) + x.high * block(x.outputs))

    def work(self) -> int:
        """About what one block of one channel takes: multiplications, and samples that are moved between them."""
        (up, down, gate), x, y = self.ranks, self.x, self.y
        loaded = MOVED * SECTOR_CHANNELS // min(self.channels(), SECTOR_CHANNELS)
        work = (x.high * y.high + x.outputs * y.outputs) * MOVED
        for rank, rows, columns in ((up, y.inputs, x.inputs), (gate, y.gate_inputs, x.gate_inputs)):
            work += rank * x.high * block(rows) * (block(columns) + y.high + MOVED) + rows * columns * loaded
        return work + down * x.high * block(y.outputs) * (2 * y.high + block(x.outputs) + MOVED)


@lru_cache(1024)
def cut_image(axes: Axes, gate: Axes | None, ranks: tuple[int, int, int], *, copies: int = 1) -> Cuts:
    """Cut an image so that there is the least to do; by few sums at a time, and many channels, if possible.

    `copies` of two bytes is what an element of the matrices takes up: 2 for TF32, 3 where a product is made of three.
    """
    rows, columns = (
        tuple(_cuts(axis, gated, sizes, streamed=sizes is HEIGHTS))
        for axis, gated, sizes in zip(axes, gate or (None, None), (HEIGHTS, WIDTHS), strict=True)
    )
    choices = [Cuts(row, column, ranks) for row, column in itertools.product(rows, columns)]

    def work(cuts: Cuts) -> int:
        (down, across) = (-(-a.out_size * a.down // cut.step) for a, cut in zip(axes, (cuts.y, cuts.x), strict=True))
        return across * (down + 1) * cuts.work()

    def strain(cuts: Cuts) -> tuple[int, bool, bool]:
        beyond = max(copies * cuts.coefficients() - COEFFICIENTS, 0)
        # 64 sums a thread leave room for a second program on a processor
        return beyond, cuts.sums() > SUMS // 16, cuts.channels() < SECTOR_CHANNELS // 2

    return min(choices, key=lambda cuts: (strain(cuts), work(cuts)))


def up_matrices(fir: Fir, axes: Axes, output: Axes, cuts: tuple[tuple[int, int], ...], like: Tensor) -> Terms:
    """Return matrices of x `[inputs, rank high]` and of y `[rank inputs, high]`, in dtype and on device of `like`.

    `cuts` are the inputs and high samples of a block along y and x; the output's axes say where a block begins.
    """
    phases = tuple(axis.lead(out) % axis.up for axis, out in zip(axes, output, strict=True))

    def make() -> Terms:
        by_row, by_column = (
            _band(taps, axis.taps[0] - 1 - phase, (-axis.up, block(inputs)), (1, high))
            for taps, axis, phase, (inputs, high) in zip(fir.terms(like.dtype), axes, phases, cuts, strict=True)
        )
        return _as(like, by_column.transpose(0, 1).flatten(1)), _as(like, by_row.flatten(0, 1))

    key = ("up", fir.flipped, fir.gains, tuple(axis.up for axis in axes), phases, cuts, like.dtype, like.device)
    made: Terms = remember(fir.taps, key, make)
    return made


def down_matrices(fir: Fir, axes: Axes, cuts: Cuts, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return two matrices of y `[high, rank outputs]` and one of x `[rank high, outputs]`, else as `up_matrices`.

    Those of y take a block to the outputs that begin in it, and to those that began in the block before.
    """
    y, x = axes

    def make() -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = fir.terms(like.dtype)
        inside = torch.arange(cuts.y.high, device=rows.device)[:, None] < cuts.y.step
        begun, ended = (
            _band(rows, y.taps[1] - 1 - before, (-1, cuts.y.high), (y.down, block(cuts.y.outputs))) * inside
            for before in (0, cuts.y.step)
        )
        across = _band(columns, x.taps[1] - 1, (-1, cuts.x.high), (x.down, block(cuts.x.outputs)))
        begun, ended = (_as(like, band.transpose(0, 1).flatten(1)) for band in (begun, ended))
        return begun, ended, _as(like, across.flatten(0, 1))

    key = ("down", fir.flipped, fir.gains, y.down, x.down, cuts, like.dtype, like.device)
    made: tuple[Tensor, Tensor, Tensor] = remember(fir.taps, key, make)
    return made


def block(size: int) -> int:
    """The side of a matrix that holds `size`: tensor cores take no less than 16."""
    return max(16, next_power_of_2(size))


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is `n` or more."""
    return 1 << (n - 1).bit_length()


def _terms(taps: Tensor, residual: float) -> Terms:
    """As few separable filters as leave out no more than `residual` of `taps`."""
    fir = taps.detach().cpu().double()
    if fir.ndim == 1:
        return fir[None], fir[None]
    u, s, vh = torch.linalg.svd(fir, full_matrices=False)
    left_out = s.square().flip(0).cumsum(0).flip(0).sqrt()  # by as many as come before
    rank = max(1, int((left_out > residual * left_out[0]).sum()))
    rank = min(next_power_of_2(rank), len(s))  # the matrices have room for so many
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).T, vh[:rank] * root[:, None]


def _cuts(axis: Axis, gate: Axis | None, sizes: tuple[int, ...], *, streamed: bool) -> Iterator[Cut]:
    """All blocks of `sizes` at the high rate. Where they are streamed an output is made of two that follow."""
    period = math.lcm(axis.up, axis.down)
    reach = max(axis.taps[1] - axis.down, 0)  # of the last output that begins in a block, into the next one
    for high, limit in itertools.product(sizes, (16, 32, MAX_INPUTS)):
        beyond = 0 if streamed else reach
        for step in range((high - beyond) // period * period, 0, -period):
            inputs, gated = axis.inputs(step + beyond), gate.inputs(step + beyond) if gate else 0
            if inputs <= limit and gated <= MAX_INPUTS and (not streamed or reach <= step):
                yield Cut(step, high, inputs, gated, step // axis.down)
                break


def _band(taps: Tensor, first: int, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Return `[rank, rows, columns]` of taps: number `first`, and from row to row and column to column so many more.

    Zero where there is no such tap; terms of zeros make the rank a power of two.
    """
    (down, height), (across, width) = rows, columns
    row, column = (torch.arange(size, device=taps.device) for size in (height, width))
    tap = first + row[:, None] * down + column * across
    inside = (tap >= 0) & (tap < taps.shape[1])
    band = torch.where(inside, taps[:, tap.clamp(0, taps.shape[1] - 1)], 0)
    return torch.cat([band, band.new_zeros(next_power_of_2(len(taps)) - len(taps), height, width)])


def _as(like: Tensor, matrix: Tensor) -> Tensor:
    return matrix.to(like.device, like.dtype).contiguous()
