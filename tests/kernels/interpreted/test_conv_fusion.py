"""What a launch makes beside its convolution: images, moments, and outputs for two readers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import conv_triton
from kernels.bias_act import Activation
from kernels.conv_geometry import Geometry
from kernels.conv_plan import Colours, Fusion, Tile, paints
from kernels.conv_triton import convolve
from kernels.dispatch import use
from kernels.launch import Options, recording
from kernels.modulated_conv import Epilogue
from kernels.upfirdn2d import setup_filter, upsample2d

FIR = setup_filter([[1, 3, 3, 1], [2, 5, 1, 1], [0, 3, 2, 1], [1, 1, 7, 1]]).mT.contiguous().mT  # of any strides
SMALL = Tile(16, 32, 16, Options())
TILES = {"chosen": None, "tiles-share-a-sample": SMALL, "samples-share-a-tile": replace(SMALL, m=128)}
SIZES = ((3, 4), (5, 7))


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).half().float()


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def layer(size: tuple[int, int], outputs: int = 21) -> tuple[Tensor, Tensor, Geometry, Fusion, Tensor]:
    """Operands of a layer, quick in the interpreter, and its output."""
    x, weight, bias = draw(3, 8, *size), draw(outputs, 8, 1, 1) / 3, draw(outputs)
    epilogue = Epilogue(draw(*size), bias, Activation("lrelu", clamp=1.5))
    z = F.conv2d(x.double(), weight.double()) + epilogue.noise.double() + bias.double()[:, None, None]  # type: ignore[union-attr]
    want = (F.leaky_relu(z, 0.2) * 2**0.5).clamp(-1.5, 1.5)
    return x, weight, Geometry.of(size, (1, 1), (0, 0, 0, 0)), Fusion(epilogue=epilogue), want


@pytest.fixture(params=TILES)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if TILES[request.param] is not None:
        monkeypatch.setattr(conv_triton, "choose_tile", lambda *_: TILES[request.param])
    return str(request.param)


@pytest.mark.parametrize("skip", ["none", "same", "half"])
@pytest.mark.parametrize("size", [(2, 4), (6, 4)], ids=str)
def test_convolve_makes_an_image_of_its_output(size: tuple[int, int], skip: str, tile: str) -> None:
    x, weight, geometry, fusion, y = layer(size)
    rgb, bias, style, before = draw(3, 3, 21), draw(3), draw(3, 21), None
    want = torch.einsum("nchw,noc->nohw", y, rgb.double()) + bias.double()[:, None, None]
    want = want.clamp(-4, 4)
    if skip != "none":
        before = draw(3, 3, *(side // 2 if skip == "half" else side for side in size))
        with use("reference"):
            want += upsample2d(before.double(), FIR.double()) if skip == "half" else before
    colours = Colours(torch.empty(3, 3, *size), rgb, bias, 4.0, before, FIR if skip == "half" else None)
    for wanted in (fusion, replace(fusion, next_style=style), replace(fusion, keep=False)):
        colours.image.fill_(torch.nan)
        got, _ = convolve(x, weight, geometry, replace(wanted, colours=colours))
        assert error(colours.image, want) < 1e-6
        if wanted.keep:
            assert error(got, y if wanted.next_style is None else y * style.double()[:, :, None, None]) < 1e-6


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_convolve_stores_its_output_for_two_readers(size: tuple[int, int], tile: str) -> None:
    x, weight, geometry, fusion, want = layer(size)
    unscaled, style = torch.empty_like(want, dtype=x.dtype, memory_format=torch.channels_last), draw(3, 21)
    got, _ = convolve(x, weight, geometry, replace(fusion, next_style=style, unscaled=unscaled))
    assert error(unscaled, want) < 1e-6
    assert error(got, want * style.double()[:, :, None, None]) < 1e-6


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_convolve_gives_moments_of_its_output(
    size: tuple[int, int], parts: int, tile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts > 1:
        monkeypatch.setattr(conv_triton, "choose_tile", lambda *_: replace(SMALL, parts=parts))
    x, weight, geometry, fusion, _ = layer(size)
    # far from zero, where a mean of squares less the square of the mean would have no digits
    fusion = replace(fusion, epilogue=Epilogue(None, draw(21) + 1e3, Activation("linear")))
    y, moments = convolve(x, weight, geometry, replace(fusion, moments=True, next_style=torch.full((3, 21), 2.0)))
    exact = F.conv2d(x.double(), weight.double())
    assert moments is not None
    assert error(moments[0], exact.mean((2, 3)) + fusion.epilogue.bias.double()) < 1e-6  # type: ignore[union-attr]
    assert error(moments[1], exact.var((2, 3), correction=0)) < 1e-3
    again = convolve(x, weight, geometry, replace(fusion, moments=True))[1]
    assert torch.equal(moments, again) if again is not None else False
    assert not y.isnan().any()


def test_paints_only_what_a_tile_has_whole() -> None:
    geometry = Geometry.of((64, 64), (3, 3), (1, 1, 1, 1))
    x = torch.empty(4, 64, 64, 64, dtype=torch.float16, device="meta")
    with recording(90):
        assert paints(x, geometry, 256)
        assert not paints(x, geometry, 257)
        assert not paints(x.float(), geometry, 256)
        assert not paints(x[:, :63], geometry, 64)  # its tiles are narrower
        assert not paints(x[:1], geometry, 256)  # its tiles are flat ones
    with recording(100):
        assert not paints(x, geometry, 256)
