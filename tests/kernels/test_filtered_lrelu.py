from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import kernels.filtered_lrelu as module
from kernels.bias_act import Activation, bias_act
from kernels.dispatch import use
from kernels.filtered_lrelu import FilteredLReLU, filtered_lrelu, filtered_lrelu_naive
from kernels.padded_conv import as_padding
from tests.conftest import COMMITTED_GOLDEN
from tests.golden_cases import load_golden
from tests.golden_operators import check_operator

GOLDEN = COMMITTED_GOLDEN / "stylegan3" / "op_filtered_lrelu.safetensors"
Filters = tuple[Tensor | None, Tensor | None]
# shapes of (up filter, down filter), and what is done with them
CASES = [
    ((12,), (12,), FilteredLReLU(2, 2, (9, 8, 9, 8), Activation("lrelu", clamp=256.0))),
    ((24,), (12,), FilteredLReLU(4, 2, (-1, 3, 2, -2))),
    ((12,), (12, 12), FilteredLReLU(2, 2, (11, 10, 11, 10))),
    ((12,), (24,), FilteredLReLU(2, 4, (17, 18, 16, 19))),
    ((7,), (5, 6), FilteredLReLU(3, 2, (6, 5, 4, 7), Activation("lrelu", 0.5, 0.8, 0.3), flip_filter=True)),
    ((5, 6), (7,), FilteredLReLU(2, 3, (6, 7, 5, 8), Activation("lrelu", 0.0, 2.0))),
    (None, (12,), FilteredLReLU(1, 2, 4)),
    ((12,), None, FilteredLReLU(2, 1, (-1, 12, 11, -2))),
    (None, None, FilteredLReLU(3, 2, (2, -1), Activation("lrelu", gain=-1.0))),
    (None, None, FilteredLReLU(1, 1, (-1, 2, 0, 3))),
    (None, None, FilteredLReLU()),
]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def filter_of(shape: tuple[int, ...] | None) -> Tensor | None:
    if shape is None:
        return None
    fir = draw(*shape)
    return fir / fir.abs().sum()


def arguments(up: tuple[int, ...] | None, down: tuple[int, ...] | None) -> tuple[Tensor, Tensor, Filters]:
    return draw(2, 3, 11, 13), draw(3), (filter_of(up), filter_of(down))


def filtered(plane: np.ndarray, fir: np.ndarray | None, flip: bool) -> np.ndarray:
    if fir is None:
        return plane
    full = np.outer(fir, fir) if fir.ndim == 1 else fir
    return np.asarray(scipy.signal.convolve2d(plane, full[::-1, ::-1] if flip else full, mode="valid"))


def by_definition(plane: np.ndarray, filters: Sequence[np.ndarray | None], s: FilteredLReLU) -> np.ndarray:
    stuffed = np.zeros((plane.shape[0] * s.up, plane.shape[1] * s.up))
    stuffed[:: s.up, :: s.up] = plane * s.up**2
    x0, x1, y0, y1 = as_padding(s.padding)
    stuffed = np.pad(stuffed, ((max(y0, 0), max(y1, 0)), (max(x0, 0), max(x1, 0))))
    stuffed = stuffed[max(-y0, 0) : stuffed.shape[0] - max(-y1, 0), max(-x0, 0) : stuffed.shape[1] - max(-x1, 0)]
    high = filtered(stuffed, filters[0], s.flip_filter)
    slope = 0.2 if s.activation.alpha is None else s.activation.alpha
    high = np.where(high < 0, high * slope, high) * s.activation.full_gain
    if s.activation.clamp is not None:
        high = high.clip(-s.activation.clamp, s.activation.clamp)
    return filtered(high, filters[1], s.flip_filter)[:: s.down, :: s.down]


