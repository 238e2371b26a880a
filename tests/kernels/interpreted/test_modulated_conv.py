from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.bias_act import Activation
from kernels.dispatch import KernelUnavailableError, use
from kernels.modulated_conv import Epilogue, ModulatedConv, modulated_conv2d
from kernels.upfirdn2d import setup_filter
from tests.conftest import golden_root
from tests.golden_cases import golden_meta, load_golden
from tests.golden_operators import check_operator
from tests.kernels.interpreted.agreement import DTYPES, assert_agrees

Tensors = dict[str, Tensor]
FIR = setup_filter([1, 3, 3, 1])
LRELU = Activation("lrelu", clamp=1.2)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "expanded": lambda x: x[:1].expand(x.shape),
}
SAME, UP = ModulatedConv(padding=1), ModulatedConv(up=2, padding=1, flip_weight=False)
LAYERS = {  # geometry, kernel, and the size of the output by that of the input
    "same": (SAME, 3, lambda n: n),
    "up": (UP, 3, lambda n: 2 * n),
    "down": (ModulatedConv(down=2, padding=1), 3, lambda n: n // 2),
    "pointwise": (ModulatedConv(), 1, lambda n: n),
    "pointwise-up": (ModulatedConv(up=2), 1, lambda n: 2 * n),
    "pointwise-down": (ModulatedConv(down=2, flip_weight=False), 1, lambda n: n // 2),
    "to-rgb": (ModulatedConv(demodulate=False), 1, lambda n: n),
    "grown": (ModulatedConv(padding=(2, 1, 0, 3), demodulate=False), 3, lambda n: n + 1),
}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def problem(x: tuple[int, ...], outputs: int, kernel: int, noise: tuple[int, ...]) -> Tensors:
    fan_in = x[1] * kernel**2
    weight, styles = draw(outputs, x[1], kernel, kernel) / fan_in**0.5, draw(x[0], x[1]) / 2 + 1
    return {"x": draw(*x), "weight": weight, "styles": styles, "noise": draw(*noise) / 2, "bias": draw(outputs)}


def layer(conv: ModulatedConv, act: Activation = LRELU, layout: str = "contiguous") -> Callable[[Tensors], Tensor]:
    def run(t: Tensors) -> Tensor:
        epilogue = Epilogue(t["noise"], t["bias"], act)
        fir = FIR.to(t["x"].dtype) if t["x"].dtype == torch.float64 else FIR
        return modulated_conv2d(LAYOUTS[layout](t["x"]), t["weight"], t["styles"], conv, fir=fir, epilogue=epilogue)

    return run


@pytest.mark.parametrize("orders", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_modulated_conv2d_agrees(name: str, dtype: torch.dtype, orders: int) -> None:
    conv, kernel, size = LAYERS[name]
    inputs = problem((3, 5, 12, 10), 7, kernel, (3, 1, size(12), size(10)))
    assert_agrees(layer(conv), inputs, dtype, orders=orders)


@pytest.mark.parametrize(
    ("x", "outputs"), [((2, 64, 16, 16), 64), ((3, 81, 13, 11), 51), ((5, 40, 4, 4), 130), ((1, 16, 1, 1), 3)], ids=str
)
@pytest.mark.parametrize("conv", [SAME, UP], ids=["same", "up"])
def test_modulated_conv2d_takes_any_size(conv: ModulatedConv, x: tuple[int, ...], outputs: int) -> None:
    inputs = problem(x, outputs, 3, (x[2] * conv.up, x[3] * conv.up))
    assert_agrees(layer(conv), inputs, torch.float16, orders=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("conv", [SAME, UP], ids=["same", "up"])
def test_modulated_conv2d_takes_any_layout(conv: ModulatedConv, layout: str) -> None:
    inputs = problem((2, 6, 5, 9), 4, 3, (5 * conv.up, 9 * conv.up))
    assert_agrees(layer(conv, layout=layout), inputs, torch.float32, orders=1)


@pytest.mark.parametrize(
    "act",
    [
        Activation(gain=0.5),
        Activation("relu", gain=-2.0),
        Activation("lrelu", gain=0.0),
        Activation("lrelu", alpha=-0.5),
        Activation("lrelu", alpha=0.0),
        Activation("softplus", clamp=1.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("orders", [1, 2])
def test_modulated_conv2d_has_every_activation(act: Activation, orders: int) -> None:
    inputs = problem((2, 6, 5, 9), 4, 3, (5, 9))
    assert_agrees(layer(SAME, act), inputs, torch.float32, orders=orders)
