"""What the registry says of a model, and the protocol that every generator keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

Conditioning = Literal["none", "class", "text"]
NoiseMode = Literal["random", "const", "none"]
Latents = dict[str, Tensor]
Condition = Tensor | Sequence[str] | None  # int64 labels [N]; prompts, or their features float [N, D]; nothing


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How `sample` makes images; the defaults are those of the papers' FID. A family reads what it has."""

    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None  # truncate the first so many style vectors; None: all
    noise_mode: NoiseMode = "random"
    force_fp32: bool = False


class ImageGenerator(Protocol):
    """A generator of any family, GAN or diffusion.

    A sample is drawn in two steps, so that it can't depend on the batch it is drawn in: `draw` makes the
    random numbers of one sample on the CPU, `images` or `sample` turns a stacked batch of these into pixels.
    """

    resolution: int
    conditioning: Conditioning
    num_classes: int  # 0 unless conditioning is "class"
    nfe: int  # evaluations of the network for one image
    settings: SamplingSettings

    def draw(self, rng: np.random.Generator) -> Latents:
        """Draw the random numbers of one sample: float32 CPU tensors without a batch dimension."""
        ...

    def images(self, latents: Latents, condition: Condition = None) -> Tensor:
        """Generate images `[N, 3, H, W]` in [-1, 1], not yet rounded, from latents and what `conditioning` asks for."""
        ...

    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        """The same as uint8 pixels, rounded as the official code of the family does."""
        ...


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """An official weight file: where it is, what it must hash to, and on what terms it may be used."""

    url: str
    licence: str
    sha256: str | None = None  # None: never seen by us; pinned at first use


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One published configuration of one model."""

    name: str  # "stylegan2-ffhq-1024"
    family: str  # "StyleGAN2", as papers print it
    target: str  # "module:function"; the function takes `kwargs` and returns an ImageGenerator
    dataset: str  # key of a data set, "any" for a configuration that was never published with weights
    resolution: int
    conditioning: Conditioning = "none"
    num_classes: int = 0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: CheckpointSpec | None = None
    reported_as: str | None = None  # system of results/reported.csv, or "system: words of the variant"
    shipped_weights: Path | None = None  # a file in models/weights; self-trained, for the embedded data set

    @property
    def licence(self) -> str:
        """The terms of the published weights."""
        return self.checkpoint.licence if self.checkpoint else "no published weights"