def expected(x: Tensor, bias: Tensor, filters: Filters, spec: FilteredLReLU) -> np.ndarray:
    taps = [None if fir is None else fir.numpy() for fir in filters]
    planes = (x + bias[:, None, None]).numpy()
    return np.array([[by_definition(plane, taps, spec) for plane in sample] for sample in planes])


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that are smaller than the filters in all four dimensions."""
    for name, value in {"TILE_SAMPLES": 150, "TILE_CHANNELS": 2, "WHOLE_CHANNELS": 0, "MATRIX_SIDE": 9}.items():
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize(("up", "down", "spec"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filtered_lrelu_matches_its_definition(
    up: tuple[int, ...] | None, down: tuple[int, ...] | None, spec: FilteredLReLU, dtype: torch.dtype
) -> None:
    x, bias, filters = arguments(up, down)
    got = filtered_lrelu(x.to(dtype), bias.to(dtype), *filters, spec)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected(x, bias, filters, spec), rtol=0, atol=torch.finfo(dtype).eps * 30)


@pytest.mark.parametrize(("up", "down", "spec"), CASES)
def test_filtered_lrelu_naive_matches_its_definition(
    up: tuple[int, ...] | None, down: tuple[int, ...] | None, spec: FilteredLReLU
) -> None:
    x, bias, filters = arguments(up, down)
    got = filtered_lrelu_naive(x, bias, *filters, spec)
    np.testing.assert_allclose(got, expected(x, bias, filters, spec), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("up", "down", "spec"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("small_tiles")
def test_filtered_lrelu_in_tiles_equals_the_whole_that_autograd_records(
    up: tuple[int, ...] | None, down: tuple[int, ...] | None, spec: FilteredLReLU, dtype: torch.dtype
) -> None:
    x, bias, filters = arguments(up, down)
    x, bias = x.to(dtype), bias.to(dtype)
    whole = filtered_lrelu(x.clone().requires_grad_(), bias, *filters, spec)
    assert whole.requires_grad
    tiles = filtered_lrelu(x, bias, *filters, spec)
    torch.testing.assert_close(tiles, whole.detach(), rtol=0, atol=torch.finfo(dtype).eps * 30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("small_tiles")
def test_filtered_lrelu_tiles_may_lie_wholly_in_the_padding(dtype: torch.dtype) -> None:
    x, bias, filters = draw(1, 3, 4, 3), draw(3), (draw(12), draw(12))
    spec = FilteredLReLU(2, 2, (60, -3, -5, 70))
    got = filtered_lrelu(x.to(dtype), bias.to(dtype), *filters, spec)
    want = expected(x, bias, filters, spec)
    np.testing.assert_allclose(got, want, rtol=0, atol=torch.finfo(dtype).eps * 10 * np.abs(want).max())


@pytest.mark.parametrize(("up", "down", "spec"), [CASES[0], CASES[2], CASES[4], CASES[8]])
def test_filtered_lrelu_is_twice_differentiable(
    up: tuple[int, ...] | None, down: tuple[int, ...] | None, spec: FilteredLReLU
) -> None:
    _, _, filters = arguments(up, down)
    leaves = (draw(1, 2, 6, 5).requires_grad_(), draw(2).requires_grad_())

    def run(x: Tensor, b: Tensor) -> Tensor:
        return filtered_lrelu(x, b, *filters, spec)

    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)


@pytest.mark.parametrize(("up", "down", "spec"), CASES)
def test_filtered_lrelu_gradients_of_float32_match_float64(
    up: tuple[int, ...] | None, down: tuple[int, ...] | None, spec: FilteredLReLU
) -> None:
    x, bias, filters = arguments(up, down)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaves = (x.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_())
        y = filtered_lrelu(*leaves, *filters, spec)
        gradients.append(torch.autograd.grad((y * draw(*y.shape).to(dtype)).sum(), leaves))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-6 * want.abs().max().item())


@pytest.mark.parametrize("index", range(14))
def test_filtered_lrelu_naive_matches_golden(index: int) -> None:
    case = load_golden(GOLDEN)
    assert len(case.meta["cases"]) == 14
    with use("naive"):
        check_operator(case, index)


@pytest.mark.parametrize(
    ("size", "out_size", "up", "padding"),
    [(38, 36, 2, (9, 8)), (38, 52, 4, (-6, -9)), (86, 64, 2, (-11, -12)), (36, 36, 2, (11, 10)), (36, 52, 4, (-2, -5))],
)
def test_filtered_lrelu_gives_the_sizes_of_stylegan3_layers_and_keeps_brightness(
    size: int, out_size: int, up: int, padding: tuple[int, int]
) -> None:
    up_filter, down_filter = torch.full((6 * up,), 1 / (6 * up)), torch.full((12, 12), 1 / 144)
    spec = FilteredLReLU(up, 2, padding + padding, Activation("lrelu", gain=1.0))
    y = filtered_lrelu(torch.ones(1, 17, size, size), None, up_filter, down_filter, spec)
    assert y.shape == (1, 17, out_size, out_size)
    torch.testing.assert_close(y[:, :, 12:-12, 12:-12], torch.ones(1, 17, out_size - 24, out_size - 24))


def test_filtered_lrelu_without_filters_is_bias_act() -> None:
    x, bias = draw(2, 3, 4, 5), draw(3)
    activation = Activation("lrelu", alpha=1.0, gain=1.0, clamp=0.5)
    got = filtered_lrelu(x, bias, None, None, FilteredLReLU(activation=activation))
    assert torch.equal(got, bias_act(x, bias, activation))


@pytest.mark.parametrize(("up", "down", "spec"), CASES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_filtered_lrelu_takes_any_memory_layout_and_writes_into_no_input(
    up: tuple[int, ...] | None, down: tuple[int, ...] | None, spec: FilteredLReLU, with_bias: bool
) -> None:
    x, bias, filters = arguments(up, down)
    x, shift = x.float(), bias.float() if with_bias else None
    want = filtered_lrelu(x, shift, *filters, spec)
    every_second = torch.stack([x, x], -1).flatten(-2)[..., ::2]
    for same in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT, every_second):
        before = same.clone()
        torch.testing.assert_close(filtered_lrelu(same, shift, *filters, spec), want, rtol=0, atol=1e-6)
        assert torch.equal(same, before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_filtered_lrelu_computes_in_the_dtype_of_its_input(dtype: torch.dtype, tolerance: float) -> None:
    up, down, spec = CASES[2]
    x, bias, filters = arguments(up, down)
    x = x.to(dtype)
    got = filtered_lrelu(x, bias, *filters, spec)
    want = filtered_lrelu(x.double(), bias, *filters, spec)
    assert got.dtype == dtype
    assert (got.double() - want).norm() < tolerance * want.norm()


@pytest.mark.parametrize(("up", "down", "spec"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filtered_lrelu_knows_its_shape_without_numbers(
    up: tuple[int, ...] | None, down: tuple[int, ...] | None, spec: FilteredLReLU, dtype: torch.dtype
) -> None:
    x, bias, filters = arguments(up, down)
    want = filtered_lrelu(x, bias, *filters, spec).shape
    on_meta = tuple(None if fir is None else fir.to("meta") for fir in filters)
    assert filtered_lrelu(x.to("meta", dtype), bias.to("meta"), on_meta[0], on_meta[1], spec).shape == want
    assert filtered_lrelu(x[:0].to(dtype), bias, *filters, spec).shape == (0, *want[1:])
    assert filtered_lrelu(x[:0].to(dtype).requires_grad_(), bias, *filters, spec).shape == (0, *want[1:])


def test_filtered_lrelu_rejects_what_does_not_fit() -> None:
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"bias \[4\]; allowed are x \[N, C, H, W\] and bias \[C\]"):
        filtered_lrelu(x, torch.zeros(4))
    with pytest.raises(ValueError, match=r"x \[3, 8, 8\], bias None"):
        filtered_lrelu(x[0])
    with pytest.raises(ValueError, match=r"filters \[\[1, 1, 2\], None\]; allowed are \[n\], \[h, w\]"):
        filtered_lrelu(x, None, torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match=r"smaller than the filters of \(1, 1\) and \(12, 12\) taps; use more padding"):
        filtered_lrelu(x, None, None, torch.zeros(12))
    with pytest.raises(ValueError, match=r"filtered_lrelu: up: got 0"):
        FilteredLReLU(up=0)
    with pytest.raises(ValueError, match="padding"):
        FilteredLReLU(padding=(1, 2, 3))  # type: ignore[arg-type]
