from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import conv_triton
from kernels.bias_act import Activation
from kernels.conv_geometry import Geometry
from kernels.conv_plan import Fusion, Tile
from kernels.dispatch import KernelUnavailableError, use
from kernels.launch import Options
from kernels.modulated_conv import Epilogue, ModulatedConv, modulated_conv2d
from kernels.upfirdn2d import setup_filter
from tests.kernels.interpreted.agreement import DTYPES, assert_agrees

Tensors = dict[str, Tensor]
FIR = setup_filter([1, 3, 3, 1])
LRELU = Activation("lrelu", clamp=1.2)
BLUNT = Activation(
    "lrelu", alpha=0.95, clamp=64.0
)  # float16 rounds to the wrong side of a kink, and that is not counted
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "expanded": lambda x: x[:1].expand(x.shape),
}
SAME, UP = ModulatedConv(padding=1), ModulatedConv(up=2, padding=1, flip_weight=False)
LAYERS: dict[
    str, tuple[ModulatedConv, int, Callable[[int], int]]
] = {  # geometry, kernel, and the size of the output by that of the input
    "same": (SAME, 3, lambda n: n),
    "up": (UP, 3, lambda n: 2 * n),
    "down": (ModulatedConv(down=2, padding=1), 3, lambda n: n // 2),
    "pointwise": (ModulatedConv(), 1, lambda n: n),
    "pointwise-up": (ModulatedConv(up=2), 1, lambda n: 2 * n),
    "pointwise-down": (ModulatedConv(down=2, flip_weight=False), 1, lambda n: n // 2),
    "to-rgb": (ModulatedConv(demodulate=False), 1, lambda n: n),
    "up-down": (ModulatedConv(up=2, down=2, padding=1), 3, lambda n: n),
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
    inputs = problem((2, 5, 8, 6), 7, kernel, (2, 1, size(8), size(6)))
    assert_agrees(layer(conv, LRELU if dtype == torch.float32 else BLUNT), inputs, dtype, orders=orders)


@pytest.mark.parametrize(
    ("conv", "x", "outputs"),
    [
        (SAME, (5, 64, 16, 16), 64),
        (SAME, (3, 81, 13, 11), 51),
        (SAME, (5, 40, 4, 4), 130),
        (SAME, (1, 16, 1, 1), 3),
        (UP, (2, 64, 8, 8), 40),
        (UP, (3, 21, 7, 5), 35),
    ],
    ids=str,
)
def test_modulated_conv2d_takes_any_size(conv: ModulatedConv, x: tuple[int, ...], outputs: int) -> None:
    inputs = problem(x, outputs, 3, (x[2] * conv.up, x[3] * conv.up))
    assert_agrees(layer(conv, BLUNT), inputs, torch.float16, orders=1)


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


@pytest.mark.parametrize("conv", [SAME, UP, replace(SAME, demodulate=False)], ids=["same", "up", "unmodulated"])
def test_modulated_conv2d_scales_its_output(conv: ModulatedConv) -> None:
    inputs = problem((2, 6, 5, 4), 4, 3, (5 * conv.up, 4 * conv.up)) | {"scale": draw(2, 4)}

    def run(t: Tensors) -> Tensor:
        fir = FIR.to(t["x"].dtype)
        epilogue = Epilogue(t["noise"], t["bias"], LRELU, t["scale"])
        return modulated_conv2d(t["x"], t["weight"], t["styles"], conv, fir=fir, epilogue=epilogue)

    assert_agrees(run, inputs, torch.float32, orders=1)


def test_modulated_conv2d_gives_gradients_only_of_what_needs_them() -> None:
    inputs = {name: value.float() for name, value in problem((2, 6, 5, 9), 4, 3, (5, 9)).items()}
    full = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    layer(SAME)(full).square().sum().backward()
    for name in inputs:
        one = {other: value.clone().requires_grad_(other == name) for other, value in inputs.items()}
        layer(SAME)(one).square().sum().backward()
        torch.testing.assert_close(one[name].grad, full[name].grad)


def test_modulated_conv2d_sees_a_weight_that_changed() -> None:
    t = {name: value.float() for name, value in problem((1, 4, 5, 5), 3, 3, (5, 5)).items()}
    before = layer(SAME)(t)
    t["weight"].mul_(torch.tensor([-1.0, 1, 1, 1])[:, None, None])
    with use("reference"):
        want = layer(SAME)(t)
    assert not torch.allclose(before, want)
    torch.testing.assert_close(layer(SAME)(t), want)


def test_modulated_conv2d_trains_after_inference() -> None:
    t = {name: value.half() for name, value in problem((1, 4, 5, 5), 3, 3, (5, 5)).items()}
    with torch.inference_mode():
        want = layer(SAME)(t)
    y = layer(SAME)({name: value.requires_grad_() for name, value in t.items()})
    y.sum().backward()
    assert torch.equal(y, want)


def test_modulated_conv2d_of_zero_weights_is_its_epilogue() -> None:
    t = {name: torch.zeros_like(value).half() for name, value in problem((1, 4, 5, 5), 3, 3, (5, 5)).items()}
    assert torch.equal(layer(SAME)(t), torch.zeros(1, 3, 5, 5).half())


def test_modulated_conv2d_half_survives_large_styles() -> None:
    t = {name: value.float() for name, value in problem((2, 8, 6, 6), 4, 3, (6, 6)).items()}
    t |= {"styles": t["styles"] * 3e4, "weight": t["weight"] * 1e3}
    with use("reference"):
        want = layer(SAME)({name: value.double() for name, value in t.items()})
    got = layer(SAME)(t | {"x": t["x"].half()})
    assert got.dtype == torch.float16
    assert (got.double() - want).norm() / want.norm() < 2e-3


def test_modulated_conv2d_keeps_weights_wider_than_its_input() -> None:
    t = {name: value.float().requires_grad_() for name, value in problem((2, 6, 5, 9), 4, 3, (5, 9)).items()}
    y = layer(SAME)(t | {"x": t["x"].detach().half()})
    y.float().sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    grads = [t[name].grad for name in ("weight", "styles", "noise", "bias")]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)


def test_modulated_conv2d_of_nothing_is_nothing() -> None:
    t = {name: value.float().requires_grad_() for name, value in problem((0, 6, 5, 9), 4, 3, (5, 9)).items()}
    y = layer(SAME)(t)
    y.sum().backward()
    assert y.shape == (0, 4, 5, 9)
    assert t["weight"].grad is not None
    assert not t["weight"].grad.any()


def test_modulated_conv2d_says_what_it_does_not_take() -> None:
    x, weight, styles = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3), torch.ones(1, 2)
    far = ModulatedConv(up=5, padding=1)
    with pytest.raises(KernelUnavailableError, match="it resamples by up to 4, and not by 5"):
        modulated_conv2d(x, weight, styles, far, fir=FIR)
    with use("auto"):
        assert modulated_conv2d(x, weight, styles, far, fir=FIR).shape == (1, 3, 20, 20)


SMALL = Tile(16, 16, 16, Options())


@pytest.mark.parametrize("size", [(2, 4), (3, 7)], ids=str)
def test_modulated_conv2d_agrees_where_tiles_have_many_samples_or_samples_many_tiles(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv_triton, "choose_tile", lambda *_: SMALL)
    assert_agrees(layer(SAME, BLUNT), problem((5, 5, *size), 18, 3, size), torch.float16, orders=1)


@pytest.mark.parametrize("conv", [SAME, UP], ids=["same", "up"])
def test_modulated_conv2d_agrees_where_programs_share_the_channels(
    conv: ModulatedConv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv_triton, "choose_tile", lambda *_: replace(SMALL, m=64, n=32, parts=3))
    inputs = problem((3, 20, 4, 6), 18, 3, (4 * conv.up, 6 * conv.up))
    assert_agrees(layer(conv, BLUNT), inputs, torch.float16, orders=1)


def test_convolve_scales_for_the_next_layer() -> None:
    x, weight, style = draw(2, 5, 4, 6).float(), draw(7, 5, 3, 3).float(), draw(2, 7).float()
    geometry = Geometry.of((4, 6), (3, 3), (1, 1, 1, 1))
    y, _ = conv_triton.convolve(x, weight, geometry, Fusion(next_style=style))
    want = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1) * style.double()[:, :, None, None]
    assert (y.double() - want).norm() / want.norm() < 1e-6


@pytest.mark.parametrize("conv", [SAME, UP], ids=["same", "up"])
def test_modulated_conv2d_takes_factors_of_any_strides(conv: ModulatedConv) -> None:
    def run(t: Tensors) -> Tensor:
        epilogue = Epilogue(None, t["bias"][::2], LRELU, t["scale"].T)
        fir = FIR.to(t["x"].dtype)
        return modulated_conv2d(
            t["x"], t["weight"], t["styles"], replace(conv, demodulate=False), fir=fir, epilogue=epilogue
        )

    inputs = problem((2, 6, 5, 9), 4, 3, (1, 1)) | {"bias": draw(7), "scale": draw(4, 2) / 4 + 1}
    del inputs["noise"]
    assert_agrees(run, inputs, torch.float32, orders=1)
