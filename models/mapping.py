"""The mapping network that StyleGAN2, StyleGAN3 and their conditional discriminators share, and truncation.

Karras et al., "A Style-Based Generator Architecture for Generative Adversarial Networks" (arXiv:1812.04948), sections
2 and 3 and appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from models.layers import FullyConnectedLayer, normalize_2nd_moment


@dataclass(frozen=True, slots=True)
class MappingConfig:
    """Shapes and constants of a mapping network; None of `embed_features` and `layer_features` is `w_dim`."""

    z_dim: int  # 0: labels only, as in a discriminator
    num_classes: int
    w_dim: int
    num_ws: int | None  # None: the result is not repeated, and no average is kept
    num_layers: int = 8
    embed_features: int | None = None
    layer_features: int | None = None
    activation: str = "lrelu"
    lr_multiplier: float = 0.01
    w_avg_beta: float | None = 0.995  # None: no average is kept

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ValueError(f"mapping network of {self.num_layers} layers; allowed are 1 or more")
        if not self.z_dim and not self.num_classes:
            raise ValueError("mapping network without inputs: z_dim and num_classes are both 0; set one of them")

    @property
    def keeps_average(self) -> bool:
        """Whether there is an average, which truncation pulls to."""
        return self.num_ws is not None and self.w_avg_beta is not None

    @property
    def embed_width(self) -> int:
        """Width of the embedded labels."""
        if not self.num_classes:
            return 0
        return self.w_dim if self.embed_features is None else self.embed_features

    @property
    def widths(self) -> list[int]:
        """Width of the input and of the output of each layer."""
        inner = self.w_dim if self.layer_features is None else self.layer_features
        return [self.z_dim + self.embed_width, *[inner] * (self.num_layers - 1), self.w_dim]


class MappingNetwork(nn.Module):
    """Latents and labels to style vectors."""

    w_avg: Tensor

    def __init__(self, config: MappingConfig) -> None:
        super().__init__()
        self.config = config
        if config.num_classes:
            self.embed = FullyConnectedLayer(config.num_classes, config.embed_width)
        widths = config.widths
        for i, (width, out_width) in enumerate(pairwise(widths)):
            self.add_module(
                f"fc{i}",
                FullyConnectedLayer(width, out_width, config.activation, lr_multiplier=config.lr_multiplier),
            )
        if config.keeps_average:
            self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Forget the average."""
        if self.config.keeps_average:
            self.w_avg.zero_()

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> Tensor:
        """Map latents `[N, z_dim]` and one-hot labels `[N, num_classes]` to style vectors `[N, num_ws, w_dim]`.

        Latents and embedded labels are normalised each on their own. Truncation pulls the first `truncation_cutoff`
        vectors (None: all) towards the average; `update_emas` moves the average, which only training should ask for.
        Without `num_ws` the result is `[N, w_dim]`.

        Raises:
            ValueError: labels or latents are missing, or there is no average to pull to.
        """
        w = self._inputs(z, c)
        for i in range(self.config.num_layers):
            w = self.get_submodule(f"fc{i}")(w)
        if update_emas and self.config.keeps_average and self.config.w_avg_beta is not None:
            self.w_avg.copy_(w.detach().mean(dim=0).lerp(self.w_avg, self.config.w_avg_beta))
        if self.config.num_ws is None:
            return w
        ws = w.unsqueeze(1).repeat(1, self.config.num_ws, 1)
        if truncation_psi == 1:
            return ws
        if not self.config.keeps_average:
            raise ValueError(f"truncation_psi={truncation_psi}: this network keeps no average (w_avg_beta=None); use 1")
        return truncate(ws, self.w_avg, truncation_psi, truncation_cutoff)

    def _inputs(self, z: Tensor | None, c: Tensor | None) -> Tensor:
        dtype = self.fc0.weight.dtype if isinstance(self.fc0, FullyConnectedLayer) else torch.float32
        parts = []
        if self.config.z_dim:
            if z is None:
                raise ValueError(f"no latents: this network takes z of {self.config.z_dim} numbers")
            parts.append(normalize_2nd_moment(z.to(dtype)))
        if self.config.num_classes:
            if c is None:
                raise ValueError(f"no labels: this network is conditional on {self.config.num_classes} classes")
            parts.append(normalize_2nd_moment(self.embed(c.to(dtype))))
        return torch.cat(parts, dim=1)


def truncate(ws: Tensor, center: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
    """Pull the first `cutoff` (None: all) style vectors of `[N, num_ws, w_dim]` towards `center`: c + psi (w - c).

    `center` is `[w_dim]`, or whatever broadcasts against `ws`, such as `[N, 1, w_dim]` for one centre a sample.
    """
    truncated = center.lerp(ws[:, :cutoff], psi)
    return truncated if cutoff is None else torch.cat([truncated, ws[:, cutoff:]], dim=1)


def mix_styles(ws: Tensor, others: Tensor, layer: int) -> Tensor:
    """Join style vectors `[N, num_ws, w_dim]`: of `ws` before `layer`, of `others` from there on.

    Karras et al., arXiv:1812.04958, section 3.1: the early layers keep pose and shape of the one image, the late ones
    take colours and texture of the other.

    Raises:
        ValueError: the shapes differ, or there is no such layer.
    """
    if ws.shape != others.shape or not 0 <= layer <= ws.shape[1]:
        raise ValueError(
            f"mix_styles: vectors {list(ws.shape)} and {list(others.shape)} at layer {layer}; allowed are equal shapes "
            f"[N, num_ws, w_dim] and layers 0 to num_ws"
        )
    return torch.cat([ws[:, :layer], others[:, layer:]], dim=1)
