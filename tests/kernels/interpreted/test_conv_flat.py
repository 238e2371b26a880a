from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.bias_act import Activation
from kernels.conv_flat import offset_of
from kernels.conv_flat_triton import convolve_flat, convolve_through_flat
from kernels.conv_geometry import Geometry
from kernels.conv_plan import Fusion
from kernels.conv_triton import convolve
from kernels.flat_image import FlatImage
from kernels.flat_image_triton import lay_flat
from kernels.modulated_conv import Epilogue

ACT = Activation("lrelu", alpha=0.3, clamp=1.5)
SIZES = [(2, 16, 16), (2, 13, 11), (3, 8, 8), (5, 4, 4)]  # batch, height, width


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def layer(batch: int, size: tuple[int, int], channels: tuple[int, int]) -> Fusion:
    inputs, outputs = channels
    style, scale, next_style = (draw(batch, c) / 4 + 1 for c in (inputs, outputs, outputs))
    epilogue = Epilogue(draw(batch, 1, *size) / 2, draw(outputs), ACT)
    return Fusion(style, scale / (3 * inputs**0.5), epilogue, next_style)


def reference(x: Tensor, weight: Tensor, padding: int, fusion: Fusion) -> Tensor:
    """What `fusion` asks for, step by step in float64, of operands that are rounded to half precision."""
    epilogue, style = fusion.epilogue, torch.ones(1) if fusion.style is None else fusion.style[:, :, None, None]
    scaled = (x * style).half().double()
    y = torch.nn.functional.conv2d(scaled, weight.half().double(), padding=padding)
    y = y if fusion.scale is None else y * fusion.scale.double()[:, :, None, None]
    y = y if epilogue.noise is None else y + epilogue.noise.double()
    y = y if epilogue.bias is None else y + epilogue.bias.double()[:, None, None]
    if epilogue.activation is ACT:
        y = (torch.nn.functional.leaky_relu(y, 0.3) * ACT.full_gain).clamp(-1.5, 1.5)
    return y if fusion.next_style is None else y * fusion.next_style.double()[:, :, None, None]


def assert_close(got: Tensor, want: Tensor) -> None:
    error = ((got.double() - want).norm() / want.norm()).item()
    assert error < 5e-4, f"{error:.1e}"  # fails on NaN too


@pytest.mark.parametrize("taps", [3, 1])
@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_convolve_flat_is_a_layer_and_writes_every_zero(batch: int, height: int, width: int, taps: int) -> None:
    x, weight = draw(batch, 64, height, width).half(), draw(64, 64, taps, taps)
    geometry = Geometry.of((height, width), (taps, taps), (taps // 2,) * 4)
    fusion = layer(batch, (height, width), (64, 64))
    y = convolve_flat(lay_flat(x, fusion.style), weight, geometry, replace(fusion, style=None))
    assert_close(y.image, reference(x.float(), weight, taps // 2, fusion))
    assert torch.equal(y.rows, FlatImage.of(y.image).rows)


@pytest.mark.parametrize("outputs", [64, 208, 512])
def test_convolve_flat_takes_any_channels(outputs: int) -> None:
    x, weight = draw(2, 48, 6, 7).half(), draw(outputs, 48, 3, 3)
    fusion = layer(2, (6, 7), (48, outputs))
    geometry = Geometry.of((6, 7), (3, 3), (1, 1, 1, 1))
    y = convolve_flat(lay_flat(x, fusion.style), weight, geometry, replace(fusion, style=None))
    want = reference(x.float(), weight, 1, fusion)
    assert_close(y.image, want)
    assert torch.equal(y.rows, FlatImage.of(y.image).rows)
    assert_close(convolve_through_flat(x, weight, geometry, fusion), want)


def test_convolve_flat_goes_on_from_its_own_output() -> None:
    x, first, second = draw(3, 64, 9, 5).half(), draw(64, 64, 3, 3) / 24, draw(64, 64, 3, 3) / 24
    geometry = Geometry.of((9, 5), (3, 3), (1, 1, 1, 1))
    y = convolve_flat(convolve_flat(lay_flat(x), first, geometry), second, geometry)
    between = reference(x.float(), first, 1, Fusion())
    assert_close(y.image, reference(between.half().float(), second, 1, Fusion()))


@pytest.mark.parametrize("padding", [1, 2])
def test_convolve_through_flat_gives_channels_last_of_any_layout(padding: int) -> None:
    size = (11 + 2 * padding, 5 + 2 * padding)
    x, weight = draw(2, 64, 13, 7).half().transpose(2, 3).contiguous().transpose(2, 3), draw(64, 64, 3, 3)
    fusion = layer(2, size, (64, 64))
    geometry = Geometry.of((13, 7), (3, 3), (padding,) * 4)
    assert offset_of(geometry) == (padding - 1, padding - 1)
    y = convolve_through_flat(x, weight, geometry, fusion)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, reference(x.float(), weight, padding, fusion))


def test_convolve_through_flat_agrees_with_convolve() -> None:
    """Of a transposed weight with gains, and an output that is also wanted before its style."""
    x, weight, gain = draw(2, 64, 7, 9).half(), draw(64, 32, 3, 3) / 24, draw(64) / 4 + 1
    geometry = Geometry.of((7, 9), (3, 3), (1, 1, 1, 1), flipped=True).transposed
    scale, next_style = draw(2, 32), draw(2, 32) + 2
    outputs = []
    for run in (convolve, convolve_through_flat):
        unscaled = torch.empty(2, 32, 7, 9).half().contiguous(memory_format=torch.channels_last)
        fusion = Fusion(None, scale, Epilogue(), next_style, weight_gain=gain, unscaled=unscaled)
        y = run(x, weight, geometry, fusion)
        outputs.append((y[0] if isinstance(y, tuple) else y, unscaled))
    (y, unscaled), (flat_y, flat_unscaled) = outputs
    assert_close(flat_y, y.double())
    assert_close(flat_unscaled, unscaled.double())
    assert_close(unscaled * next_style[:, :, None, None], y.double())


def test_convolve_flat_is_deterministic_and_of_nothing_is_nothing() -> None:
    x, weight = draw(2, 16, 6, 6).half(), draw(32, 16, 3, 3)
    geometry = Geometry.of((6, 6), (3, 3), (1, 1, 1, 1))
    assert torch.equal(*(convolve_through_flat(x, weight, geometry) for _ in range(2)))
    assert convolve_through_flat(x[:0], weight, geometry).shape == (0, 32, 6, 6)


def test_convolve_flat_says_that_images_come_scaled_and_in_full_size() -> None:
    flat, weight = lay_flat(draw(1, 16, 4, 4).half()), draw(16, 16, 3, 3)
    same, wider = (Geometry.of((4, 4), (3, 3), (padding,) * 4) for padding in (1, 2))
    with pytest.raises(ValueError, match=r"an image of \(4, 4\) for \(6, 6\), and `style` is None"):
        convolve_flat(flat, weight, wider)
    with pytest.raises(ValueError, match=r"`style` is not None; .* give `lay_flat` the styles"):
        convolve_flat(flat, weight, same, Fusion(draw(1, 16)))
