"""Perceptual path length: how far an image moves, as a network sees it, for a small step in latent space.

Karras et al., A Style-Based Generator Architecture for Generative Adversarial Networks (arXiv:1812.04948), section 4.1,
between the ends of a path in W and without a crop of faces, as StyleGAN2-ADA and StyleGAN3 measure it (`ppl2_wend`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

STEP = 1e-4  # of the way from one latent to the other
COMPARED_AT = 256  # pixels: larger images are averaged down by a whole factor
TRIMMED_PERCENT = 1.0  # of the distances at either end are left out of the mean

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def step_towards(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """The latents `[N, ...]` one `STEP` on the straight lines from `start` to `end`."""
    return start.lerp(end, STEP)


def step_distances(before: torch.Tensor, after: torch.Tensor, distance: Distance) -> torch.Tensor:
    """Distances `[N]` of images `[N, C, H, W]` in [-1, 1], one step apart and not rounded, over the squared step.

    `distance` compares images float32 `[N, 3, h, w]`; it is quadratic for small differences, as LPIPS is. Images of one
    channel are compared as grey ones.
    """
    pair = [_compared(images) for images in (before, after)]
    return distance(*pair) / STEP**2


def _compared(images: torch.Tensor) -> torch.Tensor:
    factor = images.shape[-1] // COMPARED_AT
    images = F.avg_pool2d(images, factor) if factor > 1 else images
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def kept_distances(distances: torch.Tensor) -> torch.Tensor:
    """The distances `[N]` without the smallest and the largest percent; those on the bounds are kept.

    The lower bound is the observed value below the percentile, the upper one that above. ValueError for none, or for
    values that aren't finite.
    """
    if distances.ndim != 1 or len(distances) == 0 or not torch.isfinite(distances).all():
        raise ValueError(f"distances {list(distances.shape)}; expected [N] finite values, N >= 1, one a path")
    values = distances.double().cpu()
    low = float(np.percentile(values.numpy(), TRIMMED_PERCENT, method="lower"))
    high = float(np.percentile(values.numpy(), 100 - TRIMMED_PERCENT, method="higher"))
    return values[(values >= low) & (values <= high)]


def path_length(distances: torch.Tensor) -> float:
    """The mean of `kept_distances`."""
    return float(kept_distances(distances).mean())
