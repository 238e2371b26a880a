"""The StyleGAN-XL generator: StyleGAN3 layers of any chain of super-resolution stages, and pretrained class embeddings.

Sauer, Schwarz and Geiger, "StyleGAN-XL: Scaling StyleGAN to Large Diverse Datasets" (arXiv:2202.00273). Parameters and
buffers have the names of the official networks, so that their state dicts load as they are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from models.layers import FullyConnectedLayer, fill_normal, normalize_2nd_moment
from models.mapping import truncate
from models.stylegan3 import AliasFreeGenerator, SynthesisNetwork
from models.stylegan_xl_config import StyleGANXLConfig, config_of


class ClassEmbedding(nn.Module):
    """One-hot labels `[N, num_classes]` to rows `[N, dim]` of a table: mean features of each class, to start with."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, dim))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw random features; those of the classes of ImageNet only come with a checkpoint."""
        fill_normal(self.weight, rng)

    def forward(self, c: Tensor) -> Tensor:
        """Look up the rows."""
        return self.weight[c.argmax(1)]


class ClassMappingNetwork(nn.Module):
    """Latents and labels to style vectors, with an average for each class."""

    w_avg: Tensor
    centroids: Tensor | None

    def __init__(self, config: StyleGANXLConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = ClassEmbedding(config.embed_classes, config.embed_dim)  # there even where it is not used
        if config.num_classes or config.keeps_projection:
            self.embed_proj = FullyConnectedLayer(config.embed_dim, config.z_dim, "lrelu")
        widths = [config.z_dim * (2 if config.num_classes else 1), *[config.w_dim] * config.mapping_layers]
        for i, (width, out_width) in enumerate(pairwise(widths)):
            layer = FullyConnectedLayer(width, out_width, "lrelu", lr_multiplier=config.mapping_lr_multiplier)
            self.add_module(f"fc{i}", layer)
        shape = (config.num_classes, config.w_dim) if config.num_classes else (config.w_dim,)
        self.register_buffer("w_avg", torch.zeros(shape))
        self.register_buffer("centroids", None, persistent=False)  # [K, w_dim], for multi-modal truncation

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Forget the averages."""
        self.w_avg.zero_()

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> Tensor:
        """Map latents `[N, z_dim]` and one-hot labels `[N, num_classes]` to style vectors `[N, num_ws, w_dim]`.

        Truncation pulls the first `truncation_cutoff` vectors (None: all) towards the nearest of `centroids`, or if
        there are none towards the average of the class; `update_emas` moves the averages, as training does.

        Raises:
            ValueError: labels are missing.
        """
        w = self._styles(z, c)
        if update_emas:
            self._move_average(w.detach(), c)
        ws = w.unsqueeze(1).repeat(1, len(self.config.layers) + 1, 1)
        return ws if truncation_psi == 1 else truncate(ws, self._centers(w, c), truncation_psi, truncation_cutoff)

    def _styles(self, z: Tensor, c: Tensor | None) -> Tensor:
        w = normalize_2nd_moment(z.to(self.w_avg.dtype))
        if self.config.num_classes:
            if c is None:
                raise ValueError(f"no labels: this network is conditional on {self.config.num_classes} classes")
            w = torch.cat([w, normalize_2nd_moment(self.embed_proj(self.embed(c)))], dim=1)
        for i in range(self.config.mapping_layers):
            w = self.get_submodule(f"fc{i}")(w)
        return w

    def _centers(self, w: Tensor, c: Tensor | None) -> Tensor:
        """What each sample is pulled to, `[w_dim]` or `[N, 1, w_dim]`."""
        if self.centroids is not None:
            centroids = self.centroids.to(w)
            return centroids[torch.cdist(w, centroids).argmin(1)].unsqueeze(1)
        return self.w_avg if c is None or not self.config.num_classes else self.w_avg[c.argmax(1)].unsqueeze(1)

    def _move_average(self, w: Tensor, c: Tensor | None) -> None:
        beta = self.config.w_avg_beta
        if c is None or not self.config.num_classes:
            self.w_avg.copy_(w.mean(dim=0).lerp(self.w_avg, beta))
            return
        for label, style in zip(c.argmax(1), w, strict=True):  # one by one: a class may come twice
            self.w_avg[label] = style.lerp(self.w_avg[label], beta)


class StyleGANXLGenerator(AliasFreeGenerator):
    """The generator of a stem and its super-resolution stages."""

    target: ClassVar[str] = "models.stylegan_xl:build"
    mapping: ClassMappingNetwork

    def __init__(self, config: StyleGANXLConfig) -> None:
        synthesis = SynthesisNetwork(config.input, config.layers, config.w_dim, config.output_scale)
        super().__init__(ClassMappingNetwork(config), synthesis, config.z_dim, config.num_classes)
        self.config = config

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments of `build` that make this generator again."""
        return self.config.to_kwargs()

    @property
    def centroids(self) -> Tensor | None:
        """Centres `[K, w_dim]` of multi-modal truncation (arXiv:2202.12211); None: averages of the classes instead."""
        return self.mapping.centroids

    @centroids.setter
    def centroids(self, centers: Tensor | None) -> None:
        self.mapping.centroids = centers


def build(**kwargs: Any) -> StyleGANXLGenerator:
    """Make a generator of `StyleGANXLConfig` fields, or of a `stem` and `stages`; its weights are zero until set."""
    return StyleGANXLGenerator(config_of(**kwargs))
