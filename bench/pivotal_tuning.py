"""Pivotal tuning: after inversion, move the weights until the latent that was found gives the target.

Roich et al., "Pivotal Tuning for Latent-based Editing of Real Images" (arXiv:2106.05744), with the settings of
StyleGAN-XL's script: 350 steps, Adam at 3e-4 on all weights of the generator, and the sum of three terms at 256 pixels.
LPIPS and the mean squared error, both of pixels in [0, 255], pull to the target. The locality term holds the images
around the pivot: each step, a random w of truncation 0.5 is moved to the distance 30 from the pivot, and ten times the
LPIPS between its images before and after tuning is added.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.inversion import (
    INVERSION_PROTOCOLS,
    MEAN_SEED,
    PUBLISHED_STEPS,
    PerceptualLoss,
    checked_targets,
    compared,
    render,
)
from bench.sampling import sample_rng
from models.layers import one_hot

PUBLISHED_TUNING_STEPS = 350
LEARNING_RATE = 3e-4
LOCALITY_WEIGHT = 10.0
LOCALITY_DISTANCE = 30.0
LOCALITY_PSI = 0.5


@dataclass(frozen=True, slots=True)
class Pivot:
    """What is tuned for: a target, uint8 `[1, 3, R, R]`, and its style vectors `[1, num_ws, w_dim]`.

    `condition` is the text features `[1, D]` of a text-conditional generator: neighbours then share them. `index` seeds
    the neighbours, so that they don't depend on what was tuned before.
    """

    target: Tensor
    ws: Tensor
    index: int
    condition: Tensor | None = None


def tuning_steps(inversion_steps: int) -> int:
    """How many steps follow so many of inversion: 350 after 1000."""
    return max(1, round(PUBLISHED_TUNING_STEPS * inversion_steps / PUBLISHED_STEPS))


def planned_steps(tracks: Sequence[str], inversion_steps: int) -> tuple[int, int]:
    """Steps on latents and on weights that one target needs under all tracks; one pivot serves two of them."""
    chosen = [INVERSION_PROTOCOLS[name] for name in tracks]
    tuned = any(track.tunes_weights for track in chosen)
    latents = {track.latent for track in chosen}
    return len(latents) * inversion_steps, tuning_steps(inversion_steps) if tuned else 0


def tune(
    generator: Any, pivot: Pivot, perceptual: PerceptualLoss, num_steps: int, on_step: Callable[[], None]
) -> tuple[Tensor, Any]:
    """Tune a copy of the generator for one target; the generator itself stays as it is.

    The copy stays in evaluation mode, where an image of a BigGAN does not depend on its batch.

    Returns:
        The target's image, uint8 `[1, 3, R, R]`, and the tuned generator.
    """
    wanted = compared(checked_targets(generator, pivot.target))
    tuned = copy.deepcopy(generator).requires_grad_(True)
    parameters = list(tuned.parameters())
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    rng = sample_rng(MEAN_SEED, pivot.index, "latents")
    for _ in range(num_steps):
        image = compared(tuned.synthesis(pivot.ws, noise_mode="const"))
        squared_error = (127.5 * (image - wanted)).square().mean()
        loss = squared_error + perceptual.loss(image, wanted).sum()
        neighbour = neighbouring_ws(generator, pivot, rng)
        loss = loss + LOCALITY_WEIGHT * _moved(generator, tuned, neighbour, perceptual)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        on_step()
    tuned.requires_grad_(False)
    return render(tuned, pivot.ws), tuned


@torch.no_grad()
def neighbouring_ws(generator: Any, pivot: Pivot, rng: Any) -> Tensor:
    """Style vectors `[1, num_ws, w_dim]` at the distance 30 from the pivot, towards a random w of a random class.

    The distance is over all layers together. A BigGAN has no w to truncate: its z is drawn from N(0, 1).
    """
    device = pivot.ws.device
    z = torch.from_numpy(rng.standard_normal((1, generator.z_dim), dtype="float32")).to(device)
    c = pivot.condition
    if generator.conditioning == "class":
        c = one_hot(torch.tensor([int(rng.integers(generator.num_classes))]), generator.num_classes, like=z)
    direction = generator.mapping(z, c, truncation_psi=LOCALITY_PSI) - pivot.ws
    neighbour: Tensor = pivot.ws + LOCALITY_DISTANCE * direction / direction.norm()
    return neighbour


def _moved(generator: Any, tuned: Any, ws: Tensor, perceptual: PerceptualLoss) -> Tensor:
    """How far tuning has moved the image of `ws`."""
    with torch.no_grad():
        before = compared(generator.synthesis(ws, noise_mode="const"))
    after = compared(tuned.synthesis(ws, noise_mode="const"))
    # the published term gives the network numbers of [-1, 1] where it expects those of [0, 255]
    return perceptual.loss(after / 127.5 - 1, before / 127.5 - 1).sum()
