from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import filtered_lrelu_triton
from kernels.bias_act import Activation
from kernels.dispatch import KernelUnavailableError, use
from kernels.filtered_lrelu import FilteredLReLU, Filters, filtered_lrelu
from tests.kernels.interpreted.agreement import DTYPES, Tensors, assert_agrees

LRELU = Activation("lrelu", clamp=0.8)
BLUNT = Activation("lrelu", alpha=0.95, clamp=64.0)  # float16 rounds to the wrong side of a kink: that isn't counted
Shape = tuple[int, ...] | None
# shapes of (up filter, down filter), and what is done with them
GEOMETRIES: dict[str, tuple[Shape, Shape, FilteredLReLU]] = {
    "same": ((12,), (12,), FilteredLReLU(2, 2, (9, 8, 9, 8), LRELU)),
    "up": ((24,), (12,), FilteredLReLU(4, 2, (-6, -9, -3, -5), LRELU)),
    "down": ((12,), (24,), FilteredLReLU(2, 4, (17, 18, 16, 19), LRELU)),
    "2d": ((12,), (12, 12), FilteredLReLU(2, 2, (11, 10, 11, 10), LRELU)),
    "uneven": ((7,), (5, 6), FilteredLReLU(3, 2, (6, 5, 4, 7), LRELU, flip_filter=True)),
    "2d-first": ((5, 3), (9,), FilteredLReLU(3, 4, (6, 7, 9, 8), Activation("lrelu", gain=-0.7))),
    "stuffed": (None, (2,), FilteredLReLU(4, 3, (2, -1, 5, 0), LRELU)),
    "unfiltered": ((1,), None, FilteredLReLU(1, 1, (-1, 2, 0, 3), LRELU)),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1].expand(x.shape),
}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def filter_of(shape: Shape) -> Tensor | None:
    if shape is None:
        return None
    if shape == (12, 12):
        return disc(0.3)
    fir = draw(*shape).float()
    return fir / fir.abs().sum()


def window(taps: int) -> Tensor:
    """A lowpass filter."""
    fir = torch.hann_window(taps + 2, periodic=False)[1:-1]
    return fir / fir.sum()


def disc(cutoff: float) -> Tensor:
    """A filter of twelve taps that is the same in all directions, and so of low rank."""
    at = torch.arange(12) - 5.5
    radius = torch.hypot(at[:, None], at[None])
    fir = torch.sinc(cutoff * radius) * torch.exp(-radius.square() / 20)
    return fir / fir.sum()


def problem(*shape: int) -> Tensors:
    return {"x": draw(*shape), "bias": draw(shape[1])}


def run_by(filters: Filters, spec: FilteredLReLU, layout: str = "contiguous") -> Callable[[Tensors], Tensor]:
    return lambda t: filtered_lrelu(LAYOUTS[layout](t["x"]), t["bias"], *filters, spec)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_filtered_lrelu_has_every_geometry(name: str) -> None:
    up, down, spec = GEOMETRIES[name]
    assert_agrees(run_by((filter_of(up), filter_of(down)), spec), problem(2, 3, 11, 13), torch.float32)


