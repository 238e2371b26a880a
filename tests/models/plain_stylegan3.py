"""StyleGAN3's synthesis network step by step, as the paper's appendix has it; it shares the input only."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.stylegan3 import SynthesisLayer, SynthesisNetwork
from models.stylegan3_config import LayerSpec


def plain_synthesis(network: SynthesisNetwork, ws: Tensor) -> Tensor:
    """Images of the weights of a network."""
    x = network.input(ws[:, 0])
    for layer, w in zip(network.layers(), ws[:, 1:].unbind(1), strict=True):
        x = plain_layer(layer, x, w)
    scaled: Tensor = x * network.output_scale
    return scaled


def plain_layer(layer: SynthesisLayer, x: Tensor, w: Tensor) -> Tensor:
    """One layer: a weight for each sample, then everything at the rate that it is defined at."""
    spec, state = layer.spec, dict(layer.state_dict())
    styles = w @ state["affine.weight"].T / math.sqrt(w.shape[1]) + state["affine.bias"]
    weights = _weights(spec, state, styles)
    pad = spec.conv_kernel - 1
    y = torch.cat([F.conv2d(x[i : i + 1], weights[i], padding=pad) for i in range(len(x))])
    y = _upsampled(y + state["bias"][:, None, None], spec, state.get("up_filter"))
    slope, gain = (1.0, 1.0) if spec.is_torgb else (0.2, math.sqrt(2))
    y = torch.where(y > 0, y, y * slope) * gain
    y = y if spec.conv_clamp is None else y.clamp(-spec.conv_clamp, spec.conv_clamp)
    return _filtered(y, state.get("down_filter"))[:, :, :: spec.down_factor, :: spec.down_factor]


def _weights(spec: LayerSpec, state: Mapping[str, Tensor], styles: Tensor) -> Tensor:
    weight = state["weight"]
    if spec.is_torgb:
        styles = styles / math.sqrt(weight[0].numel())
        modulated = weight * styles[:, None, :, None, None]
    else:
        weight = weight / weight.square().mean((1, 2, 3), keepdim=True).sqrt()
        styles = styles / styles.square().mean().sqrt()
        modulated = weight * styles[:, None, :, None, None]
        modulated = modulated / (modulated.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    return modulated / state["magnitude_ema"].sqrt()


def _upsampled(x: Tensor, spec: LayerSpec, fir: Tensor | None) -> Tensor:
    up = spec.up_factor
    stuffed = x.new_zeros(*x.shape[:2], x.shape[2] * up, x.shape[3] * up)
    stuffed[:, :, ::up, ::up] = x
    return _filtered(F.pad(stuffed, spec.padding), fir) * up**2


def _filtered(x: Tensor, fir: Tensor | None) -> Tensor:
    if fir is None:
        return x
    if fir.ndim == 1:
        return _summed(_summed(x, fir[None]), fir[:, None])
    return _summed(x, fir)


def _summed(x: Tensor, taps: Tensor) -> Tensor:
    height, width = (size - count + 1 for size, count in zip(x.shape[2:], taps.shape, strict=True))
    total = x.new_zeros(*x.shape[:2], height, width)
    for i, row in enumerate(taps.flip((0, 1))):
        for j, tap in enumerate(row):
            total += x[:, :, i : i + height, j : j + width] * tap
    return total
