"""Modulated convolution: the weight of a convolution is scaled per sample by a style, and demodulated.

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958), equations 1 to 3:
`w' = s_i w_oik`, `w'' = w' / sqrt(sum_ik w'^2 + eps)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.bias_act import LINEAR, Activation, activate, split_gain
from kernels.conv2d_resample import ResampledConv, conv2d_resample_reference, triton_limit
from kernels.demodulation import EPSILON, demodulation_reference
from kernels.dispatch import resolve, select
from kernels.padded_conv import PaddingLike
from kernels.registry import KERNELS


@dataclass(frozen=True, slots=True)
class ModulatedConv:
    """Geometry of a modulated convolution; the fields are those of `ResampledConv`, and whether it demodulates."""

    up: int = 1
    down: int = 1
    padding: PaddingLike = 0
    demodulate: bool = True
    flip_weight: bool = True  # True: correlation; False: true convolution, as StyleGAN2's upsampling layers use

    def resampled(self, groups: int = 1) -> ResampledConv:
        """The convolution without its modulation."""
        return ResampledConv(self.up, self.down, self.padding, groups, self.flip_weight)


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What a layer does after the convolution: `clamp(act(y * scale + noise + bias) * gain)`."""

    noise: Tensor | None = None  # [H, W] or [N, 1, H, W] of the output, already scaled by its strength
    bias: Tensor | None = None  # [O]
    activation: Activation = LINEAR
    scale: Tensor | None = None  # [N, O], beside that of the demodulation


PLAIN, NOTHING = ModulatedConv(), Epilogue()


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    conv: ModulatedConv = PLAIN,
    *,
    fir: Tensor | None = None,
    epilogue: Epilogue = NOTHING,
) -> Tensor:
    """Convolve `x` `[N, I, H, W]` with `weight` `[O, I, k, k]` modulated by `styles` `[N, I]`. Twice differentiable.

    `fir` is the filter of a resampling layer. Returns `[N, O, H * up / down, W * up / down]` with "same" padding,
    in the dtype of `x`; weight and styles may keep a wider one.
    """
    extra = (tensor for tensor in (fir, epilogue.noise, epilogue.bias, epilogue.scale) if tensor is not None)
    run = select("modulated_conv2d", x, weight, styles, *extra, limit=triton_limit(fir, conv.resampled()))
    return run(x, weight, styles, conv, fir=fir, epilogue=epilogue)


def modulated_conv2d_with_moments(
    x: Tensor, weight: Tensor, styles: Tensor, conv: ModulatedConv = PLAIN, *, epilogue: Epilogue = NOTHING
) -> tuple[Tensor, Tensor]:
    """Return `modulated_conv2d`, and mean and variance `[2, N, O]`, float32, of each channel of it.

    For convolutions that resample nothing, and only where it `fuses`.
    """
    run: Any = resolve("kernels.modulated_conv_triton:modulated_conv2d_with_moments_triton")
    found: tuple[Tensor, Tensor] = run(x, weight, styles, conv, epilogue=epilogue)
    return found


def fuses(*tensors: Tensor, limit: str | None = None) -> bool:
    """Whether a launch may do more than `modulated_conv2d`: `use` selects Triton, and nobody asks for gradients."""
    if torch.is_grad_enabled():
        return False
    spec = KERNELS["modulated_conv2d"]
    chosen = select(spec, *tensors, limit=limit)
    return chosen not in (resolve(spec.reference), resolve(spec.naive or spec.reference))


def modulated_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    conv: ModulatedConv = PLAIN,
    *,
    fir: Tensor | None = None,
    epilogue: Epilogue = NOTHING,
) -> Tensor:
    """PyTorch implementation: scale the input by the styles, convolve all samples at once, scale the output.

    Equal to modulating the weight because a convolution is linear in each input channel and each output channel;
    no weight is made per sample, so demodulation is the matrix product `styles^2 @ (sum_k weight^2)^T`.
    """
    check_shapes(x, weight, styles)
    if conv.demodulate and x.dtype == torch.float16:
        weight, styles = _prenormalized(weight, styles)
    x = x.contiguous(memory_format=torch.channels_last)
    scale = demodulation_reference(weight, styles) if conv.demodulate else None
    if _is_small_pointwise(x, weight, conv):
        y = _pointwise(x, weight, styles)
    else:
        scaled = x * styles[:, :, None, None].to(x.dtype)
        y = conv2d_resample_reference(scaled, weight.to(x.dtype), fir, conv.resampled())
    return _finish(y, scale, epilogue)


