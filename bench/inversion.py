"""Inversion: find the latent whose image is closest to a real one, as StyleGAN-XL's authors do.

Sauer et al., "StyleGAN-XL" (arXiv:2202.00273), section 4.2, after StyleGAN2's projector (arXiv:1912.04958, appendix D)
without its noise maps and noise on w. The start is the mean w of 10,000 samples. Adam runs for 1000 steps at a learning
rate of 0.1 with ramps: linear up over the first twentieth, cosine down over the last quarter. The loss is LPIPS
(VGG16) of pixels in [0, 255]; images above 256 pixels are averaged down to 256 first. Noise maps stay constant.

What is optimised:

| track | networks with a mapping network | BigGAN, which has none |
|---|---|---|
| `inversion@sgxl` | one w `[1, w_dim]`, repeated over all layers | z, from zero; the embedding of the class stays |
| `inversion@sgxl-w+` | a w for each layer `[num_ws, w_dim]` | z and the embedding of the class |
| `inversion@sgxl-pti` | as the first, then all weights | as the first, then all weights |

StyleGAN-T's style vectors hold the features of the text, which are optimised with the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import UserError, did_you_mean
from bench.sampling import QUANTISERS, sample_rng

PUBLISHED_STEPS = 1000
LEARNING_RATE = 0.1
RAMP_DOWN, RAMP_UP = 0.25, 0.05  # fractions of the steps
COMPARED_AT = 256
MEAN_SAMPLES, MEAN_SEED = 10_000, 123  # of the z whose mean w is the start
MAPPED_AT_ONCE = 1000  # style vectors of all layers: 80 MB

Latent = Literal["w", "w+"]


@dataclass(frozen=True, slots=True)
class InversionProtocol:
    """One way to invert an image, and what `ls protocols` says of it."""

    name: str
    summary: str
    paper: str
    latent: Latent
    tunes_weights: bool = False


INVERSION_PROTOCOLS: dict[str, InversionProtocol] = {
    protocol.name: protocol
    for protocol in (
        InversionProtocol(
            name="inversion@sgxl",
            summary="One w for all layers (BigGAN: z), 1000 steps on LPIPS from the mean w of the predicted class.",
            paper="Sauer et al. 2022, arXiv:2202.00273, table 5",
            latent="w",
        ),
        InversionProtocol(
            name="inversion@sgxl-w+",
            summary="The same with a w for each layer (BigGAN: z and class embedding).",
            paper="Abdal et al. 2019, arXiv:1904.03189",
            latent="w+",
        ),
        InversionProtocol(
            name="inversion@sgxl-pti",
            summary="inversion@sgxl, then 350 steps on all weights: LPIPS, squared error and a locality term.",
            paper="Roich et al. 2021, arXiv:2106.05744",
            latent="w",
            tunes_weights=True,
        ),
    )
}


class StyleGenerator(Protocol):
    """What inversion needs of a generator: a mapping to style vectors and a synthesis from them."""

    resolution: int
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


def inversion_protocol_named(name: str) -> InversionProtocol:
    """Look an inversion protocol up; the error names the nearest one."""
    if name in INVERSION_PROTOCOLS:
        return INVERSION_PROTOCOLS[name]
    hint = did_you_mean(name, INVERSION_PROTOCOLS)
    raise UserError(f"no inversion protocol {name!r}.{hint} There are {', '.join(INVERSION_PROTOCOLS)}.")


def learning_rate(step: int, num_steps: int) -> float:
    """The learning rate of a step: cosine ramp at the end, linear ramp at the start."""
    t = step / num_steps
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - t) / RAMP_DOWN))
    return LEARNING_RATE * down * min(1.0, t / RAMP_UP)


def has_mapping_network(generator: StyleGenerator) -> bool:
    """Whether there is a w; a BigGAN only joins z and the embedding of the class."""
    return isinstance(getattr(generator, "mapping", None), nn.Module)


def drawn_classes(posterior: Tensor, num_samples: int) -> Tensor:
    """Classes `[num_samples]`, int64, drawn from probabilities `[C]`; the same numbers draw those of every target."""
    levels = sample_rng(MEAN_SEED, 0, "label").random(num_samples)
    cumulated = posterior.double().cpu().numpy().cumsum()
    drawn = np.searchsorted(cumulated, levels * cumulated[-1], side="right")
    return torch.from_numpy(np.minimum(drawn, len(cumulated) - 1))


@torch.no_grad()
def mean_w(generator: StyleGenerator, conditions: Tensor | None, num_samples: int, device: torch.device) -> Tensor:
    """The start `[1, 1, w_dim]`: the mean w over z of RandomState(123).

    Without a mapping network it is z = 0, the mean of the latent, joined with the mean embedding.

    Args:
        generator: on `device`.
        conditions: what z is mapped under: None, one for all `[1, C]`, or one for each `[num_samples, C]`.
        num_samples: how many z.
        device: where to compute.
    """
    if not has_mapping_network(generator):
        c = cast("Tensor", conditions).mean(dim=0, keepdim=True)
        return generator.mapping(torch.zeros(1, generator.z_dim, device=device), c)
    z = torch.from_numpy(np.random.RandomState(MEAN_SEED).randn(num_samples, generator.z_dim)).float().to(device)
    each = None if conditions is None else conditions.expand(num_samples, -1)
    total: Tensor = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, num_samples, MAPPED_AT_ONCE):
        rows = slice(start, start + MAPPED_AT_ONCE)
        ws = generator.mapping(z[rows], None if each is None else each[rows])
        total = total + ws[:, 0].double().sum(dim=0)
    return (total / num_samples).float()[None, None]


def compared(images: Tensor) -> Tensor:
    """Images `[N, 3, H, W]` as the loss sees them: averaged down to 256 pixels if they are larger."""
    return F.interpolate(images, size=COMPARED_AT, mode="area") if images.shape[-1] > COMPARED_AT else images


def checked_targets(generator: StyleGenerator, targets: Tensor) -> Tensor:
    """Targets uint8 `[N, 3, R, R]` as float32 of [-1, 1]; ValueError for another size than the generator's."""
    size = generator.resolution
    if targets.dtype != torch.uint8 or targets.ndim != 4 or targets.shape[1:] != (3, size, size):
        raise ValueError(
            f"targets {targets.dtype} {list(targets.shape)}; the generator needs uint8 [N, 3, {size}, {size}]. "
            f"Prepare the images with `python -m bench dataset SRC DEST --resolution {size}`"
        )
    return targets.float() / 127.5 - 1


