"""Holds a kernel and its derivatives against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.dispatch import use

Tensors = dict[str, Tensor]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
DTYPES = (torch.float32, torch.float16)


def assert_agrees(run: Callable[[Tensors], Tensor], inputs: Tensors, dtype: torch.dtype, *, orders: int = 2) -> None:
    """Compare `run(inputs)` in `dtype` with the float64 reference: the output, then `orders` of its derivatives.

    Layouts that `clone` doesn't keep, such as slices, are made inside `run`. The bound is that of `||out - ref|| /
    ||ref||` for one rounding of inputs and output; every order of derivatives gets it once more.
    """
    rounded = {name: value.to(dtype) for name, value in inputs.items()}
    got = derivatives(run, rounded, orders)
    with use("reference"):
        want = derivatives(run, {name: value.double() for name, value in rounded.items()}, orders)
    assert got.keys() == want.keys()
    for name, value in got.items():
        exact = want[name]
        assert value.shape == exact.shape, f"{name}: {tuple(value.shape)} instead of {tuple(exact.shape)}"
        assert value.dtype == dtype, f"{name} is {value.dtype}"
        error = ((value.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()
        allowed = TOLERANCE[dtype] * (1 + name.count("d"))
        assert error <= allowed, f"{name}: {error:.1e}, allowed {allowed:.1e}"  # fails on NaN too


def derivatives(run: Callable[[Tensors], Tensor], inputs: Tensors, orders: int) -> Tensors:
    """The output "y", gradients "dx", and gradients "ddx" of gradients, along fixed random directions."""
    leaves = {name: value.detach().clone().requires_grad_(orders > 0) for name, value in inputs.items()}
    found = {"y": run(leaves)}
    if orders > 0:
        leaves["gy"] = _direction(found["y"]).requires_grad_()
        names = list(inputs)
        gradients = torch.autograd.grad(
            (found["y"] * leaves["gy"]).sum(), [leaves[name] for name in names], create_graph=orders > 1
        )
        first = dict(zip(names, gradients, strict=True))
        found |= {f"d{name}": value for name, value in first.items()}
    if orders > 1:
        total = torch.stack([(value * _direction(value)).sum() for value in first.values()]).sum()
        again = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        # where a function is linear on either side of zero one says "not connected", the other says zero
        found |= {
            f"dd{name}": torch.zeros_like(leaves[name]) if value is None else value
            for name, value in zip(leaves, again, strict=True)
        }
    return {name: value.detach() for name, value in found.items()}


def _direction(like: Tensor) -> Tensor:
    """Random numbers that depend on the shape only."""
    numbers = torch.randn(like.shape, generator=torch.Generator().manual_seed(like.numel()), dtype=torch.float64)
    return numbers.half().to(like.dtype)  # the same in every dtype
