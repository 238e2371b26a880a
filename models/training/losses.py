"""The losses of StyleGAN2: non-saturating logistic (Goodfellow et al. 2014, arXiv:1406.2661) with R1 regularisation.

StyleGAN-XL and StyleGAN-T take hinge losses (Lim and Ye 2017, arXiv:1705.02894), which they sum up differently: this
decides how much a guidance loss that is added to them weighs.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def stylegan_xl_generator_loss(fake_logits: Sequence[Tensor]) -> Tensor:
    """Negated logits `[N, L]` of each backbone: mean over L, then the sum over images and backbones."""
    return torch.stack([-logits.mean(dim=1).sum() for logits in fake_logits]).sum()


def stylegan_xl_discriminator_loss(real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
    """Hinge losses of logits `[N, L]` of each backbone: mean over L, then the sum over images and backbones."""
    hinges = [F.relu(1 - logits) for logits in real_logits] + [F.relu(1 + logits) for logits in fake_logits]
    return torch.stack([hinge.mean(dim=1).sum() for hinge in hinges]).sum()


def stylegan_t_generator_loss(fake_logits: Tensor) -> Tensor:
    """Mean of the negated logits `[N, L]`, divided once more by N, the images of one device."""
    return -fake_logits.mean() / len(fake_logits)


def stylegan_t_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean hinge losses of logits `[N, L]`, divided once more by N, the images of one device."""
    real, fake = F.relu(1 - real_logits).mean(), F.relu(1 + fake_logits).mean()
    return real / len(real_logits) + fake / len(fake_logits)
