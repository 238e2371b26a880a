"""The training loop of StyleGAN2: alternating steps with Adam, lazy R1 regularisation and a moving average of weights.

Karras et al., arXiv:1912.04958, appendix B, and arXiv:2006.06676, appendix C. Without path length regularisation and
style mixing; adaptive augmentation is optional.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from models.layers import initialise, one_hot
from models.spec import Latents
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2_config import StyleGAN2Config
from models.training.augment_control import AdaptiveAugmentation, Augmenter
from models.training.losses import discriminator_loss, generator_loss, r1_penalty
from models.training.stylegan2_discriminator import DiscriminatorConfig, StyleGAN2Discriminator

Batch = tuple[Tensor, Tensor | None]  # images, uint8 [N, 3, H, W], and their int64 labels [N]


class DivergedError(ValueError):
    """A loss is no longer finite, so that there is nothing left to train."""


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """How a generator is trained; counts are of real images."""

    generator: StyleGAN2Config
    discriminator: DiscriminatorConfig
    images: int  # training ends once the discriminator has been shown so many
    learning_rate: float = 0.0025
    r1_gamma: float = 0.01
    r1_interval: int = 16  # steps; the penalty is added to one step in so many
    ema_images: float = 10_000  # half-life of the moving average
    ema_rampup: float | None = 0.05  # the half-life is at most this part of the images shown so far
    augmentation: AdaptiveAugmentation | None = None  # None: the discriminator sees images as they are
    seed: int = 0

    def ema_beta(self, batch_size: int, images_seen: int) -> float:
        """Weight that the moving average keeps in one step."""
        half_life = self.ema_images
        if self.ema_rampup is not None:
            half_life = min(half_life, images_seen * self.ema_rampup)
        return float(0.5 ** (batch_size / max(half_life, 1e-8)))


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did. `ema` is the average itself, not a copy: it changes with the next step."""

    images_seen: int
    discriminator_loss: float
    generator_loss: float
    augment_p: float  # strength of the augmentation, 0 without one
    ema: StyleGAN2Generator


def train(
    spec: TrainingSpec, batches: Iterator[Batch], on_step: Callable[[Step], None], device: str = "cpu"
) -> StyleGAN2Generator:
    """Train until `spec.images` were shown or the batches end; returns the moving average of the generator.

    Equal specs and batches give equal weights on the same machine with the same number of threads.

    Raises:
        ValueError: labels are missing or out of range.
        DivergedError: a loss is not finite.
    """
    training = _Training(spec, device)
    while training.images_seen < spec.images and (batch := next(batches, None)) is not None:
        on_step(training.step(*batch))
    return training.ema


class _Training:
    """Networks, optimisers and counters."""

    def __init__(self, spec: TrainingSpec, device: str) -> None:
        self.spec, self.device = spec, device
        self.images_seen = self.steps = 0
        self.generator = StyleGAN2Generator(spec.generator)
        self.discriminator = StyleGAN2Discriminator(spec.discriminator)
        initialise(self.generator, spec.seed)
        initialise(self.discriminator, spec.seed + 1)
        self.generator.to(device)
        self.discriminator.to(device)
        self.augmenter = Augmenter(spec.augmentation, spec.seed, device) if spec.augmentation else None
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.generator_adam = _adam(self.generator, spec.learning_rate)
        self.discriminator_adam = _adam(self.discriminator, spec.learning_rate, spec.r1_interval)

    def step(self, images: Tensor, labels: Tensor | None) -> Step:
        """Improve the generator, then the discriminator, then the average."""
        real = images.to(self.device).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        labels = labels if labels is None else labels.to(self.device)
        c = one_hot(labels, self.spec.generator.num_classes, like=real)
        losses = self._generator_step(c, len(real)), self._discriminator_step(real, c)
        if not np.isfinite(losses).all():
            raise DivergedError(
                f"losses {losses} after {self.images_seen} images. Lower the learning rate or raise r1_gamma"
            )
        self.steps += 1
        self.images_seen += len(real)
        self._average(len(real))
        p = self.augmenter.pipe.p.item() if self.augmenter else 0.0
        return Step(self.images_seen, losses[1], losses[0], p, self.ema)

    def _generator_step(self, c: Tensor | None, count: int) -> float:
        self.discriminator.requires_grad_(False)
        loss = generator_loss(self._judge(self._fake(c, count, "generator"), c))
        _minimise(loss, self.generator_adam)
        self.discriminator.requires_grad_(True)
        return loss.item()

    def _discriminator_step(self, real: Tensor, c: Tensor | None) -> float:
        with torch.no_grad():
            fake = self._fake(c, len(real), "discriminator")
        regularised = self.steps % self.spec.r1_interval == 0
        real.requires_grad_(regularised)
        real_logits = self._judge(real, c)
        loss = adversarial = discriminator_loss(real_logits, self._judge(fake, c))
        if self.augmenter:
            self.augmenter.observe(real_logits)
        if regularised:
            penalty = r1_penalty(real_logits, real).mean() * (self.spec.r1_gamma / 2)
            loss = loss + penalty * self.spec.r1_interval
        _minimise(loss, self.discriminator_adam)
        return adversarial.item()

    def _judge(self, images: Tensor, c: Tensor | None) -> Tensor:
        """Logits `[N, 1]` of images as the discriminator sees them, that is, after augmentation."""
        seen = self.augmenter(images) if self.augmenter else images
        return cast("Tensor", self.discriminator(seen, c))

    def _fake(self, c: Tensor | None, count: int, use: str) -> Tensor:
        """Draw images; the random numbers of a step depend on the seed and the step alone."""
        stream = self.steps * 2 + (use == "generator")
        rng = np.random.Generator(np.random.Philox(key=np.array([self.spec.seed, stream], dtype=np.uint64)))
        latents = _draw(self.spec.generator, count, rng, self.device)
        ws = self.generator.mapping(latents["z"], c, update_emas=use == "generator")
        return cast("Tensor", self.generator.synthesis(ws, "random", list(latents.values())[1:]))

    @torch.no_grad()
    def _average(self, batch_size: int) -> None:
        keep = self.spec.ema_beta(batch_size, self.images_seen)
        for mean, now in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - keep)
        for kept, buffer in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            kept.copy_(buffer)


def _adam(network: nn.Module, learning_rate: float, interval: int | None = None) -> torch.optim.Adam:
    """Adam; with an extra loss in one step of `interval`, rates as if it had a step of its own (appendix B)."""
    share = 1.0 if interval is None else interval / (interval + 1)
    return torch.optim.Adam(
        network.parameters(), lr=learning_rate * share, betas=(0.0, 0.99**share), eps=1e-8, fused=True
    )


def _minimise(loss: Tensor, adam: torch.optim.Adam) -> None:
    adam.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    adam.step()


def _draw(config: StyleGAN2Config, count: int, rng: np.random.Generator, device: str) -> Latents:
    """Draw the latents `[N, z_dim]` of a batch, and its noise maps `[N, r, r]`."""
    shapes = [(count, config.z_dim)] + [(count, size, size) for size in config.noise_resolutions]
    names = ["z", *(f"noise_{i}" for i in range(len(config.noise_resolutions)))]
    drawn = (torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device) for shape in shapes)
    return dict(zip(names, drawn, strict=True))
