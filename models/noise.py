"""The noise that StyleGAN, StyleGAN2 and StyleGAN-T add in each layer: part of a sample, fixed, or none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from models.spec import Latents, NoiseMode


def draw_with_noise(
    rng: np.random.Generator, z_dim: int, shapes: Iterable[tuple[int, ...]], mode: NoiseMode
) -> Latents:
    """Draw the latent `z` of one sample and, in mode "random", its noise `noise_0`, `noise_1`, ... of these shapes."""
    wanted: dict[str, tuple[int, ...]] = {"z": (z_dim,)}
    if mode == "random":
        wanted |= {f"noise_{i}": shape for i, shape in enumerate(shapes)}
    return {name: torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for name, shape in wanted.items()}


def drawn_noise(latents: Latents, mode: NoiseMode) -> list[Tensor] | None:
    """The noise among stacked latents, layer by layer; None unless the mode is "random"."""
    if mode != "random":
        return None
    return [latents[f"noise_{i}"] for i in range(sum(name.startswith("noise_") for name in latents))]


def noise_maps_of(
    ws: Tensor, mode: NoiseMode, maps: Sequence[Tensor] | None, sizes: Sequence[int], consts: Iterable[Tensor]
) -> Sequence[Tensor | None] | None:
    """The map of each layer, `[r, r]` or `[N, 1, r, r]`, for a batch of style vectors; None for no noise at all.

    `maps`, `[N, r, r]` each, stand in for the maps that mode "random" would draw; `consts` are the fixed ones.

    Raises:
        ValueError: there is no such mode.
    """
    if mode not in get_args(NoiseMode):
        raise ValueError(f"noise_mode {mode!r} is not one of {', '.join(get_args(NoiseMode))}")
    if mode == "none" or not sizes:
        return None
    if mode == "const":
        return list(consts)
    if maps is not None:
        return [noise.unsqueeze(1).to(ws) for noise in maps]
    return [torch.randn(len(ws), 1, size, size, device=ws.device, dtype=ws.dtype) for size in sizes]
