"""Triton implementation of the modulated convolution: one launch a layer, or two for one that doubles the resolution.

The input is scaled while it is read, the output while it is written, so nothing is made per sample but `[N, O]`
factors, and neither the scaled input nor the sum before the activation ever is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kernels.bias_act import LINEAR, Activation
from kernels.bias_act_triton import activation_gradient, bias_act_triton
from kernels.conv2d_resample_triton import begin_resampled, convolve_differentiably
from kernels.conv_geometry import Geometry, Size
from kernels.conv_gradient_triton import Layer, layer_gradient, recoverable, weight_gradient
from kernels.conv_plan import Fusion, case_of_dtype, remember
from kernels.conv_triton import convolve
from kernels.demodulation import demodulation
from kernels.launch import CompileCase
from kernels.modulated_conv import NOTHING, PLAIN, Epilogue, ModulatedConv, check_shapes, product
from kernels.upfirdn2d_triton import upfirdn2d_epilogue_triton, upfirdn2d_triton


def modulated_conv2d_triton(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    conv: ModulatedConv = PLAIN,
    *,
    fir: Tensor | None = None,
    epilogue: Epilogue = NOTHING,
) -> Tensor:
    """Triton implementation of `modulated_conv2d`; the output is channels_last. Differentiable any number of times."""
    check_shapes(x, weight, styles)  # a filter before the convolution commutes with the styles
    factors = _factors(x, weight, styles, conv.demodulate)
    factors = replace(factors, scale=product(factors.scale, epilogue.scale))
    x, weight, geometry, after = begin_resampled(x, weight, fir, conv.resampled())
    if not after:
        return _layer(x, weight, factors, geometry, epilogue)
    *first, last = after
    y = _layer(x, weight, factors, geometry, NOTHING)
    for resampling in first:
        y = upfirdn2d_triton(y, fir, resampling)
    return upfirdn2d_epilogue_triton(y, fir, last, epilogue)


def modulated_conv2d_with_moments_triton(
    x: Tensor, weight: Tensor, styles: Tensor, conv: ModulatedConv = PLAIN, *, epilogue: Epilogue = NOTHING
) -> tuple[Tensor, Tensor]:
    """Triton implementation of `modulated_conv2d_with_moments`."""
    check_shapes(x, weight, styles)
    factors = _factors(x, weight, styles, conv.demodulate)
    x, weight, geometry, _ = begin_resampled(x, weight, None, conv.resampled())
    epilogue = with_noise_of(epilogue, x.shape[0], geometry.out_size)
    scale = product(factors.scale, epilogue.scale)
    fusion = Fusion(factors.styles, scale, epilogue, weight_gain=factors.weight_gain, moments=True)
    y, moments = convolve(x, weight, geometry, fusion)
    assert moments is not None
    return y, moments


@dataclass(frozen=True, slots=True)
class _Factors:
    """What input, convolution and weight are multiplied by."""

    styles: Tensor  # [N, I]
    scale: Tensor | None  # [N, O]
    weight_gain: Tensor | None  # [O], a constant


def _factors(x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool) -> _Factors:
    if not demodulate:
        return _Factors(styles, None, None)
    styles = styles.to(torch.promote_types(styles.dtype, torch.float32))
    scale = demodulation(weight, styles)
    if x.dtype != torch.float16:
        return _Factors(styles, scale, None)
    # into the range of float16 and out of it again: the factors cancel, so they may count as constants
    style_gain, gain = reciprocal(styles.detach().abs().amax(1, keepdim=True)), weight_gain(weight)
    return _Factors(styles * style_gain, scale / (style_gain * gain), gain)


def weight_gain(weight: Tensor) -> Tensor:
    """Return `[O]` that bring the weights of each output into `[-1, 1] / sqrt(number of inputs)`, for float16."""

    def make() -> Tensor:
        return reciprocal(weight.float().abs().amax((1, 2, 3)) * math.sqrt(weight[0].numel()))

    gain: Tensor = remember(weight, "gain", make)
    return gain


def reciprocal(largest: Tensor) -> Tensor:
    """Return `1 / largest`, and 1 where all is zero."""
    return 1 / torch.where(largest == 0, 1, largest)


def _layer(x: Tensor, weight: Tensor, factors: _Factors, geometry: Geometry, epilogue: Epilogue) -> Tensor:
    epilogue = with_noise_of(epilogue, x.shape[0], geometry.out_size)
    noise, bias, act = epilogue.noise, epilogue.bias, epilogue.activation
    fused = recoverable(act)
    spec = _Spec(geometry, act if fused else LINEAR, factors.weight_gain)
    y: Tensor = _Layer.apply(x, weight, factors.styles, factors.scale, noise, bias if fused else None, spec)
    return y if fused else bias_act_triton(y, bias, act)


def with_noise_of(epilogue: Epilogue, n: int, size: Size) -> Epilogue:
    """The epilogue with noise for each pixel, also where one number was given for many."""
    if epilogue.noise is None or epilogue.noise.shape[-2:] == size:
        return epilogue
    return replace(epilogue, noise=epilogue.noise.expand(n, 1, *size))


@dataclass(frozen=True, slots=True)
class _Spec:
    geometry: Geometry
    activation: Activation
    weight_gain: Tensor | None


class _Layer(Function):
    """`act(conv(x styles, weight weight_gain) scale + noise + bias)`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        x, weight, styles, scale, noise, bias, spec = arguments
        epilogue = Epilogue(noise, bias, spec.activation)
        y, _ = convolve(x, weight, spec.geometry, Fusion(styles, scale, epilogue, weight_gain=spec.weight_gain))
        ctx.save_for_backward(x, weight, styles, scale, noise, bias, y)
        ctx.spec = spec
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _differentiable_gradients(ctx, dy)
        x, weight, styles, scale, noise, bias, y = ctx.saved_tensors
        spec, (wants_x, wants_weight, wants_styles, *wants) = ctx.spec, ctx.needs_input_grad[:6]
        after = layer_gradient(dy, Layer(y, scale, Epilogue(noise, bias, spec.activation)), tuple(wants))
        dx, dstyles, dweight = None, None, None
        if wants_x or wants_styles:
            fusion = Fusion(scale=styles, against=x if wants_styles else None, weight_gain=spec.weight_gain)
            dx, dstyles = convolve(after.gradient, weight, spec.geometry.transposed, fusion)
        if wants_weight:
            dweight = weight_gradient(x, after.gradient, spec.geometry, styles)
            dweight = dweight if spec.weight_gain is None else dweight * spec.weight_gain[:, None, None, None]
        dnoise = None if after.noise is None else after.noise.sum_to_size(noise.shape)
        found = (dx, dweight, dstyles, after.scale, dnoise, after.bias)
        return (*_in_dtypes(found, (x, weight, styles, scale, noise, bias)), None)


