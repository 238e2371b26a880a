from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from kernels.bias_act import Activation
from kernels.demodulation import demodulation
from kernels.modulated_conv import Epilogue, ModulatedConv, modulated_conv2d, modulated_conv2d_grouped
from kernels.upfirdn2d import setup_filter

FIR = setup_filter([1, 3, 3, 1])
SAME = ModulatedConv(padding=1)
UP = ModulatedConv(up=2, padding=1, flip_weight=False)
CASES = {
    "same": (SAME, 3, None),
    "up": (UP, 3, FIR),
    "down": (ModulatedConv(down=2, padding=1), 3, FIR),
    "to-rgb": (ModulatedConv(demodulate=False), 1, None),
    "pointwise": (ModulatedConv(), 1, None),
}


def problem(kernel: int = 3, batch: int = 3, size: tuple[int, int] = (5, 7), **options: Any) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    shapes = (batch, 4, *size), (3, 4, kernel, kernel), (batch, 4)
    x, weight, styles = (torch.randn(shape, generator=generator, dtype=options.get("dtype")) for shape in shapes)
    return x, weight, styles + 1


def by_definition(x: Tensor, weight: Tensor, styles: Tensor, epilogue: Epilogue) -> Tensor:
    """Equations 1 and 3 of the paper, one sample at a time."""
    rows = []
    for sample, style in zip(x, styles, strict=True):
        modulated = weight * style[None, :, None, None]
        demodulated = modulated / (modulated.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        rows.append(torch.nn.functional.conv2d(sample[None], demodulated, padding=weight.shape[-1] // 2))
    y = torch.cat(rows)
    y = y if epilogue.noise is None else y + epilogue.noise
    y = y if epilogue.bias is None else y + epilogue.bias[None, :, None, None]
    act = epilogue.activation
    y = torch.nn.functional.leaky_relu(y, 0.2) if act.name == "lrelu" else y
    y = y * (act.gain or (math.sqrt(2) if act.name == "lrelu" else 1))
    return y if act.clamp is None else y.clamp(-act.clamp, act.clamp)


@pytest.mark.parametrize("autograd", [True, False])
@pytest.mark.parametrize("function", [modulated_conv2d, modulated_conv2d_grouped])
@pytest.mark.parametrize("activation", [Activation(), Activation("lrelu", clamp=0.9), Activation("lrelu", gain=0.5)])
def test_modulated_conv2d_layer_matches_definition(function: Any, autograd: bool, activation: Activation) -> None:
    x, weight, styles = problem(dtype=torch.float64)
    noise, bias = torch.randn(3, 1, 5, 7, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    epilogue = Epilogue(noise, bias, activation)
    before = [t.clone() for t in (x, weight, styles, noise, bias)]
    with torch.set_grad_enabled(autograd):
        y = function(x, weight, styles, SAME, epilogue=epilogue)
    torch.testing.assert_close(y, by_definition(x, weight, styles, epilogue), rtol=1e-10, atol=1e-10)
    for tensor, copy in zip((x, weight, styles, noise, bias), before, strict=True):
        assert torch.equal(tensor, copy), "an input was overwritten"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_modulated_conv2d_equals_grouped_formulation(name: str, batch: int) -> None:
    conv, kernel, fir = CASES[name]
    x, weight, styles = problem(kernel, batch, size=(6, 4), dtype=torch.float64)
    scaled = modulated_conv2d(x, weight, styles, conv, fir=fir)
    grouped = modulated_conv2d_grouped(x, weight, styles, conv, fir=fir)
    torch.testing.assert_close(scaled, grouped, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_modulated_conv2d_does_not_depend_on_input_layout(name: str) -> None:
    conv, kernel, fir = CASES[name]
    x, weight, styles = problem(kernel, size=(6, 4))
    want = modulated_conv2d(x, weight, styles, conv, fir=fir)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    for other in (x.contiguous(memory_format=torch.channels_last), strided, x.transpose(2, 3).contiguous().mT):
        assert torch.equal(modulated_conv2d(other, weight, styles, conv, fir=fir), want)


@pytest.mark.parametrize("name", CASES)
def test_modulated_conv2d_is_twice_differentiable(name: str) -> None:
    conv, kernel, fir = CASES[name]
    inputs = [t.requires_grad_() for t in problem(kernel, batch=2, size=(4, 4), dtype=torch.float64)]
    noise, bias = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 1, 1, 1), (3,)))

    def layer(x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor, bias: Tensor) -> Tensor:
        size = 4 * conv.up // conv.down
        epilogue = Epilogue(noise.expand(2, 1, size, size), bias, Activation("softplus", gain=1.5))
        return modulated_conv2d(x, weight, styles, conv, fir=fir, epilogue=epilogue)

    assert gradcheck(layer, (*inputs, noise, bias), fast_mode=True)
    assert gradgradcheck(layer, (*inputs, noise, bias), fast_mode=True)


def test_demodulation_gives_unit_norm_weights() -> None:
    _, weight, styles = problem(dtype=torch.float64)
    modulated = weight[None] * styles[:, None, :, None, None] * demodulation(weight, styles)[:, :, None, None, None]
    torch.testing.assert_close(modulated.square().sum((2, 3, 4)), torch.ones(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("function", [modulated_conv2d, modulated_conv2d_grouped])
def test_modulated_conv2d_half_survives_large_styles(function: Any) -> None:
    x, weight, styles = problem()
    styles, weight = styles * 3e4, weight * 1e3  # beyond float16 before the normalisation
    want = modulated_conv2d(x.double(), weight.double(), styles.double(), SAME)
    got = function(x.half(), weight, styles, SAME)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-3 * want.abs().max().item())


@pytest.mark.parametrize("function", [modulated_conv2d, modulated_conv2d_grouped])
@pytest.mark.parametrize(("drop", "name"), [(0, "x"), (1, "weight"), (2, "styles")])
def test_modulated_conv2d_names_wrong_shapes(function: Any, drop: int, name: str) -> None:
    tensors = list(problem())
    tensors[drop] = tensors[drop][:, :3]
    with pytest.raises(ValueError, match=rf"{name} \[.*3.*allowed are x \[N, I, H, W\]"):
        function(*tensors, SAME)
