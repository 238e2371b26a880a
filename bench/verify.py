"""Correct before timed: no timing is taken of an output that was not checked in the same run."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.sampling import draw_latents, standin_text_features
from models.spec import Condition, ImageGenerator, Latents

MAX_GREY_LEVELS = 1  # float32 against float64 may round to the other side, no further
MIN_PSNR_DB = 35.0  # for networks that run partly in half precision


class VerificationError(RuntimeError):
    """An output was wrong, so it is not timed."""


@dataclass(frozen=True, slots=True)
class Verification:
    """How far the checked output was from the float64 one, in grey levels of 255."""

    max_grey_levels: int
    psnr_db: float


def draw_batch(generator: ImageGenerator, batch_size: int, device: torch.device) -> tuple[Latents, Condition]:
    """Latents and classes or text features of the first samples of seed 0, stacked on the device."""
    latents = draw_latents(generator, 0, range(batch_size), device)
    if generator.conditioning == "class":
        return latents, torch.arange(batch_size, device=device) % generator.num_classes
    if generator.conditioning == "text":
        return latents, standin_text_features(generator, [f"sample {i}" for i in range(batch_size)], device)
    return latents, None


def difference(images: Tensor, exact: Tensor) -> Verification:
    """How far uint8 images are from others."""
    levels = (images.to(torch.int16) - exact.to(torch.int16)).abs()
    mean_square = float(levels.double().square().mean())
    psnr_db = float("inf") if mean_square == 0 else float(10 * torch.log10(torch.tensor(255.0**2 / mean_square)))
    return Verification(int(levels.max()), psnr_db)


def verify_generator(generator: ImageGenerator, device: torch.device) -> Verification:
    """Compare one image with the same network in float64, and with itself inside a batch of two."""
    if not isinstance(generator, nn.Module):
        raise TypeError("only a torch module can be compared with its float64 copy")
    latents, condition = draw_batch(generator, 2, device)
    first = {name: value[:1] for name, value in latents.items()}
    first_condition = None if condition is None else condition[:1]
    image = generator.sample(first, first_condition)
    if image.dtype != torch.uint8 or image.shape[1:] != (3, generator.resolution, generator.resolution):
        raise VerificationError(f"the image is {image.dtype} {list(image.shape)}; uint8 [1, 3, R, R] is expected")
    exact_generator = copy.deepcopy(generator).double()
    exact = exact_generator.sample({name: value.double() for name, value in first.items()}, first_condition)
    against_exact = difference(image, exact)
    in_batch = difference(generator.sample(latents, condition)[:1], image)
    for what, found in (("its float64 copy", against_exact), ("itself in a batch of two", in_batch)):
        half_may_run = device.type == "cuda"
        near_enough = half_may_run and found.psnr_db >= MIN_PSNR_DB
        if found.max_grey_levels > MAX_GREY_LEVELS and not near_enough:
            raise VerificationError(
                f"the image differs from {what} by {found.max_grey_levels} grey levels "
                f"({found.psnr_db:.1f} dB); allowed are {MAX_GREY_LEVELS}, or {MIN_PSNR_DB} dB on a GPU"
            )
    return against_exact
