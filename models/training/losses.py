"""The losses of StyleGAN2: non-saturating logistic (Goodfellow et al. 2014, arXiv:1406.2661) with R1 regularisation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Mean of `-log sigmoid(D(G(z)))` over logits `[N, 1]`."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean of `-log sigmoid(D(x))` plus mean of `-log(1 - sigmoid(D(G(z))))` over logits `[N, 1]`."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real_logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm `[N]` of the gradient of each logit by its image `[N, 3, H, W]`; differentiable once more.

    Mescheder et al. 2018 (arXiv:1801.04406), equation 9, without the factor gamma / 2. `images` must require
    a gradient.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))
