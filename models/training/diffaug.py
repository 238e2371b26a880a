"""Differentiable augmentation: colour, translation and cutout, the policy of both projected discriminators.

Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training" (arXiv:2006.10738), section 3, with the
smaller cutout of StyleGAN-XL (arXiv:2202.00273) and StyleGAN-T (arXiv:2301.09515). Drawing and applying are apart, so
that equal draws can be applied again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TRANSLATION_RATIO, CUTOUT_RATIO = 0.125, 0.2  # of height and width


@dataclass(frozen=True, slots=True)
class AugmentationDraws:
    """The random numbers of a batch, one row an image; vertical before horizontal."""

    brightness: Tensor  # [N], added
    saturation: Tensor  # [N], factor on the distance of each pixel from its own mean over channels
    contrast: Tensor  # [N], factor on the distance from the mean of the image
    shift: Tensor  # int64 [N, 2], pixels down and right
    cutout: Tensor  # int64 [N, 2], pixel in the centre of the box


def draw_augmentation(images: Tensor, generator: torch.Generator | None = None) -> AugmentationDraws:
    """Draw for images `[N, C, H, W]`; without a generator from torch's own of the images' device."""
    device = images.device if generator is None else generator.device

    def uniform(low: float, high: float) -> Tensor:
        drawn = torch.rand(len(images), generator=generator, device=device, dtype=images.dtype)
        return (drawn * (high - low) + low).to(images.device)

    def integers(bounds: list[tuple[int, int]]) -> Tensor:
        columns = [torch.randint(*bound, (len(images),), generator=generator, device=device) for bound in bounds]
        return torch.stack(columns, dim=1).to(images.device)

    height, width = images.shape[2:]
    reach = [_part(size, TRANSLATION_RATIO) for size in (height, width)]
    # a box of even size covers as much on either side of the image only if its centre may lie one pixel further
    last = [size - _part(size, CUTOUT_RATIO) % 2 for size in (height, width)]
    return AugmentationDraws(
        brightness=uniform(-0.5, 0.5),
        saturation=uniform(0, 2),
        contrast=uniform(0.5, 1.5),
        shift=integers([(-pixels, pixels + 1) for pixels in reach]),
        cutout=integers([(0, position + 1) for position in last]),
    )


def diff_augment(images: Tensor, draws: AugmentationDraws) -> Tensor:
    """Change colours, shift and cut a box out of each image `[N, C, H, W]` of [-1, 1]; what is uncovered is zero."""
    return _cut_out(_translate(_recolour(images, draws), draws.shift), draws.cutout)


def _recolour(images: Tensor, draws: AugmentationDraws) -> Tensor:
    brightness, saturation, contrast = (
        column[:, None, None, None] for column in (draws.brightness, draws.saturation, draws.contrast)
    )
    images = images + brightness
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * saturation + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean


def _translate(images: Tensor, shift: Tensor) -> Tensor:
    for axis in (2, 3):
        size = images.shape[axis]
        source = torch.arange(size, device=images.device) - shift[:, axis - 2, None]
        shape = [len(images), 1, 1, 1]
        shape[axis] = size
        inside = ((source >= 0) & (source < size)).to(images.dtype).view(shape)
        images = images.gather(axis, source.clamp(0, size - 1).view(shape).expand_as(images)) * inside
    return images


def _cut_out(images: Tensor, centers: Tensor) -> Tensor:
    def covered(size: int, center: Tensor) -> Tensor:
        box = _part(size, CUTOUT_RATIO)
        offset = torch.arange(size, device=images.device) - (center[:, None] - box // 2)
        return (offset >= 0) & (offset < box)

    rows, columns = (covered(images.shape[axis], centers[:, axis - 2]) for axis in (2, 3))
    kept = ~(rows[:, :, None] & columns[:, None, :])
    return images * kept.to(images.dtype).unsqueeze(1)


def _part(size: int, ratio: float) -> int:
    return int(size * ratio + 0.5)
