"""Triton implementation of the resampled convolution: one product of matrices, and a pass of the filter beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import conv2d
from torch.utils.weak import WeakTensorKeyDictionary

from kernels.bias_act import Activation
from kernels.conv2d_resample import SAME_SIZE, ResampledConv, check_shapes, fir_down, fir_up, full_padding
from kernels.conv_geometry import Geometry, Size
from kernels.conv_gradient_triton import weight_gradient
from kernels.conv_plan import Fusion, case_of_dtype, composes, is_captured, remember
from kernels.conv_triton import convolve
from kernels.launch import CompileCase
from kernels.modulated_conv import Epilogue
from kernels.padded_conv import Padding
from kernels.upfirdn2d import Resampling, fir_size
from kernels.upfirdn2d_triton import upfirdn2d_triton

NO_PADDING = (0, 0, 0, 0)


def conv2d_resample_triton(
    x: Tensor, weight: Tensor, fir: Tensor | None = None, conv: ResampledConv = SAME_SIZE
) -> Tensor:
    """Triton implementation of `conv2d_resample`; the output is channels_last. Differentiable any number of times."""
    check_shapes(x, weight, conv)
    x, weight, geometry, after = begin_resampled(x, weight, fir, conv)
    y = convolve_differentiably(x, weight, geometry)
    for resampling in after:
        y = upfirdn2d_triton(y, fir, resampling)
    return y


def begin_resampled(
    x: Tensor, weight: Tensor, fir: Tensor | None, conv: ResampledConv
) -> tuple[Tensor, Tensor, Geometry, list[Resampling]]:
    """Do what comes before the convolution; also return its weight and geometry, and how the filter goes after it.

    The order is that of `conv2d_resample_reference`, except that in inference filter and weight may become one.
    """
    kernel = (weight.shape[2], weight.shape[3])
    padding, flipped, pointwise = full_padding(fir, conv), not conv.flip_weight, kernel == (1, 1)
    down = [fir_down(conv, conv.down)] if conv.up > 1 and conv.down > 1 else []
    size = (x.shape[2], x.shape[3])
    if conv.up > 1 and pointwise:
        return x, weight, Geometry.of(size, kernel, NO_PADDING), [fir_up(conv, conv.up, padding), *down]
    if conv.up > 1:
        geometry, taps = Geometry.upsampling(size, kernel, conv.up, flipped=flipped), fir_size(fir)[::-1]
        if fir is not None and not torch.is_grad_enabled() and composes(x, geometry, weight.shape[0], taps):
            return x, _composed(weight, fir, conv), _composed_geometry(geometry, taps, padding), down
        (x0, x1, y0, y1), (kh, kw), up = padding, kernel, conv.up
        blur = fir_up(conv, 1, (x0 - kw + 1, x1 - kw + up, y0 - kh + 1, y1 - kh + up))
        return x, weight, geometry, [blur, *down]
    stride = conv.down
    if conv.down > 1:
        stride = 1 if pointwise else conv.down
        x, padding = upfirdn2d_triton(x, fir, fir_down(conv, conv.down // stride, padding)), NO_PADDING
    return x, weight, Geometry.of((x.shape[2], x.shape[3]), kernel, padding, down=stride, flipped=flipped), []


def _composed_geometry(geometry: Geometry, taps: Size, padding: Padding) -> Geometry:
    """The transposed convolution by weight and filter in one: each phase of its output has taps of its own."""
    x0, x1, y0, y1 = padding
    kernel = (geometry.kernel[0] + taps[0] - 1, geometry.kernel[1] + taps[1] - 1)
    height, width = (
        size * geometry.up + pad - of_kernel + 1
        for size, pad, of_kernel in zip(geometry.in_size, (y0 + y1, x0 + x1), kernel, strict=True)
    )
    return Geometry(geometry.in_size, (height, width), kernel, (y0, x0), geometry.up)


def _composed(weight: Tensor, fir: Tensor, conv: ResampledConv) -> Tensor:
    """Weight `[O, I, kh, kw]` and filter as one weight, kept until one of them changes."""

    def make() -> Tensor:
        stored = (weight if conv.flip_weight else weight.flip((2, 3))).float()
        whole = (fir if fir.ndim == 2 else torch.outer(fir, fir)).float() * conv.up**2
        taps = whole.flip((0, 1)) if conv.flip_filter else whole
        padding = (whole.shape[0] - 1, whole.shape[1] - 1)
        made: Tensor = conv2d(stored.flatten(0, 1)[:, None], taps[None, None], padding=padding)
        return made.view(*weight.shape[:2], *made.shape[2:])

    by_filter = remember(weight, ("composed", conv.up, conv.flip_weight, conv.flip_filter), WeakTensorKeyDictionary)
    version, made = by_filter.get(fir, (None, None))
    if fir.is_inference() or version != fir._version:
        with torch.inference_mode(False), torch.no_grad():
            made = make()
        if not fir.is_inference() and not is_captured(weight):
            by_filter[fir] = fir._version, made
    found: Tensor = made
    return found


def convolve_differentiably(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return `convolve(x, weight, geometry)`, which has derivatives of any order."""
    y: Tensor = _Conv.apply(x, weight, geometry)
    return y