@pytest.mark.parametrize(("name", "taps"), [("same", 12), ("up", 24), ("2d", 12)])
def test_filtered_lrelu_computes_in_float16(name: str, taps: int) -> None:
    spec = replace(GEOMETRIES[name][2], activation=BLUNT)
    filters = (window(taps), disc(0.3) if name == "2d" else window(12))
    assert_agrees(run_by(filters, spec), problem(2, 3, 11, 13), torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_filtered_lrelu_takes_any_layout_and_many_channels(layout: str, dtype: torch.dtype) -> None:
    filters = (torch.tensor([0.25, 0.75, 0.75, 0.25]) / 2, torch.tensor([0.1, 0.4, 0.4, 0.1]))
    run = run_by(filters, FilteredLReLU(2, 2, 3, BLUNT), layout)
    assert_agrees(run, problem(3, 21, 5, 7), dtype, orders=1)


@pytest.mark.parametrize("parts", [1, 3])
def test_filtered_lrelu_goes_on_from_tile_to_tile(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtered_lrelu_triton, "processors", lambda device: parts)
    monkeypatch.setattr(filtered_lrelu_triton, "MIN_BLOCKS", 1)
    up, down, spec = GEOMETRIES["same"]
    assert_agrees(run_by((filter_of(up), filter_of(down)), spec), problem(1, 2, 70, 41), torch.float32, orders=1)


@pytest.mark.parametrize(
    "act",
    [Activation(), Activation("relu", clamp=0.5), Activation("lrelu", alpha=1.5, gain=-2.0, clamp=0.5)],
    ids=str,
)
def test_filtered_lrelu_has_activations_of_two_slopes(act: Activation) -> None:
    run = run_by((filter_of((4,)), filter_of((4,))), FilteredLReLU(2, 2, 3, act))
    assert_agrees(run, problem(2, 3, 5, 4), torch.float32)


def test_filtered_lrelu_keeps_layout_input_and_a_wider_bias() -> None:
    up, down, spec = GEOMETRIES["same"]
    x, bias = draw(2, 8, 6, 5).half().contiguous(memory_format=torch.channels_last), draw(8).float().requires_grad_()
    kept = x.clone()
    y = filtered_lrelu(x, bias, filter_of(up), filter_of(down), spec)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.dtype == torch.float16
    assert filtered_lrelu(x.contiguous(), bias, filter_of(up), filter_of(down), spec).is_contiguous()
    y.float().sum().backward()
    assert bias.grad is not None
    assert bias.grad.dtype == torch.float32
    assert torch.equal(x, kept)


def test_filtered_lrelu_keeps_nothing_but_its_input_for_the_gradient() -> None:
    up, down, spec = GEOMETRIES["same"]
    x, bias, kept = draw(1, 2, 9, 8).float().requires_grad_(), torch.zeros(2), list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        filtered_lrelu(x, bias, filter_of(up), filter_of(down), spec)
    assert {tensor.data_ptr() for tensor in kept} == {x.data_ptr(), bias.data_ptr()}


def test_filtered_lrelu_sees_that_a_filter_has_changed() -> None:
    x, fir = draw(1, 2, 5, 4).float(), torch.ones(4)
    spec = FilteredLReLU(2, 1, 3)
    before = filtered_lrelu(x, None, fir, None, spec)
    fir.mul_(2)
    torch.testing.assert_close(filtered_lrelu(x, None, fir, None, spec), 4 * before)


def test_filtered_lrelu_of_nothing_is_nothing() -> None:
    up, down, spec = GEOMETRIES["same"]
    x, bias = torch.zeros(0, 3, 6, 5, requires_grad=True), torch.zeros(3, requires_grad=True)
    y = filtered_lrelu(x, bias, filter_of(up), filter_of(down), spec)
    y.sum().backward()
    assert y.shape == (0, 3, 4, 3)
    assert bias.grad is not None
    assert not bias.grad.any()


@pytest.mark.parametrize(
    ("fir", "spec", "reason"),
    [
        (torch.ones(25), FilteredLReLU(padding=24), "filters of up to 24 taps along an axis, and this one has 25"),
        (torch.ones(3), FilteredLReLU(up=5, padding=3), "by up to 4, and not by 5"),
        (torch.ones(3, requires_grad=True), FilteredLReLU(padding=2), "no gradient of the filters"),
        (torch.eye(9), FilteredLReLU(padding=8), "sums of up to 8 separable ones, and this one has 16"),
        (torch.ones(3), FilteredLReLU(padding=2, activation=Activation("tanh")), "linear, relu, lrelu, and not tanh"),
    ],
)
def test_filtered_lrelu_says_what_it_does_not_take(fir: Tensor, spec: FilteredLReLU, reason: str) -> None:
    with pytest.raises(KernelUnavailableError, match=reason):
        filtered_lrelu(torch.ones(1, 1, 4, 4), None, fir, None, spec)
    with use("auto"):
        assert filtered_lrelu(torch.ones(1, 1, 4, 4), None, fir, None, spec).isfinite().all()


def test_filtered_lrelu_takes_a_bias_of_any_strides() -> None:
    x, bias, fir = draw(2, 3, 6, 5).float(), draw(3).float(), window(12)
    spec = FilteredLReLU(2, 2, (9, 8, 9, 8), LRELU)
    strided = torch.stack([bias, bias + 1], -1)[:, 0]
    assert torch.equal(filtered_lrelu(x, strided, fir, fir, spec), filtered_lrelu(x, bias, fir, fir, spec))


def test_the_filter_in_the_place_of_none_counts_its_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of one that doesn't are made at each call, which a CUDA graph can't do."""
    spec = importlib.util.spec_from_file_location("imported_again", filtered_lrelu_triton.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "imported_again", module)
    with torch.inference_mode():
        spec.loader.exec_module(module)
    assert not module.IDENTITY.is_inference()
