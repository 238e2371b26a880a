"""Bias, activation, gain and clamp.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (arXiv 2006.06676): the default
gains keep the variance of unit-normal inputs, sqrt(2) for the rectifiers and 1 for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import select, unknown

# name: (function, default gain)
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "linear": (lambda x: x, 1.0),
    "relu": (F.relu, math.sqrt(2)),
    "lrelu": (F.leaky_relu, math.sqrt(2)),
    "tanh": (torch.tanh, 1.0),
    "sigmoid": (torch.sigmoid, 1.0),
    "elu": (F.elu, 1.0),
    "selu": (F.selu, 1.0),
    "softplus": (F.softplus, 1.0),
    "swish": (F.silu, math.sqrt(2)),
}
HOMOGENEOUS = ("linear", "relu", "lrelu")  # act(g * x) = g * act(x) for g > 0
LRELU_SLOPE = 0.2


@dataclass(frozen=True, slots=True)
class Activation:
    """`clamp(act(x) * gain)`; None is the default gain of the activation, slope 0.2 of lrelu, and no clamp."""

    name: str = "linear"
    alpha: float | None = None  # slope of lrelu below zero
    gain: float | None = None
    clamp: float | None = None  # outputs are held within +-clamp

    def __post_init__(self) -> None:
        if self.name not in _ACTIVATIONS:
            raise ValueError(unknown("activation", self.name, _ACTIVATIONS))
        if self.alpha is not None and self.name != "lrelu":
            raise ValueError(f"activation {self.name!r}: got alpha {self.alpha}; only 'lrelu' has one, leave it None")
        if self.clamp is not None and not self.clamp >= 0:
            raise ValueError(f"activation {self.name!r}: got clamp {self.clamp}; allowed is 0 or more, or None")

    @property
    def full_gain(self) -> float:
        """The gain, with the default put in."""
        return _ACTIVATIONS[self.name][1] if self.gain is None else self.gain


LINEAR = Activation()


def bias_act(x: Tensor, bias: Tensor | None = None, activation: Activation = LINEAR, *, dim: int = 1) -> Tensor:
    """Return `clamp(act(x + bias) * gain)` of the shape of `x`; `bias` `[x.shape[dim]]`. Twice differentiable."""
    run = select("bias_act", *(tensor for tensor in (x, bias) if tensor is not None))
    return run(x, bias, activation, dim=dim)


def bias_act_reference(
    x: Tensor, bias: Tensor | None = None, activation: Activation = LINEAR, *, dim: int = 1
) -> Tensor:
    """PyTorch implementation of `bias_act`."""
    check_bias(x, bias, dim)
    gain, rest = split_gain(activation)
    if bias is not None:
        shape = [1] * x.ndim
        shape[dim] = -1
        y = torch.add((bias * gain).to(x.dtype).reshape(shape), x, alpha=gain)
    else:
        y = x * gain if gain != 1 else x
    return activate(y, rest, inplace=y is not x and not torch.is_grad_enabled())


def check_bias(x: Tensor, bias: Tensor | None, dim: int) -> None:
    """Raise ValueError unless `bias` is None or has the size of dimension `dim` of `x`."""
    if bias is not None and bias.shape != x.shape[dim : dim + 1]:
        raise ValueError(
            f"bias_act: bias of shape {list(bias.shape)} for x of shape {list(x.shape)}; "
            f"allowed is [{x.shape[dim]}], the size of dimension {dim}"
        )


def split_gain(activation: Activation) -> tuple[float, Activation]:
    """Split into a factor to apply beforehand and the rest, so that the gain costs no pass over memory of its own."""
    gain = activation.full_gain
    if activation.name in HOMOGENEOUS and gain > 0:
        return gain, replace(activation, gain=1.0)
    return 1.0, activation


def activate(x: Tensor, activation: Activation, *, inplace: bool) -> Tensor:
    """Apply activation, gain and clamp; with `inplace`, which autograd must not see, `x` may be overwritten."""
    gain, clamp = activation.full_gain, activation.clamp
    if activation.name == "lrelu":
        y = F.leaky_relu(x, LRELU_SLOPE if activation.alpha is None else activation.alpha, inplace)
    else:
        y = _ACTIVATIONS[activation.name][0](x)
    if gain != 1:
        y = y.mul_(gain) if inplace else y * gain
    if clamp is not None:
        y = y.clamp_(-clamp, clamp) if inplace else y.clamp(-clamp, clamp)
    return y