def render(generator: StyleGenerator, ws: Tensor) -> Tensor:
    """The images of style vectors `[N, num_ws, w_dim]`, uint8, rounded down as the published script writes them."""
    with torch.no_grad():
        images = generator.synthesis(ws, noise_mode="const")
    return QUANTISERS["truncate"](images)


def invert(
    generator: StyleGenerator,
    targets: Tensor,
    starts: Tensor,
    perceptual: PerceptualLoss,
    how: tuple[Latent, int],
    on_step: Callable[[], None],
) -> Tensor:
    """Optimise the latents of targets, all at once and each by itself.

    The losses are summed and Adam's state is of each number, so what becomes of a target doesn't depend on the others.

    Args:
        generator: its weights need no gradient.
        targets: uint8 `[N, 3, R, R]`, on the generator's device.
        starts: of `mean_w`, `[N, 1, w_dim]`.
        perceptual: the loss.
        how: latent space and number of steps.
        on_step: called after each step.

    Returns:
        Style vectors `[N, num_ws, w_dim]`; a diverged target's are not finite.
    """
    latent, num_steps = how
    wanted = compared(checked_targets(generator, targets))
    free = _free_part(generator, starts, latent).requires_grad_()
    optimiser = torch.optim.Adam([free], lr=LEARNING_RATE, betas=(0.9, 0.999))
    for step in range(num_steps):
        optimiser.param_groups[0]["lr"] = learning_rate(step, num_steps)
        images = generator.synthesis(_joined(generator, free, starts), noise_mode="const")
        loss = perceptual.loss(compared(images), wanted).sum()
        free.grad = torch.autograd.grad(loss, free)[0]
        optimiser.step()
        on_step()
    return _joined(generator, free.detach(), starts)


def _free_part(generator: StyleGenerator, starts: Tensor, latent: Latent) -> Tensor:
    if latent == "w+":
        return starts.repeat(1, generator.num_ws, 1)
    return starts.clone() if has_mapping_network(generator) else starts[..., : generator.z_dim].clone()


def _joined(generator: Any, free: Tensor, starts: Tensor) -> Tensor:
    fixed = starts[..., free.shape[-1] :].expand(-1, free.shape[1], -1)
    return torch.cat([free, fixed], dim=-1).expand(-1, generator.num_ws, -1)
