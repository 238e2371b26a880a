from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.bias_act import Activation, bias_act
from kernels.dispatch import KernelUnavailableError, use
from kernels.modulated_conv import Epilogue
from kernels.upfirdn2d import Resampling, upfirdn2d
from kernels.upfirdn2d_triton import upfirdn2d_epilogue_triton
from tests.kernels.interpreted.agreement import DTYPES, assert_agrees

CHANNELS_LAST = torch.channels_last
GEOMETRIES = [
    Resampling(padding=(1, 2, 0, 3)),
    Resampling(up=2, padding=(2, 1), gain=4.0),
    Resampling(down=(2, 3), padding=(1, -1, 4, 2), gain=2.0),
    Resampling(up=(3, 2), padding=(-2, 4, 5, -1), flip_filter=True),
    Resampling(up=3, down=2, padding=5),
    Resampling(up=4, down=3, padding=6),
    Resampling(up=(1, 4), down=(4, 1), padding=(-1, 3, 7, -2)),
]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 0],
}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def filtered(
    fir: Tensor | None, resampling: Resampling, layout: str = "contiguous"
) -> Callable[[dict[str, Tensor]], Tensor]:
    def run(t: dict[str, Tensor]) -> Tensor:
        taps = fir if fir is None else fir.to(t["x"].dtype if t["x"].dtype == torch.float64 else torch.float32)
        return upfirdn2d(LAYOUTS[layout](t["x"]), taps, resampling)

    return run


@pytest.mark.parametrize("resampling", GEOMETRIES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_upfirdn2d_has_every_geometry(resampling: Resampling, layout: str) -> None:
    assert_agrees(filtered(draw(3, 5), resampling, layout), {"x": draw(2, 3, 9, 7)}, torch.float32)


@pytest.mark.parametrize("taps", [None, (6,), (9,), (7, 7), (24, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("resampling", [Resampling(2, 1, 14), Resampling(1, 2, 14), Resampling(3, 2, 14)], ids=str)
def test_upfirdn2d_takes_any_filter(taps: tuple[int, ...] | None, resampling: Resampling) -> None:
    fir = None if taps is None else draw(*taps)
    assert_agrees(filtered(fir, resampling), {"x": draw(1, 2, 6, 5)}, torch.float32, orders=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_upfirdn2d_takes_any_layout_and_many_channels(layout: str, dtype: torch.dtype) -> None:
    run = filtered(draw(4, 4).abs(), Resampling(padding=(2, 1, 1, 2)), layout)
    assert_agrees(run, {"x": draw(2, 70, 4, 5)}, dtype, orders=1)


def test_upfirdn2d_keeps_the_layout() -> None:
    x, fir = draw(2, 8, 4, 4).float(), draw(4, 4).float()
    assert upfirdn2d(x, fir, Resampling(2, 1, 2)).is_contiguous()
    assert upfirdn2d(x.contiguous(memory_format=CHANNELS_LAST), fir).is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize(
    ("fir", "resampling", "reason"),
    [
        (torch.ones(25), Resampling(padding=24), "filters of up to 24 taps along an axis, and this one has 25"),
        (torch.ones(3), Resampling(up=5, padding=3), "by up to 4, and not by 5"),
        (torch.ones(3, requires_grad=True), Resampling(), "no gradient of the filter"),
    ],
)
def test_upfirdn2d_says_what_it_does_not_take(fir: Tensor, resampling: Resampling, reason: str) -> None:
    with pytest.raises(KernelUnavailableError, match=reason):
        upfirdn2d(torch.ones(1, 1, 4, 4), fir, resampling)
    with use("auto"):
        assert upfirdn2d(torch.ones(1, 1, 4, 4), fir, resampling).isfinite().all()


def layer(t: dict[str, Tensor], act: Activation, resampling: Resampling, layout: str) -> Tensor:
    """The second half of an up-convolution, as the kernel does it, and step by step in float64."""
    x = LAYOUTS[layout](t["x"])
    fir = torch.outer(*[torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 8] * 2)
    if x.dtype != torch.float64:
        return upfirdn2d_epilogue_triton(x, fir.float(), resampling, Epilogue(t["noise"], t["bias"], act))
    return bias_act(upfirdn2d(x, fir, resampling) + t["noise"], t["bias"], act)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("noise", [(12, 14), (3, 1, 12, 14)], ids=str)
def test_upfirdn2d_epilogue_is_a_layer(noise: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    inputs = {"x": draw(3, 5, 13, 15), "noise": draw(*noise), "bias": draw(5)}
    act, resampling = Activation("lrelu", clamp=1.5), Resampling(padding=1, gain=4.0)
    assert_agrees(lambda t: layer(t, act, resampling, layout), inputs, dtype)


@pytest.mark.parametrize("act", [Activation(), Activation("relu", gain=-2.0), Activation("tanh")], ids=str)
def test_upfirdn2d_epilogue_has_every_activation(act: Activation) -> None:
    inputs = {"x": draw(2, 3, 5, 6), "noise": draw(9, 13), "bias": draw(3)}
    assert_agrees(lambda t: layer(t, act, Resampling(2, 1, (2, 2, 1, 1)), "contiguous"), inputs, torch.float32)


def test_upfirdn2d_epilogue_scales_for_the_next_layer_in_inference_only() -> None:
    x, fir, styles = draw(2, 3, 5, 6).float(), draw(4, 4).float(), draw(2, 3).float()
    bias, resampling = draw(3).float(), Resampling(padding=2)
    for image in (x, x.contiguous(memory_format=CHANNELS_LAST)):
        y = upfirdn2d_epilogue_triton(image, fir, resampling, Epilogue(None, bias), styles)
        want = bias_act(upfirdn2d(x, fir, resampling), bias) * styles[:, :, None, None]
        torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="a scale is for inference"):
        upfirdn2d_epilogue_triton(x.requires_grad_(), fir, resampling, Epilogue(None, bias), styles)


@pytest.mark.parametrize("noise", [(3, 4), (1, 3, 5), (2, 3, 5, 6)], ids=str)
def test_upfirdn2d_epilogue_names_wrong_shapes(noise: tuple[int, ...]) -> None:
    x = torch.ones(2, 3, 5, 6)
    with pytest.raises(ValueError, match=r"allowed are noise \[5, 6\] or \[N, 1, 5, 6\] and bias \[3\]"):
        upfirdn2d_epilogue_triton(x, None, Resampling(), Epilogue(torch.ones(noise)))
    with pytest.raises(ValueError, match=r"bias \[4\]"):
        upfirdn2d_epilogue_triton(x, None, Resampling(), Epilogue(None, torch.ones(4)))


def test_upfirdn2d_takes_filters_and_factors_of_any_strides() -> None:
    x, fir, bias, scale = (draw(*shape).float() for shape in ((2, 3, 6, 5), (6,), (3,), (2, 3)))
    strided = [torch.stack([t, t + 1], -1)[..., 0] for t in (fir, bias, scale)]
    found = []
    with torch.no_grad():
        for taps, shift, factor in ((fir, bias, scale), strided):
            epilogue = Epilogue(None, shift, Activation("lrelu"))
            found.append(upfirdn2d_epilogue_triton(x, taps, Resampling(2, 1, 4), epilogue, factor))
    assert torch.equal(*found)
