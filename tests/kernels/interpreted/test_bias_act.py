from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels import bias_act_triton
from kernels.bias_act import Activation, bias_act
from kernels.dispatch import use
from tests.kernels.interpreted.agreement import DTYPES, assert_agrees

LRELU = Activation("lrelu", clamp=0.8)
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bias_act_takes_any_layout(layout: str, dtype: torch.dtype) -> None:
    inputs = {"x": image(3, 37, 9, 7), "bias": image(37)}
    assert_agrees(lambda t: bias_act(LAYOUTS[layout](t["x"]), t["bias"], LRELU), inputs, dtype)


@pytest.mark.parametrize("options", [{}, {"gain": 1.7, "clamp": 0.8}, {"gain": -0.5}, {"gain": 0.0}], ids=str)
@pytest.mark.parametrize("name", ["linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"])
def test_bias_act_has_every_activation(name: str, options: dict[str, float]) -> None:
    inputs = {"x": 2 * image(5, 33), "bias": image(33)}
    assert_agrees(lambda t: bias_act(t["x"], t["bias"], Activation(name, **options)), inputs, torch.float32)


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.5])
def test_bias_act_takes_any_slope(alpha: float) -> None:
    act = Activation("lrelu", alpha=alpha, clamp=1.0)
    assert_agrees(lambda t: bias_act(t["x"], None, act), {"x": image(2, 3, 5, 4)}, torch.float32)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 3), (1, 5, 1, 1), (3, 1100), (2, 3, 70, 70)])
@pytest.mark.parametrize("dim", [0, 1])
def test_bias_act_takes_any_shape(shape: tuple[int, ...], dim: int) -> None:
    inputs = {"x": image(*shape), "bias": image(shape[dim])}
    assert_agrees(lambda t: bias_act(t["x"], t["bias"], LRELU, dim=dim), inputs, torch.float32, orders=1)


def test_bias_act_keeps_layout_and_input() -> None:
    x = image(2, 8, 4, 4).float().contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    y = bias_act(x, torch.ones(8), LRELU)
    assert y.stride() == x.stride()
    assert torch.equal(x, kept)


def test_bias_act_gradient_finds_a_clamp_that_float16_rounds() -> None:
    x = torch.full((2, 3), 5.0, dtype=torch.float16, requires_grad=True)
    bias_act(x, None, Activation("linear", clamp=0.8)).sum().backward()  # 0.8 is stored as 0.7998
    assert x.grad is not None
    assert not x.grad.any()


def test_bias_act_keeps_a_bias_wider_than_its_input() -> None:
    x, bias = image(2, 3, 4, 4).half(), image(3).float().requires_grad_()
    y = bias_act(x, bias, LRELU)
    y.float().sum().backward()
    assert y.dtype == torch.float16
    assert bias.grad is not None
    assert bias.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["linear", "relu", "lrelu"])
def test_bias_act_lets_nan_through(name: str) -> None:
    assert bias_act(torch.full((2, 3), torch.nan), torch.zeros(3), Activation(name, clamp=1.0)).isnan().all()


def test_bias_act_of_nothing_is_nothing() -> None:
    x, bias = torch.zeros(0, 3, 4, 4, requires_grad=True), torch.zeros(3, requires_grad=True)
    y = bias_act(x, bias, LRELU)
    y.sum().backward()
    assert y.shape == x.shape
    assert torch.equal(bias.grad, torch.zeros(3)) if bias.grad is not None else False


@pytest.mark.parametrize("step", [0, 2])
def test_bias_act_takes_a_bias_of_any_strides(step: int) -> None:
    inputs = {"x": image(3, 37, 5, 2), "bias": image(73)}
    assert_agrees(lambda t: bias_act(t["x"], t["bias"].as_strided((37,), (step,)), LRELU), inputs, torch.float32)


@pytest.mark.parametrize("name", ["lrelu", "swish"])
def test_bias_act_takes_an_expanded_gradient_of_the_gradient_of_its_bias(name: str) -> None:
    x, bias = image(3, 37, 5, 2).float(), image(37).float().requires_grad_()
    dy = image(3, 37, 5, 2).float().requires_grad_()
    found: list[torch.Tensor] = []
    for implementation in ("triton", "reference"):
        with use(implementation):
            (dbias,) = torch.autograd.grad(bias_act(x, bias, Activation(name)), bias, dy, create_graph=True)
            found += torch.autograd.grad(dbias.sum(), dy)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("shape", [(1, 64, 1024, 1024), (64, 64, 1024, 1024), (64, 1, 16384, 8192), (1, 2**27)])
def test_bias_act_stays_within_the_limits_of_a_grid(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[tuple[int, int]] = []
    monkeypatch.setattr(bias_act_triton, "launch", lambda _kernel, grid, *_: grids.append(grid))
    bias_act_triton.bias_act_triton(torch.empty(shape, device="meta"), None, LRELU)
    ((down, across),) = grids
    assert down < 2**31
    assert across < 2**16