def _in_dtypes(found: Sequence[Tensor | None], like: Sequence[Tensor | None]) -> list[Tensor | None]:
    pairs = zip(found, like, strict=True)
    return [None if value is None or other is None else value.to(other.dtype) for value, other in pairs]


def _differentiable_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of `_Layer` from pieces that can be differentiated again, as path lengths need it."""
    x, weight, styles, scale, noise, bias, y = ctx.saved_tensors
    spec, wants = ctx.spec, ctx.needs_input_grad
    gradient, dbias = activation_gradient(dy, y, spec.activation, bias.dtype if wants[5] else None)
    dnoise = None
    if wants[4]:
        dnoise = gradient.sum(1, keepdim=True, dtype=torch.float32).sum_to_size(noise.shape).to(noise.dtype)
    # gradients by these copies, which are not functions of each other as the tensors themselves may be
    copies = [None if tensor is None else tensor.view_as(tensor) for tensor in (x, weight, styles, scale)]
    wanted = [copy for copy, want in zip(copies, wants, strict=False) if want and copy is not None]
    linear = _linear_part(copies, spec)
    gradients = iter(torch.autograd.grad(linear, wanted, gradient, create_graph=True) if wanted else ())
    return (*(next(gradients) if want else None for want in wants[:4]), dnoise, dbias, None)


def _linear_part(operands: Sequence[Tensor | None], spec: _Spec) -> Tensor:
    """`conv(x styles, weight weight_gain) scale`."""
    x, weight, styles, scale = operands
    assert x is not None
    assert weight is not None
    assert styles is not None
    if spec.weight_gain is not None:
        weight = weight * spec.weight_gain[:, None, None, None].to(weight.dtype)
    z = convolve_differentiably(x * styles[:, :, None, None].to(x.dtype), weight, spec.geometry)
    return z if scale is None else z * scale[:, :, None, None].to(z.dtype)


def _case(
    name: str, x: tuple[int, int, int, int], weight: tuple[int, int], dtype: str, flat: bool = False
) -> CompileCase:
    """The launch of one layer; its demodulation and, of one that upsamples, its filter are cases elsewhere.

    So are, on Hopper, the two launches of a layer that runs `flat` there.
    """
    outputs, taps = weight

    def call(dtype: torch.dtype) -> None:
        size, kernel = (x[2], x[3]), (taps, taps)
        geometry = Geometry.of(size, kernel, (taps // 2,) * 4)
        if name == "up":
            geometry = Geometry.upsampling(size, kernel, 2, flipped=True)
        image, stored = torch.empty(x, dtype=dtype, device="meta"), torch.empty(outputs, x[1], *kernel, device="meta")
        styles, scale, bias, noise = (
            torch.empty(shape, device="meta") for shape in (x[:2], (x[0], outputs), outputs, geometry.out_size)
        )
        if name == "rgb":
            epilogue = Epilogue(None, bias, Activation("linear", clamp=256.0))
            _layer(image, stored, _Factors(styles, None, None), geometry, epilogue)
        else:
            epilogue = NOTHING if name == "up" else Epilogue(noise, bias, Activation("lrelu", clamp=256.0))
            _layer(image, stored, _Factors(styles, scale, None), geometry, epilogue)

    case = case_of_dtype(f"modulated_conv/{name}-{x[1]}-{outputs}-{x[2]}", dtype, "warpgroup", call)
    return replace(case, architectures=(80, 100)) if flat else case


COMPILE_CASES = (
    _case("layer", (16, 512, 64, 64), (512, 3), "float16", flat=True),
    _case("layer", (16, 512, 64, 64), (512, 3), "bfloat16", flat=True),
    _case("layer", (16, 512, 64, 64), (512, 3), "float32"),
    _case("layer", (16, 512, 64, 64), (512, 3), "tf32"),
    _case("layer", (16, 512, 36, 36), (512, 3), "float16", flat=True),
    _case("layer", (4, 64, 1024, 1024), (32, 3), "float16"),
    _case("layer", (4, 32, 1024, 1024), (32, 3), "float16"),
    _case("layer", (4, 81, 1044, 1044), (51, 1), "float16"),
    _case("layer", (4, 88, 1044, 1044), (56, 1), "float16"),
    _case("up", (16, 512, 32, 32), (512, 3), "float16"),
    _case("up", (16, 64, 512, 512), (32, 3), "float16"),
    _case("up", (16, 512, 32, 32), (512, 3), "float32"),
    _case("rgb", (16, 64, 1024, 1024), (3, 1), "float16"),
    _case("rgb", (16, 512, 64, 64), (3, 1), "float16"),
)
