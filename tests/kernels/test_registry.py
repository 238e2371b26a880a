from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels.bias_act import Activation
from kernels.conv2d_resample import ResampledConv
from kernels.costs import LayerShape
from kernels.dispatch import resolve
from kernels.filtered_lrelu import FilteredLReLU
from kernels.modulated_conv import Epilogue, ModulatedConv
from kernels.registry import KERNELS
from kernels.upfirdn2d import Resampling, setup_filter

Arguments = tuple[list[Any], dict[str, Any]]
FIR = setup_filter([1, 3, 3, 1])


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def image(s: LayerShape) -> torch.Tensor:
    return draw(s.batch, s.in_channels, s.height, s.width)


def conv2d(s: LayerShape) -> Arguments:
    weight = draw(s.out_channels, s.in_channels, s.kernel, s.kernel)
    return [image(s), weight, FIR, ResampledConv(s.up, s.down, s.kernel // 2)], {}


def modulated_conv2d(s: LayerShape) -> Arguments:
    (x, weight, fir, conv), _ = conv2d(s)
    noise = draw(s.height * s.up // s.down, s.width * s.up // s.down)
    epilogue = Epilogue(noise, draw(s.out_channels), Activation("lrelu", clamp=256.0))
    styles = draw(s.batch, s.in_channels) + 1
    return [x, weight, styles, ModulatedConv(conv.up, conv.down, conv.padding)], {"fir": fir, "epilogue": epilogue}


def upfirdn2d(s: LayerShape) -> Arguments:
    return [image(s), FIR, Resampling(s.up, s.down, 2)], {}


def filtered_lrelu(s: LayerShape) -> Arguments:
    up_filter, down_filter = (setup_filter([1] * 6 * factor) if factor > 1 else None for factor in (s.up, s.down))
    up_taps, down_taps = (6 * factor if factor > 1 else 1 for factor in (s.up, s.down))
    totals = [
        (size * s.up // s.down - 1) * s.down + 1 - size * s.up + up_taps + down_taps - 2 for size in (s.width, s.height)
    ]
    x0, y0 = ((total + s.up) // 2 for total in totals)
    spec = FilteredLReLU(s.up, s.down, (x0, totals[0] - x0, y0, totals[1] - y0), Activation("lrelu", clamp=256.0))
    return [image(s), draw(s.in_channels), up_filter, down_filter, spec], {}


ARGUMENTS: dict[str, Callable[[LayerShape], Arguments]] = {
    "modulated_conv2d": modulated_conv2d,
    "demodulation": lambda s: ([conv2d(s)[0][1], draw(s.batch, s.in_channels) + 1], {}),
    "conv2d_resample": conv2d,
    "upfirdn2d": upfirdn2d,
    "filtered_lrelu": filtered_lrelu,
    "bias_act": lambda s: ([image(s), draw(s.in_channels), Activation("lrelu")], {}),
    "minibatch_std": lambda s: ([image(s), 4], {}),
}


def in_dtype(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Epilogue):
        return Epilogue(in_dtype(value.noise, dtype), in_dtype(value.bias, dtype), value.activation)
    return value.to(dtype) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", KERNELS)
def test_registry_targets_resolve(name: str) -> None:
    spec = KERNELS[name]
    assert spec.name == name
    for target in filter(None, (spec.reference, spec.triton, spec.naive)):
        assert callable(resolve(target))
    assert spec.cases
    assert all(spec.flops(shape) > 0 and spec.bytes_moved(shape, 4) > 0 for shape in spec.cases)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", KERNELS)
def test_registry_tolerances_hold_for_the_reference(name: str, dtype: str) -> None:
    spec = KERNELS[name]
    for shape in spec.cases:
        rounded, options = ARGUMENTS[name](shape)
        rounded = [in_dtype(value, getattr(torch, dtype)) for value in rounded]
        options = {key: in_dtype(value, getattr(torch, dtype)) for key, value in options.items()}
        exact = [in_dtype(value, torch.float64) for value in rounded]
        want = resolve(spec.reference)(*exact, **{key: in_dtype(v, torch.float64) for key, v in options.items()})
        got = resolve(spec.reference)(*rounded, **options)
        assert got.dtype == getattr(torch, dtype)
        error = ((got.double() - want).norm() / want.norm()).item()
        assert error < spec.tolerance[dtype], f"{name} {shape}: {error:.1e}"


@pytest.mark.parametrize("name", [name for name, spec in KERNELS.items() if spec.naive])
def test_registry_naive_formulations_agree_with_the_reference(name: str) -> None:
    spec = KERNELS[name]
    for shape in spec.cases:
        arguments, options = ARGUMENTS[name](shape)
        exact = [in_dtype(value, torch.float64) for value in arguments]
        options = {key: in_dtype(value, torch.float64) for key, value in options.items()}
        assert spec.naive is not None
        want = resolve(spec.reference)(*exact, **options)
        torch.testing.assert_close(resolve(spec.naive)(*exact, **options), want, rtol=0, atol=1e-10)