def modulated_conv2d_grouped(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    conv: ModulatedConv = PLAIN,
    *,
    fir: Tensor | None = None,
    epilogue: Epilogue = NOTHING,
) -> Tensor:
    """The same by a grouped convolution with one weight `[O, I, k, k]` per sample, as in the paper's section 2.2.

    The baseline that speed-ups of `modulated_conv2d` divide by, and a second oracle.
    """
    check_shapes(x, weight, styles)
    if conv.demodulate and x.dtype == torch.float16:
        weight, styles = _prenormalized(weight, styles)
    per_sample = weight[None] * styles[:, None, :, None, None]  # [N, O, I, k, k]
    if conv.demodulate:
        per_sample = per_sample * (per_sample.square().sum((2, 3, 4), keepdim=True) + EPSILON).rsqrt()
    n, i, h, w = x.shape
    folded = x.reshape(1, n * i, h, w)
    y = conv2d_resample_reference(folded, per_sample.to(x.dtype).flatten(0, 1), fir, conv.resampled(groups=n))
    return _finish(y.reshape(n, -1, *y.shape[2:]), None, epilogue)


def _prenormalized(weight: Tensor, styles: Tensor) -> tuple[Tensor, Tensor]:
    """Bring weight and styles into the range of float16; demodulation takes the factors out again."""
    fan_in = weight[0].numel()
    largest = weight.abs().amax((1, 2, 3), keepdim=True)
    return weight / (largest * math.sqrt(fan_in)), styles / styles.abs().amax(1, keepdim=True)


def _is_small_pointwise(x: Tensor, weight: Tensor, conv: ModulatedConv) -> bool:
    """Whether the weight of all samples has fewer elements than `x`, so that it is the cheaper one to scale."""
    plain = weight.shape[2:] == (1, 1) and conv.up == 1 and conv.down == 1 and conv.padding == 0
    return plain and weight.shape[0] < x.shape[2] * x.shape[3]


def _pointwise(x: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
    per_sample = (weight[None, :, :, 0, 0] * styles[:, None, :]).to(x.dtype)  # [N, O, I]
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # [N, HW, I], a view in channels_last
    y = pixels @ per_sample.transpose(1, 2)
    return y.reshape(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


def _finish(y: Tensor, scale: Tensor | None, epilogue: Epilogue) -> Tensor:
    """Return `clamp(act(y * scale + noise + bias) * gain)`; `scale` `[N, O]` comes beside that of the epilogue.

    Without autograd `y` is overwritten: a fresh output costs a CPU several times the arithmetic, in page faults.
    """
    gain, rest = split_gain(epilogue.activation)
    scale = product(scale, epilogue.scale)
    inplace = not torch.is_grad_enabled()
    into = y if inplace else None
    if scale is not None or epilogue.bias is not None or gain != 1:
        factor = y.new_full((1, 1, 1, 1), gain) if scale is None else (scale * gain).to(y.dtype)[:, :, None, None]
        shift = y.new_zeros(1) if epilogue.bias is None else (epilogue.bias * gain).to(y.dtype)[:, None, None]
        y = torch.addcmul(shift, y, factor, out=into)
    if epilogue.noise is not None:
        y = torch.add(y, epilogue.noise.to(y.dtype), alpha=gain, out=into)
    return activate(y, rest, inplace=inplace)


def product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return `a * b`; None is 1."""
    return (a if b is None else b) if a is None or b is None else a * b


def check_shapes(x: Tensor, weight: Tensor, styles: Tensor) -> None:
    """Raise ValueError unless the operands of a modulated convolution fit together."""
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[1] != x.shape[1] or styles.shape != x.shape[:2]:
        raise ValueError(
            f"modulated_conv2d: x {list(x.shape)}, weight {list(weight.shape)}, styles {list(styles.shape)}; "
            "allowed are x [N, I, H, W], weight [O, I, k, k] and styles [N, I]"
        )
