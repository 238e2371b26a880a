"""Augmentation whose strength follows how much a discriminator overfits.

Karras et al., "Training Generative Adversarial Networks with Limited Data" (arXiv:2006.06676), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.training.augment import AugmentConfig, AugmentPipe, named_augment_config


@dataclass(frozen=True, slots=True)
class AdaptiveAugmentation:
    """How images are changed, and how `p` follows r_t, the mean of sign(D(x)) over real images x (equation 1)."""

    pipe: AugmentConfig = field(default_factory=lambda: named_augment_config("bgc"))
    initial_p: float = 0.0
    target: float | None = 0.6  # of r_t; None: p stays as it is
    interval: int = 4  # steps over which r_t is taken
    images: float = 500_000  # p goes from 0 to 1 in so many real images at the fastest

    def next_p(self, p: float, r_t: float, count: int) -> float:
        """Where `p` goes after `count` real images, over which `r_t` was measured; never below 0."""
        if self.target is None:
            return p
        direction = (r_t > self.target) - (r_t < self.target)
        return max(p + direction * count / self.images, 0.0)


class Augmenter:
    """An augmentation pipe with its random numbers, which a training loop tells what the discriminator thinks."""

    def __init__(self, spec: AdaptiveAugmentation, seed: int, device: str) -> None:
        self.spec = spec
        self.pipe = AugmentPipe(spec.pipe).to(device)
        self.pipe.p.fill_(spec.initial_p)
        self.generator = torch.Generator().manual_seed(seed)
        self._signs: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Change images `[N, C, H, W]`; twice differentiable."""
        changed: Tensor = self.pipe(images, self.generator)
        return changed

    def observe(self, real_logits: Tensor) -> None:
        """Take in the logits `[N, 1]` of the real images of one step; every `interval` steps `p` moves."""
        self._signs.append(real_logits.detach().sign())
        if len(self._signs) == self.spec.interval:
            signs = torch.cat(self._signs)
            self.pipe.p.fill_(self.spec.next_p(self.pipe.p.item(), signs.mean().item(), len(signs)))
            self._signs.clear()
