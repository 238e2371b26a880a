"""StyleGAN-T's synthesis network written down plainly: an oracle for options that no golden case has."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models.stylegan_t import StyleGANTGenerator


class PlainSynthesis:
    """One weight a sample, borders by padding the image generously."""

    def __init__(self, generator: StyleGANTGenerator) -> None:
        self.generator, self.config = generator, generator.config
        self.state = generator.state_dict()
        taps = torch.tensor(self.config.resample_filter, dtype=torch.float64)
        self.fir = torch.outer(taps, taps) / taps.sum().square()

    def image(self, ws: Tensor) -> Tensor:
        image: Tensor = torch.zeros(0)
        index = 0
        for resolution in self.config.resolutions:
            name = f"synthesis.b{resolution}"
            if index == 0:
                x = self.generator.get_submodule(f"{name}.input")(ws[:, 0])
            else:
                x = self.layer(f"{name}.conv0", x, ws[:, index], 1.0)
            for i in range(2 * self.config.num_res_blocks):
                x = self.layer(f"{name}.convs1.{i}", x, ws[:, index + 1 + i], math.sqrt(0.5))
            index += 1 + 2 * self.config.num_res_blocks
            if f"{name}.torgb.bias" in self.state:
                rgb = self.to_rgb(f"{name}.torgb", x, ws[:, index])
                image = rgb + self.doubled(image) if image.numel() else rgb
        return image

    def styles(self, name: str, w: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.affine.proj.weight"], self.state[f"{name}.affine.proj.bias"]
        a, b, c = (w @ (weight.T / math.sqrt(w.shape[1])) + bias).chunk(3, dim=1)
        styles: Tensor = a * b + c
        return styles

    def layer(self, name: str, x: Tensor, w: Tensor, gain: float) -> Tensor:
        weight = self.state[f"{name}.weight"] * self.styles(name, w)[:, None, :, None, None]
        weight = weight / (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
        if f"{name}.gamma" in self.state:
            groups = x.unflatten(1, (self.config.gn_groups, -1))
            variance, mean = torch.var_mean(groups, (2, 3, 4), correction=0, keepdim=True)
            x = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
            x = x * self.state[f"{name}.norm.weight"][:, None, None] + self.state[f"{name}.norm.bias"][:, None, None]
        y = self.convolved_up(x, weight) if name.endswith("conv0") else self.convolved(x, weight)
        if f"{name}.noise_const" in self.state:
            y = y + self.state[f"{name}.noise_const"] * self.state[f"{name}.noise_strength"]
        activation = {"lrelu": lambda v: F.leaky_relu(v, 0.2) * math.sqrt(2), "tanh": torch.tanh}
        y = y + self.state[f"{name}.bias"][:, None, None]
        y = self.clamped(activation[self.config.activation](y), gain)
        return (y * self.state[f"{name}.gamma"] + x) * math.sqrt(2) if f"{name}.gamma" in self.state else y

    def clamped(self, y: Tensor, gain: float) -> Tensor:
        limit = math.inf if self.config.conv_clamp is None else self.config.conv_clamp
        return y.clamp(-limit, limit) * gain

    def to_rgb(self, name: str, x: Tensor, w: Tensor) -> Tensor:
        styles = self.styles(name, w) / math.sqrt(x.shape[1])
        y = self.convolved(x, self.state[f"{name}.weight"] * styles[:, None, :, None, None])
        return self.clamped(y + self.state[f"{name}.bias"][:, None, None], 1.0)

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        pairs = zip(x, weight, strict=True)
        return torch.stack([F.conv2d(one, kernel, padding=weight.shape[-1] // 2) for one, kernel in pairs])

    def convolved_up(self, x: Tensor, weight: Tensor) -> Tensor:
        margin = 4
        wide = self.convolved(self.doubled(F.pad(x, [margin] * 4)), weight.flip((3, 4)))
        return wide[:, :, 2 * margin : -2 * margin, 2 * margin : -2 * margin]

    def doubled(self, x: Tensor) -> Tensor:
        stuffed = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3], dtype=x.dtype)
        stuffed[:, :, ::2, ::2] = x
        before, after = (len(self.fir) + 1) // 2, (len(self.fir) - 2) // 2
        padded = F.pad(stuffed, (before, after, before, after)).flatten(0, 1).unsqueeze(1)
        return F.conv2d(padded, 4 * self.fir.flip((0, 1))[None, None]).reshape(stuffed.shape)
