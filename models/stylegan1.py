"""The StyleGAN (2018) generator: mapping network, and a synthesis network of adaptive instance normalisation.

Karras et al., "A Style-Based Generator Architecture for Generative Adversarial Networks" (arXiv:1812.04958), config F,
with the growing of Karras et al., "Progressive Growing of GANs" (arXiv:1710.10196). Parameters and buffers have the
names of genforce's PyTorch network; `models.formats.tensorflow_names` gives these to the variables of the official one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, ClassVar, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import fill_normal, normalize_2nd_moment, one_hot, to_uint8
from models.mapping import truncate
from models.noise import draw_with_noise, drawn_noise
from models.spec import Condition, Conditioning, Latents, NoiseMode, SamplingSettings
from models.stylegan1_config import Scaling, StyleGAN1Config
from models.stylegan1_layers import (
    ConstInput,
    Convolution,
    Dense,
    StyleInput,
    SynthesisConv,
    SynthesisLayer,
    SynthesisUpConv,
    resolved_lod,
)


class SynthesisNetwork(nn.Module):
    """Style vectors to images, at any stage of growing."""

    lod: Tensor

    def __init__(self, config: StyleGAN1Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("lod", torch.zeros(()))
        to_rgb = Scaling(gain=1.0, equalized=config.equalized)
        for i, resolution in enumerate(config.resolutions):
            self.add_module(f"layer{2 * i}", _first_layer(config, resolution))
            self.add_module(f"layer{2 * i + 1}", SynthesisConv(config, resolution))
            channels = config.channels(resolution)
            self.add_module(f"output{i}", Convolution(channels, config.img_channels, 1, to_rgb, "linear"))

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Start with the network fully grown."""
        self.lod.zero_()

    def forward(
        self,
        ws: Tensor,
        noise_mode: NoiseMode = "random",
        noise_maps: Sequence[Tensor] | None = None,
        lod: float | None = None,
    ) -> Tensor:
        """Synthesise images `[N, img_channels, H, W]`, nominally in [-1, 1], from style vectors `[N, num_ws, w_dim]`.

        `noise_maps`, one batch of `config.noise_shapes` a layer, stand in for the noise that mode "random" would draw.
        `lod` counts the doublings that are still to grow, and fades between two of them; None is the stored one.

        Raises:
            ValueError: no such noise mode, or a lod beyond those of the network.
        """
        noises = self._noises(ws, noise_mode, noise_maps)
        lod = resolved_lod(lod, self.lod, len(self.config.resolutions) - 1)
        x: Tensor | None = None
        image: Tensor | None = None
        for i in range(len(self.config.resolutions)):
            level = len(self.config.resolutions) - 1 - i  # doublings that are yet to come
            if lod < level + 1:
                for layer in (2 * i, 2 * i + 1):
                    x = self.get_submodule(f"layer{layer}")(x, ws[:, layer], noises[layer])
            if image is not None:
                image = F.interpolate(image, scale_factor=2.0, mode="nearest")
            if level - 1 < lod < level + 1:
                rgb = self.get_submodule(f"output{i}")(x)
                image = rgb if image is None else image.lerp(rgb, level + 1 - lod)
        assert image is not None
        return image.tanh() if self.config.final_tanh else image

    def _noises(self, ws: Tensor, mode: NoiseMode, maps: Sequence[Tensor] | None) -> Sequence[Tensor | None]:
        if mode == "none":
            return [None] * self.config.num_ws
        if mode == "const":
            return [self.get_buffer(f"layer{i}.apply_noise.noise") for i in range(self.config.num_ws)]
        if mode != "random":
            raise ValueError(f"noise_mode {mode!r} is not one of {', '.join(get_args(NoiseMode))}")
        if maps is not None:
            return [noise.to(ws) for noise in maps]
        return [torch.randn(len(ws), *shape, device=ws.device, dtype=ws.dtype) for shape in self.config.noise_shapes]


def _first_layer(config: StyleGAN1Config, resolution: int) -> SynthesisLayer:
    if resolution > 4:
        return SynthesisUpConv(config, resolution)
    return ConstInput(config) if config.const_input else StyleInput(config)


