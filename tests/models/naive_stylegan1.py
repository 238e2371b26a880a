"""StyleGAN (2018) by its formulas, from a state dict and official arguments: slow, and shares nothing with `models`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def styles(state: State, kwargs: dict[str, Any], z: Tensor, label: Tensor | None = None) -> Tensor:
    """Style vectors `[N, num_layers, w_dim]`."""
    x = z if label is None else torch.cat([z, label @ state["mapping.label_weight"]], dim=1)
    x = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
    lr_mul = kwargs.get("mapping_lr_mul", 0.01)
    for i in range(kwargs.get("mapping_layers", 8)):
        x = _lrelu(_dense(state, f"mapping.dense{i}", x, kwargs, lr_mul=lr_mul))
    layers = 2 * int(math.log2(kwargs["resolution"])) - 2
    return x.reshape(len(x), layers, -1) if kwargs.get("repeat_w", True) is False else torch.stack([x] * layers, dim=1)


def images(state: State, kwargs: dict[str, Any], ws: Tensor, lod: float = 0.0) -> Tensor:
    """Images with the stored noise: those of the two stages on either side of `lod`, mixed."""
    sizes = [4 * 2**i for i in range(int(math.log2(kwargs["resolution"])) - 1)]
    x = torch.zeros(())
    grown = []  # the image of each stage at full resolution
    for i, size in enumerate(sizes):
        for layer in (2 * i, 2 * i + 1):
            x = _layer(state, kwargs, (layer, size), x, ws[:, layer])
        weight = state[f"synthesis.output{i}.weight"] * _factor(state[f"synthesis.output{i}.weight"], kwargs, gain=1.0)
        color = F.conv2d(x, weight) + state[f"synthesis.output{i}.bias"][:, None, None]
        for _ in range(len(sizes) - 1 - i):
            color = _nearest(color)
        grown.append(color)
    part = lod - math.floor(lod)
    stage = len(sizes) - 1 - math.floor(lod)
    image = grown[stage] * (1 - part) + (grown[stage - 1] * part if part else 0)
    return image.tanh() if kwargs.get("final_tanh") else image


def scores(state: State, kwargs: dict[str, Any], image: Tensor, label: Tensor | None = None, lod: int = 0) -> Tensor:
    """Scores `[N, 1]` at a whole lod."""
    image = F.avg_pool2d(image, 2**lod)
    x = _lrelu(_conv(state, f"input{lod}", image, kwargs))
    last = int(math.log2(kwargs["resolution"])) - 2
    for i in range(lod, last):
        x = _lrelu(_conv(state, f"layer{2 * i}", x, kwargs))
        x = F.conv2d(x, state[f"layer{2 * i + 1}.blur.kernel"], padding=1, groups=x.shape[1])
        bias = state[f"layer{2 * i + 1}.bias"][:, None, None]
        x = _lrelu(F.avg_pool2d(_conv(state, f"layer{2 * i + 1}", x, kwargs) - bias, 2) + bias)
    group = min(kwargs.get("minibatch_std_group_size", 4), len(x))
    if group > 1:
        grouped = x.reshape(group, -1, *x.shape[1:])
        deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        x = torch.cat([x, deviation.repeat(group)[:, None, None, None].expand(-1, 1, 4, 4)], dim=1)
    x = _lrelu(_conv(state, f"layer{2 * last}", x, kwargs)).flatten(1)
    x = _lrelu(_dense(state, f"layer{2 * last + 1}", x, kwargs))
    x = _dense(state, f"layer{2 * last + 2}", x, kwargs, gain=1.0)
    return x if label is None else (x * label).sum(1, keepdim=True)


def _layer(state: State, kwargs: dict[str, Any], place: tuple[int, int], x: Tensor, w: Tensor) -> Tensor:
    name = f"synthesis.layer{place[0]}"
    x = _features(state, kwargs, place, x, w)
    noise, strength = state[f"{name}.apply_noise.noise"], state[f"{name}.apply_noise.weight"]
    spatial = kwargs.get("noise_type", "spatial") == "spatial"
    x = x + noise * (strength[:, None, None] if spatial else strength)
    x = _lrelu(x + state[f"{name}.bias"][:, None, None])
    x = x - x.mean((2, 3), keepdim=True)
    x = x / (x.square().mean((2, 3), keepdim=True) + 1e-8).sqrt()
    style = _dense(state, f"{name}.style", w, kwargs, gain=1.0)
    scale, shift = style.chunk(2, dim=1)
    return x * (scale + 1)[:, :, None, None] + shift[:, :, None, None]


def _features(state: State, kwargs: dict[str, Any], place: tuple[int, int], x: Tensor, w: Tensor) -> Tensor:
    index, size = place
    name = f"synthesis.layer{index}"
    if f"{name}.const" in state:
        return state[f"{name}.const"].expand(len(w), -1, -1, -1)
    weight = state[f"{name}.weight"] * _factor(state[f"{name}.weight"], kwargs)
    if index == 0:
        return torch.einsum("ni,oihw->nohw", w, weight.flip((2, 3)))
    if index % 2:
        return F.conv2d(x, weight, padding=1)
    fused = kwargs.get("fused_scale", "auto")
    if fused is True or (fused == "auto" and size >= 128):
        padded = F.pad(weight, (1, 1, 1, 1))
        spread = padded[:, :, 1:, 1:] + padded[:, :, :-1, 1:] + padded[:, :, 1:, :-1] + padded[:, :, :-1, :-1]
        y = F.conv_transpose2d(x, spread.transpose(0, 1), stride=2, padding=1)
    else:
        y = F.conv2d(_nearest(x), weight, padding=1)
    return F.conv2d(y, state[f"{name}.blur.kernel"], padding=1, groups=y.shape[1])


def _nearest(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def _lrelu(x: Tensor) -> Tensor:
    return torch.maximum(x, 0.2 * x)


def _factor(weight: Tensor, kwargs: dict[str, Any], gain: float = math.sqrt(2)) -> float:
    fan_in = math.prod(weight.shape[1:])
    return gain / math.sqrt(fan_in) if kwargs.get("use_wscale", True) else 1.0


def _conv(state: State, name: str, x: Tensor, kwargs: dict[str, Any]) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight * _factor(weight, kwargs), state[f"{name}.bias"], padding=weight.shape[2] // 2)


def _dense(
    state: State, name: str, x: Tensor, kwargs: dict[str, Any], gain: float = math.sqrt(2), lr_mul: float = 1.0
) -> Tensor:
    weight = state[f"{name}.weight"]
    return x @ (weight * (_factor(weight, kwargs, gain) * lr_mul)).T + state[f"{name}.bias"] * lr_mul


def randomised(shapes: Sequence[tuple[str, Tensor]], seed: int) -> State:
    """Numbers in place of a state dict in which nothing is zero; filters keep their values."""
    normal = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in shapes:
        drawn = torch.randn(value.shape, generator=normal)
        if name.startswith("mapping.dense"):
            drawn *= 100  # its learning rate multiplier takes this out again
        state[name] = value.clone() if name.endswith(("blur.kernel", "lod")) else drawn
    return state
