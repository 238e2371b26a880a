"""Inversion: find the w whose image is closest to a real one, and tell how close it came.

Optimised is one w, repeated over all layers, from the mean w, as StyleGAN2's projector does it (Karras et al. 2020,
appendix D) without its noise regularisation: noise maps stay constant. Adam, learning rate 0.1 with the published ramps
(cosine down over the last quarter, linear up over the first twentieth). The loss is LPIPS (VGG16) where its weights can
be had, else a stand-in. Images above 256 pixels are compared after area downsampling to 256.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.sampling import sample_rng
from models.layers import to_uint8

PUBLISHED_STEPS = 1000
LEARNING_RATE = 0.1
RAMP_DOWN, RAMP_UP = 0.25, 0.05  # fractions of the steps
COMPARED_AT = 256
W_SEED = 123  # of the z whose mean w is the start


class StyleGenerator(Protocol):
    """What inversion needs of a generator: a mapping to w and a synthesis from w."""

    num_ws: int
    z_dim: int

    def mapping(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Map z `[N, z_dim]`, under one-hot classes or text features, to ws `[N, num_ws, w_dim]`."""
        ...

    def synthesis(self, ws: Tensor, *, noise_mode: str) -> Tensor:
        """Images float32 `[N, 3, R, R]` in [-1, 1]."""
        ...


class PerceptualLoss(Protocol):
    """A differentiable distance of images float32 `[N, 3, H, W]` in [-1, 1]; one value an image."""

    name: str
    sha256: str
    official: bool

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances `[N]`."""
        ...

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances `[N]` of uint8 images."""
        ...


@dataclass(frozen=True, slots=True)
class InversionSpec:
    """How long to optimise, and from how many z the start is averaged."""

    num_steps: int = PUBLISHED_STEPS
    num_mean_samples: int = 10_000


def learning_rate(step: int, num_steps: int) -> float:
    """The learning rate of a step: cosine ramp at the end, linear ramp at the start."""
    t = step / num_steps
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - t) / RAMP_DOWN))
    return LEARNING_RATE * down * min(1.0, t / RAMP_UP)


def mean_w(generator: StyleGenerator, c: Tensor | None, num_samples: int, device: torch.device) -> Tensor:
    """The mean w `[1, 1, w_dim]` over seeded z, under the one condition `[1, C]` if there is one."""
    rng = sample_rng(W_SEED, 0, "latents")
    z = torch.from_numpy(rng.standard_normal((num_samples, generator.z_dim), dtype="float32")).to(device)
    with torch.no_grad():
        ws = generator.mapping(z, None if c is None else c.expand(num_samples, -1))
    return ws[:, :1].mean(dim=0, keepdim=True)


def _compared(images: Tensor) -> Tensor:
    size = min(images.shape[-1], COMPARED_AT)
    return F.interpolate(images, size=(size, size), mode="area")


def invert(
    generator: StyleGenerator,
    target: Tensor,
    c: Tensor | None,
    perceptual: PerceptualLoss,
    spec: InversionSpec,
    on_step: Callable[[], None],
) -> Tensor:
    """Optimise w for one target, uint8 `[3, R, R]`, under its condition `[1, C]`; returns the image, uint8 too."""
    device = target.device
    wanted = _compared(target[None].float() / 127.5 - 1)
    w = mean_w(generator, c, spec.num_mean_samples, device).requires_grad_()
    optimiser = torch.optim.Adam([w], lr=LEARNING_RATE, betas=(0.9, 0.999))
    for step in range(spec.num_steps):
        optimiser.param_groups[0]["lr"] = learning_rate(step, spec.num_steps)
        image = generator.synthesis(w.expand(-1, generator.num_ws, -1), noise_mode="const")
        loss = perceptual.loss(_compared(image), wanted).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        on_step()
    with torch.no_grad():
        image = generator.synthesis(w.expand(-1, generator.num_ws, -1), noise_mode="const")
    return to_uint8(image)[0]