class Truncation(nn.Module):
    """The average style vector."""

    w_avg: Tensor

    def __init__(self, config: StyleGAN1Config) -> None:
        super().__init__()
        self.register_buffer("w_avg", torch.zeros(config.mapping_widths[-1]))

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Forget the average."""
        self.w_avg.zero_()


class MappingNetwork(nn.Module):
    """Latents and labels to style vectors."""

    def __init__(self, config: StyleGAN1Config, truncation: Truncation) -> None:
        super().__init__()
        self.config = config
        self._truncation = (truncation,)  # in a tuple, since in state dicts it stands beside this network, not within
        if config.num_classes:
            self.label_weight = nn.Parameter(torch.zeros(config.num_classes, config.z_dim))
        scaling = Scaling(lr_multiplier=config.mapping_lr_multiplier, equalized=config.equalized)
        for i, (width, out_width) in enumerate(pairwise(config.mapping_widths)):
            self.add_module(f"dense{i}", Dense(width, out_width, scaling))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the vectors of the classes."""
        if self.config.num_classes:
            fill_normal(self.label_weight, rng)

    @property
    def w_avg(self) -> Tensor:
        """The average style vector, which truncation pulls towards."""
        return self._truncation[0].w_avg

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> Tensor:
        """Map latents `[N, z_dim]` and one-hot labels `[N, num_classes]` to style vectors `[N, num_ws, w_dim]`.

        Latents and embedded labels are joined, then normalised. Truncation pulls the first `truncation_cutoff` vectors
        (None: all) towards the average; the official samples have psi 0.7 and cutoff 8, the paper's metrics psi 1.
        `update_emas` moves the average, which only training should ask for.

        Raises:
            ValueError: labels are missing.
        """
        x = z.to(self.w_avg.dtype)
        if self.config.num_classes:
            if c is None:
                raise ValueError(f"no labels: this network is conditional on {self.config.num_classes} classes")
            x = torch.cat([x, self.embed(c)], dim=1)
        x = normalize_2nd_moment(x)
        for i in range(self.config.mapping_layers):
            x = self.get_submodule(f"dense{i}")(x)
        if update_emas:
            self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, self.config.w_avg_beta))
        ws = x.unsqueeze(1).repeat(1, self.config.num_ws, 1) if self.config.repeat_w else self._split(x)
        if truncation_psi == 1:
            return ws
        center = self.w_avg if self.config.repeat_w else self._split(self.w_avg[None])[:, :truncation_cutoff]
        return truncate(ws, center, truncation_psi, truncation_cutoff)

    def embed(self, c: Tensor) -> Tensor:
        """One-hot labels `[N, num_classes]` to vectors `[N, z_dim]`."""
        return c.to(self.label_weight.dtype) @ self.label_weight

    def _split(self, w: Tensor) -> Tensor:
        """`[N, num_ws * w_dim]` to `[N, num_ws, w_dim]`."""
        return w.view(-1, self.config.num_ws, self.config.w_dim)


class StyleGAN1Generator(nn.Module):
    """Mapping and synthesis network; keeps the protocol `ImageGenerator`. All weights are zero until set."""

    target: ClassVar[str] = "models.stylegan1:build"

    def __init__(self, config: StyleGAN1Config) -> None:
        super().__init__()
        self.config = config
        self.settings = SamplingSettings()
        self.nfe = 1
        self.resolution, self.num_classes = config.resolution, config.num_classes
        self.z_dim, self.num_ws = config.z_dim, config.num_ws
        self.conditioning: Conditioning = "class" if config.num_classes else "none"
        self.truncation = Truncation(config)
        self.mapping = MappingNetwork(config, self.truncation)
        self.synthesis = SynthesisNetwork(config)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments of `build` that make this generator again."""
        return asdict(self.config)

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: NoiseMode = "random",
    ) -> Tensor:
        """Map latents `[N, z_dim]` and one-hot labels `[N, num_classes]` to images `[N, C, H, W]` of [-1, 1]."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff)
        return cast("Tensor", self.synthesis(ws, noise_mode))

    def draw(self, rng: np.random.Generator) -> Latents:
        """Draw the latent `z` of one sample and, in noise mode "random", its noise `noise_0`, `noise_1`, ..."""
        return draw_with_noise(rng, self.z_dim, self.config.noise_shapes, self.settings.noise_mode)

    @torch.inference_mode()
    def images(self, latents: Latents, condition: Condition = None) -> Tensor:
        """Generate images `[N, C, H, W]` in [-1, 1] from stacked latents of `draw` and int64 `[N]` labels.

        Raises:
            ValueError: labels are missing, not wanted or out of range.
        """
        settings = self.settings
        z = latents["z"].to(self.mapping.w_avg)
        c = one_hot(condition, self.num_classes, like=z)
        ws = self.mapping(z, c, settings.truncation_psi, settings.truncation_cutoff)
        images: Tensor = self.synthesis(ws, settings.noise_mode, drawn_noise(latents, settings.noise_mode))
        return images

    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        """The images as uint8 `[N, C, H, W]`."""
        return to_uint8(self.images(latents, condition))


def build(**kwargs: Any) -> StyleGAN1Generator:
    """Make a generator of these `StyleGAN1Config` fields; its weights are zero until set."""
    return StyleGAN1Generator(StyleGAN1Config(**kwargs))
