"""StyleGAN2 by its formulas, from a state dict and official arguments alone: slow, and nothing shared with `models`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": lambda x: x.clamp(min=0) * math.sqrt(2),
    "lrelu": lambda x: (x.clamp(min=0) + 0.2 * x.clamp(max=0)) * math.sqrt(2),
    "tanh": torch.tanh,
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "softplus": lambda x: (1 + x.exp()).log(),
    "swish": lambda x: x / (1 + (-x).exp()) * math.sqrt(2),
}


def generator(state: State, kwargs: dict[str, Any], z: Tensor, c: Tensor) -> Tensor:
    """Images of constant noise, without truncation."""
    w = mapping(state, kwargs.get("mapping_kwargs", {}), z, c)
    options = kwargs.get("synthesis_kwargs", {})
    image = x = torch.zeros(())
    resolution = 4
    while resolution <= kwargs["img_resolution"]:
        block = _below(state, f"synthesis.b{resolution}.")
        gain = math.sqrt(0.5) if options.get("architecture") == "resnet" and resolution > 4 else 1.0
        before = x
        if resolution == 4:
            x = block["const"].expand(len(w), -1, -1, -1)
        else:
            x = _modulated(_below(block, "conv0."), x, w, options, up=2)
        x = _modulated(_below(block, "conv1."), x, w, options, gain=gain)
        if "skip.weight" in block:
            weight = block["skip.weight"] / math.sqrt(before.shape[1])
            x = x + _up(F.conv2d(before, weight), block["skip.resample_filter"]) * gain
        if "torgb.weight" in block:
            layer = _below(block, "torgb.")
            styles = _affine(layer, w) / math.sqrt(x.shape[1])
            color = F.conv2d(x * styles[:, :, None, None], layer["weight"]) + layer["bias"][:, None, None]
            color = _clamp(color, options.get("conv_clamp"))
            image = color if image.ndim == 0 else _up(image, block["resample_filter"]) + color
        resolution *= 2
    return image


def discriminator(state: State, kwargs: dict[str, Any], image: Tensor, c: Tensor) -> Tensor:
    """Logits `[N, 1]`."""
    options, ending = kwargs.get("block_kwargs", {}), kwargs.get("epilogue_kwargs", {})
    activation, clamp = options.get("activation", "lrelu"), kwargs.get("conv_clamp")
    x = torch.zeros(())
    resolution = kwargs["img_resolution"]
    while resolution > 4:
        block = _below(state, f"b{resolution}.")
        gain = math.sqrt(0.5) if "skip.weight" in block else 1.0
        if "fromrgb.weight" in block:
            x = x + _clamp(_ACTIVATIONS[activation](_plain(block, "fromrgb", image)), clamp)
        before, x = x, _clamp(_ACTIVATIONS[activation](_plain(block, "conv0", x)), clamp)
        x = _clamp(_ACTIVATIONS[activation](_plain(block, "conv1", x, down=True)) * gain, clamp, gain)
        if "skip.weight" in block:
            x = x + _plain(block, "skip", before, down=True) * gain
        image = _down(image, block["resample_filter"]) if kwargs.get("architecture") == "skip" else image
        resolution //= 2
    return _epilogue(state, (clamp, ending), (x, image), mapping(state, kwargs.get("mapping_kwargs", {}), None, c))


def mapping(state: State, options: dict[str, Any], z: Tensor | None, c: Tensor) -> Tensor:
    """Style vectors `[N, w_dim]`."""
    parts = [] if z is None else [_normalised(z)]
    if "mapping.embed.weight" in state:
        weight = state["mapping.embed.weight"]
        parts.append(_normalised(c @ weight.T / math.sqrt(weight.shape[1]) + state["mapping.embed.bias"]))
    x, index, rate = torch.cat(parts or [c], dim=1), 0, options.get("lr_multiplier", 0.01)
    while f"mapping.fc{index}.weight" in state:
        weight, bias = state[f"mapping.fc{index}.weight"], state[f"mapping.fc{index}.bias"]
        y = x @ weight.T * rate / math.sqrt(weight.shape[1]) + bias * rate
        x = _ACTIVATIONS[options.get("activation", "lrelu")](y)
        index += 1
    return x


def _epilogue(
    state: State, options: tuple[float | None, dict[str, Any]], inputs: tuple[Tensor, Tensor], cmap: Tensor
) -> Tensor:
    (clamp, ending), (x, image) = options, inputs
    act = _ACTIVATIONS[ending.get("activation", "lrelu")]
    if "b4.fromrgb.weight" in state:
        x = x + act(_plain(_below(state, "b4."), "fromrgb", image))
    x = _with_deviation(x, ending.get("mbstd_group_size", 4), ending.get("mbstd_num_channels", 1))
    x = _clamp(act(_plain(_below(state, "b4."), "conv", x)), clamp).flatten(1)
    x = act(x @ state["b4.fc.weight"].T / math.sqrt(x.shape[1]) + state["b4.fc.bias"])
    y = x @ state["b4.out.weight"].T / math.sqrt(x.shape[1]) + state["b4.out.bias"]
    return (y * cmap).sum(1, keepdim=True) / math.sqrt(y.shape[1]) if "mapping.embed.weight" in state else y


def _with_deviation(x: Tensor, group_size: int | None, num_channels: int) -> Tensor:
    n, channels = x.shape[:2]
    group = min(group_size or n, n)
    maps = x.new_zeros(n, num_channels, *x.shape[2:])
    for sample in range(n):
        together = x[sample % (n // group) :: n // group]
        for f in range(num_channels):
            part = together[:, f * channels // num_channels : (f + 1) * channels // num_channels]
            maps[sample, f] = (part.var(0, unbiased=False) + 1e-8).sqrt().mean()
    return torch.cat([x, maps], dim=1)


def _modulated(layer: State, x: Tensor, w: Tensor, options: dict[str, Any], up: int = 1, gain: float = 1.0) -> Tensor:
    """One sample after the other, each with a weight of its own."""
    styles, weight, fir = _affine(layer, w), layer["weight"], _square(layer["resample_filter"])
    pad = weight.shape[2] // 2
    samples = []
    for sample, style in zip(x[:, None], styles, strict=True):
        own = weight * style[:, None, None]
        own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up == 2:  # true convolution after upsampling
            y = _fir(_stuffed(sample), fir * 4, (len(fir) + 1) // 2 + pad, (len(fir) - 2) // 2 + pad)
            samples.append(F.conv2d(y, own.flip((2, 3))))
        else:
            samples.append(F.conv2d(sample, own, padding=pad))
    y = torch.cat(samples)
    if "noise_const" in layer:
        y = y + layer["noise_const"] * layer["noise_strength"]
    y = _ACTIVATIONS[options.get("activation", "lrelu")](y + layer["bias"][:, None, None])
    return _clamp(y * gain, options.get("conv_clamp"), gain)


def _plain(block: State, name: str, x: Tensor, down: bool = False) -> Tensor:
    weight = block[f"{name}.weight"]
    pad = weight.shape[2] // 2
    scaled = weight / math.sqrt(weight[0].numel())
    if down:
        fir = _square(block[f"{name}.resample_filter"])
        x = F.conv2d(_fir(x, fir, (len(fir) - 1) // 2 + pad, (len(fir) - 2) // 2 + pad), scaled, stride=2)
    else:
        x = F.conv2d(x, scaled, padding=pad)
    return x + block[f"{name}.bias"][:, None, None] if f"{name}.bias" in block else x


def _up(x: Tensor, fir: Tensor) -> Tensor:
    fir = _square(fir)
    return _fir(_stuffed(x), fir * 4, (len(fir) + 1) // 2, (len(fir) - 2) // 2)


def _down(x: Tensor, fir: Tensor) -> Tensor:
    fir = _square(fir)
    return _fir(x, fir, (len(fir) - 1) // 2, (len(fir) - 2) // 2)[:, :, ::2, ::2]


def _stuffed(x: Tensor) -> Tensor:
    y = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    y[:, :, ::2, ::2] = x
    return y


def _fir(x: Tensor, fir: Tensor, before: int, after: int) -> Tensor:
    x = F.pad(x, [before, after, before, after])
    return torch.cat([F.conv2d(channel, fir.flip((0, 1))[None, None]) for channel in x.split(1, dim=1)], dim=1)


def _square(fir: Tensor) -> Tensor:
    return fir if fir.ndim == 2 else torch.outer(fir, fir)


def _affine(layer: State, w: Tensor) -> Tensor:
    return w @ layer["affine.weight"].T / math.sqrt(w.shape[1]) + layer["affine.bias"]


def _normalised(x: Tensor) -> Tensor:
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def _clamp(x: Tensor, bound: float | None, gain: float = 1.0) -> Tensor:
    return x if bound is None else x.clamp(-bound * gain, bound * gain)


def _below(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