class _Conv(Function):
    """A convolution of this geometry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return convolve(x, weight, geometry)[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = _Conv.apply(dy, weight, ctx.geometry.transposed) if ctx.needs_input_grad[0] else None
        dweight = _WeightGradient.apply(x, dy, ctx.geometry, weight.dtype) if ctx.needs_input_grad[1] else None
        return dx, dweight, None


class _WeightGradient(Function):
    """The gradient of the weight of `_Conv`, which is linear in the input and in the gradient of the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dy: Tensor, geometry: Geometry, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, dy)
        ctx.geometry = geometry
        return weight_gradient(x, dy, geometry).to(dtype)

    @staticmethod
    def backward(ctx: Any, dweight: Tensor) -> tuple[Tensor | None, ...]:
        x, dy = ctx.saved_tensors
        dx = _Conv.apply(dy, dweight, ctx.geometry.transposed) if ctx.needs_input_grad[0] else None
        ddy = _Conv.apply(x, dweight, ctx.geometry) if ctx.needs_input_grad[1] else None
        return dx, ddy, None, None


def _down_case(x: tuple[int, int, int, int], outputs: int, dtype: str) -> CompileCase:
    """The convolution that halves an image which has been filtered; its gradient is an upsampling one."""

    def call(dtype: torch.dtype) -> None:
        geometry = Geometry.of((x[2], x[3]), (3, 3), NO_PADDING, down=2)
        image, weight = torch.empty(x, dtype=dtype, device="meta"), torch.empty(outputs, x[1], 3, 3, device="meta")
        convolve_differentiably(image, weight, geometry)

    return case_of_dtype(f"conv2d_resample/down-{x[1]}-{outputs}-{x[2]}", dtype, "warpgroup", call)


def _composed_case(x: tuple[int, int, int, int], outputs: int, dtype: str) -> CompileCase:
    """A layer that doubles the resolution, by weight and filter in one."""

    def call(dtype: torch.dtype) -> None:
        upsampling = Geometry.upsampling((x[2], x[3]), (3, 3), 2, flipped=True)
        geometry = _composed_geometry(upsampling, (4, 4), (3, 2, 3, 2))
        image, weight = torch.empty(x, dtype=dtype, device="meta"), torch.empty(outputs, x[1], 6, 6, device="meta")
        noise, bias, scale = (
            torch.empty(shape, device="meta") for shape in (geometry.out_size, outputs, (x[0], outputs))
        )
        epilogue = Epilogue(noise, bias, Activation("lrelu", clamp=256.0))
        convolve(image, weight, geometry, Fusion(None, scale, epilogue, scale))

    return case_of_dtype(f"conv2d_resample/composed-{x[1]}-{outputs}-{x[2]}", dtype, "warpgroup", call)


COMPILE_CASES = (
    _composed_case((4, 64, 512, 512), 32, "float16"),
    _composed_case((4, 64, 512, 512), 32, "float32"),
    _down_case((16, 64, 257, 257), 128, "float16"),
    _down_case((16, 64, 257, 257), 128, "float32"),
)
