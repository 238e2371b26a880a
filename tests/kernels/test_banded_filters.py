from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.banded_filters import (
    MAX_FACTOR,
    MAX_INPUTS,
    MAX_RANK,
    MAX_TAPS,
    RESIDUAL,
    Axis,
    Fir,
    cut_image,
    down_matrices,
    up_matrices,
)

GEOMETRIES = [
    Axis(45, 44, 2, 2, (12, 12), (10, 0)),
    Axis(45, 84, 4, 2, (24, 12), (12, 0)),
    Axis(84, 45, 2, 4, (12, 24), (11, 11)),
    Axis(50, 40, 3, 4, (7, 5), (3, 1)),
    Axis(40, 53, 4, 3, (1, 1), (-2, 0)),
]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def disc(cutoff: float) -> Tensor:
    """A filter of twelve taps that is the same in all directions."""
    at = torch.arange(12) - 5.5
    radius = torch.hypot(at[:, None], at[None])
    return torch.sinc(cutoff * radius) * torch.exp(-radius.square() / 20)


def by_definition(x: np.ndarray, axis: Axis, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Stuff with zeros, filter, filter again and decimate."""
    reach = 200  # zeros all around
    stuffed = np.zeros(len(x) * axis.up)
    stuffed[:: axis.up] = x
    high = np.pad(np.convolve(stuffed, up), reach)
    start = reach + axis.taps[0] - 1 - axis.offsets[0]  # of the high rate
    filtered = np.convolve(high, down)[start + axis.taps[1] - 1 - axis.offsets[1] :]
    return filtered[: axis.out_size * axis.down : axis.down]


def streamed(x: Tensor, axis: Axis, filters: tuple[Fir, Fir]) -> tuple[Tensor, Tensor]:
    """What the matrices of x, and those of y, make of an image of one row or column, block by block."""
    cuts = cut_image((axis, axis), None, (1, 1, 0))
    sizes = ((cuts.y.inputs, cuts.y.high), (cuts.x.inputs, cuts.x.high))
    by_column, by_row = up_matrices(filters[0], (axis, axis), (axis, axis), sizes, x)
    begun, ended, lower = down_matrices(filters[1], (axis, axis), cuts, x)
    first, padded = -(axis.lead(axis) // axis.up), torch.cat([x, x.new_zeros(400)])

    def inputs(start: int, count: int) -> Tensor:
        at = torch.arange(start, start + count)
        return torch.where(at >= 0, padded[at.clamp(min=0)], 0)

    across, down = [], []
    for tile in range(-(-axis.out_size // cuts.x.outputs)):
        high = inputs(first + tile * cuts.x.step // axis.up, len(by_column)) @ by_column
        across.append((high @ lower)[: cuts.x.outputs])
    kept = torch.zeros(begun.shape[1])
    for step in range(-(-axis.out_size // cuts.y.outputs) + 1):
        high = inputs(first + step * cuts.y.step // axis.up, len(by_row)) @ by_row
        down.append((kept + high @ ended)[: cuts.y.outputs])
        kept = high @ begun
    return torch.cat(across)[: axis.out_size], torch.cat(down[1:])[: axis.out_size]


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("axis", GEOMETRIES, ids=str)
def test_matrices_resample_an_axis_of_any_geometry(axis: Axis, flipped: bool) -> None:
    x, up, down = draw(axis.size), draw(axis.taps[0]), draw(axis.taps[1])
    found = streamed(x, axis, (Fir(up, flipped, (2.0, 3.0)), Fir(down, flipped)))
    turned = (fir.flip(0) if flipped else fir for fir in (up, down))
    want = torch.from_numpy(by_definition(x.double().numpy(), axis, *(fir.double().numpy() for fir in turned)))
    for got, gain in zip(found, (3, 2), strict=True):
        torch.testing.assert_close(got.double(), gain * want, rtol=0, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("axis", GEOMETRIES, ids=str)
def test_transposed_axis_and_filters_make_the_gradient(axis: Axis) -> None:
    x, y, up, down = draw(axis.size), draw(axis.out_size), Fir(draw(axis.taps[0]), False), Fir(draw(axis.taps[1]), True)
    forward, _ = streamed(x, axis, (up, down))
    backward, _ = streamed(y, axis.transposed, (down.transposed, up.transposed))
    torch.testing.assert_close(forward @ y, backward @ x, rtol=1e-4, atol=1e-4)
    assert axis.transposed.transposed == axis


@pytest.mark.parametrize(
    ("taps", "dtype", "rank"),
    [
        (disc(0.15), torch.float16, 2),
        (disc(0.3), torch.bfloat16, 4),
        (disc(0.3), torch.float32, 4),
        (torch.outer(draw(5), draw(6)), torch.float32, 1),
        (torch.eye(5), torch.float32, 8),
        (draw(7), torch.float32, 1),
    ],
)
def test_fir_is_a_sum_of_as_few_separable_ones_as_its_dtype_needs(taps: Tensor, dtype: torch.dtype, rank: int) -> None:
    fir = Fir(taps, False)
    assert fir.rank(dtype) == rank
    rows, columns = fir.terms(dtype)
    full = (torch.outer(taps, taps) if taps.ndim == 1 else taps).double()
    assert (rows.T @ columns - full).norm() <= RESIDUAL[dtype] * full.norm()


def test_fir_notices_new_taps() -> None:
    taps = torch.ones(3, 3)
    fir = Fir(taps, False)
    assert fir.rank(torch.float32) == 1
    taps.copy_(torch.eye(3))
    assert fir.rank(torch.float32) == 4


def test_cut_image_finds_tiles_for_all_that_is_allowed() -> None:
    factors = range(1, MAX_FACTOR + 1)
    for up, down, up_taps, down_taps in itertools.product(factors, factors, (1, MAX_TAPS), (1, 2, MAX_TAPS)):
        axis = Axis(100, (100 * up - up_taps + 1 - down_taps) // down + 1, up, down, (up_taps, down_taps), (0, 0))
        forward, backward = (axis, axis), (axis.transposed, axis.transposed)
        for axes, gate, copies in ((forward, None, 1), (forward, forward, 2), (backward, forward, 3)):
            cuts = cut_image(axes, gate, (MAX_RANK, 1, int(gate is not None)), copies=copies)
            for cut in (cuts.y, cuts.x):
                assert 0 < cut.step == cut.outputs * axes[0].down <= cut.high
                assert max(cut.inputs, cut.gate_inputs) <= MAX_INPUTS
            assert cuts.x.step - axes[0].down + axes[0].taps[1] <= cuts.x.high  # an output is made of one block
            assert axes[0].taps[1] <= cuts.y.step + axes[0].down  # or two


def test_cut_image_makes_larger_tiles_of_larger_images() -> None:
    small, large = (Axis(size + 2, size, 2, 2, (12, 12), (9, 0)) for size in (8, 1024))
    first, second = (cut_image((axis, axis), None, (1, 1, 0)) for axis in (small, large))
    assert first.y.outputs < second.y.outputs
    assert second.channels() >= 8
