"""The StyleGAN-T generator: residual synthesis blocks with second-order styles, conditioned on CLIP text features.

Sauer et al., "StyleGAN-T: Unlocking the Power of GANs for Fast Large-Scale Text-to-Image Synthesis" (arXiv:2301.09515),
section 3.1. Parameters and buffers have the names of the official networks, so that their state dicts load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from kernels.bias_act import Activation
from kernels.group_norm import GroupNorm, group_norm
from kernels.modulated_conv import Epilogue, ModulatedConv, fuses, modulated_conv2d, modulated_conv2d_with_moments
from kernels.upfirdn2d import setup_filter, upsample2d
from models.clip_text import TextEncoder, encode_prompts, text_features
from models.fourier_input import SynthesisInput
from models.layers import FullyConnectedLayer, fill_normal, normalize_2nd_moment, scaled, to_uint8
from models.noise import draw_with_noise, drawn_noise, noise_maps_of
from models.spec import Condition, Conditioning, Latents, NoiseMode, SamplingSettings
from models.stylegan_t_config import LayerConfig, StyleGANTConfig

BANDWIDTH = 2  # of the Fourier input, in cycles an image
_RGB_STD = 0.1  # of the weights of ToRGB at the start of training


class MappingNetwork(nn.Module):
    """Latents and texts to style vectors: the mapped latent and the features of the text, side by side."""

    x_avg: Tensor

    def __init__(self, config: StyleGANTConfig) -> None:
        super().__init__()
        self.config = config
        names = [config.mapping_activation] * (config.mapping_layers - 1) + ["linear"]
        rate = config.mapping_lr_multiplier
        layers = (FullyConnectedLayer(config.z_dim, config.z_dim, name, lr_multiplier=rate) for name in names)
        self.mlp = nn.ModuleDict({f"fc{i}": layer for i, layer in enumerate(layers)})
        if config.text_encoder is not None:
            self.clip = TextEncoder(config.text_encoder)
            if self.clip.embed_dim != config.text_dim:
                raise ValueError(f"text_dim {config.text_dim}, but the features have {self.clip.embed_dim} numbers")
        self.register_buffer("x_avg", torch.zeros(config.z_dim))

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Forget the average."""
        self.x_avg.zero_()

    def forward(
        self,
        z: Tensor,
        c: Condition = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> Tensor:
        """Map latents `[N, z_dim]` and N texts, or their features `[N, text_dim]`, to styles `[N, num_ws, w_dim]`.

        Truncation pulls the mapped latent towards its average and leaves the text alone. `update_emas` moves the
        average, which only training should ask for.

        Raises:
            ValueError: texts are missing, not wanted or can't be read, or a truncation cut-off is given.
        """
        if truncation_cutoff is not None:
            raise ValueError(f"truncation_cutoff {truncation_cutoff}: StyleGAN-T truncates all styles; leave it None")
        x = normalize_2nd_moment(z.to(self.x_avg.dtype))
        for layer in self.mlp.values():
            x = layer(x)
        if update_emas:
            self.x_avg.copy_(x.detach().mean(dim=0).lerp(self.x_avg, self.config.x_avg_beta))
        if truncation_psi != 1:
            x = self.x_avg.lerp(x, truncation_psi)
        features = text_features(c, self.encoder, (len(x), self.config.text_dim))
        w = x if features is None else torch.cat([x, features.to(x)], dim=1)
        return w.unsqueeze(1).repeat(1, self.config.num_ws, 1)

    @property
    def encoder(self) -> TextEncoder | None:
        """The text encoder, if the generator has one."""
        return self.clip if self.config.text_encoder is not None else None


class StyleSplit(nn.Module):
    """Style vector to the factors of a convolution: of three linear maps, the product of two plus the third."""

    def __init__(self, w_dim: int, channels: int) -> None:
        super().__init__()
        self.proj = FullyConnectedLayer(w_dim, 3 * channels, bias_init=1)

    def forward(self, w: Tensor) -> Tensor:
        """Map `[N, w_dim]` to `[N, channels]` (section 3.1)."""
        first, second, third = self.proj(w).chunk(3, dim=1)
        return torch.addcmul(third, first, second)


class SynthesisLayer(nn.Module):
    """Modulated convolution, noise, bias and activation; a residual one normalises its input and adds it again."""

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        channels, size = config.out_channels, config.kernel_size
        self.affine = StyleSplit(config.w_dim, config.in_channels)
        self.weight = nn.Parameter(torch.zeros(channels, config.in_channels, size, size))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("resample_filter", setup_filter(config.resample_filter))
        if config.use_noise:
            self.register_buffer("noise_const", torch.zeros(config.resolution, config.resolution))
            self.noise_strength = nn.Parameter(torch.zeros(()))
        if config.residual:
            self.norm = nn.GroupNorm(config.gn_groups, channels)
            self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.activation = Activation(config.activation, clamp=config.conv_clamp)
        # the up-sampling layers were trained with true convolution, all others with correlation
        self.conv = ModulatedConv(up=config.up, padding=size // 2, flip_weight=config.up == 1)

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill_normal(self.weight, rng)
        self.bias.zero_()
        if self.config.use_noise:
            fill_normal(self.noise_const, rng)
            self.noise_strength.zero_()
        if self.config.residual:
            self.norm.weight.fill_(1)
            self.norm.bias.zero_()
            self.gamma.fill_(self.config.layer_scale_init)

    def forward(
        self, x: Tensor, w: Tensor, noise: Tensor | None, gain: float = 1.0, moments: Tensor | None = None
    ) -> Tensor:
        """Apply the layer to `[N, Cin, H, W]` under styles `[N, w_dim]`; noise is `[H, W]` or `[N, 1, H, W]`.

        `moments` of a residual layer's input are those that `with_moments` gave along with it.
        """
        if not self.config.residual:
            return modulated_conv2d(x, *self._styled(w), fir=self.resample_filter, epilogue=self._epilogue(noise, gain))
        norm = self.norm
        x = group_norm(x, GroupNorm(norm.num_groups, norm.weight, norm.bias, norm.eps), moments)
        y = modulated_conv2d(x, *self._styled(w), epilogue=self._epilogue(noise, gain))
        # what is added is the normalised input
        return torch.addcmul(x, y, self.gamma.to(y.dtype)).mul_(math.sqrt(2))

    def with_moments(
        self, x: Tensor, w: Tensor, noise: Tensor | None, gain: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """Apply a layer that only convolves; also return the moments of its output, where they cost nothing."""
        if not fuses(x, self.weight):
            return self(x, w, noise, gain), None
        return modulated_conv2d_with_moments(x, *self._styled(w), epilogue=self._epilogue(noise, gain))

    def _styled(self, w: Tensor) -> tuple[Tensor, Tensor, ModulatedConv]:
        return self.weight, self.affine(w), self.conv

    def _epilogue(self, noise: Tensor | None, gain: float) -> Epilogue:
        scaled_noise = None if noise is None else noise * self.noise_strength
        return Epilogue(scaled_noise, self.bias, scaled(self.activation, gain))


class ToRGBLayer(nn.Module):
    """Modulated 1x1 convolution to the channels of the image, without demodulation."""

    def __init__(self, config: StyleGANTConfig, resolution: int) -> None:
        super().__init__()
        channels = config.channels(resolution)
        self.affine = StyleSplit(config.w_dim, channels)
        self.weight = nn.Parameter(torch.zeros(config.img_channels, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.img_channels))
        self.activation = Activation("linear", clamp=config.conv_clamp)

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill_normal(self.weight, rng, _RGB_STD)
        self.bias.zero_()

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Turn features `[N, C, H, W]` into colours `[N, img_channels, H, W]` under styles `[N, w_dim]`."""
        styles = self.affine(w) / math.sqrt(self.weight.shape[1])
        epilogue = Epilogue(bias=self.bias, activation=self.activation)
        return modulated_conv2d(x, self.weight, styles, ModulatedConv(demodulate=False), epilogue=epilogue)


class SynthesisBlock(nn.Module):
    """The layers of one resolution: Fourier input or up-sampling layer, then pairs of a plain and a residual layer."""

    resample_filter: Tensor

    def __init__(self, config: StyleGANTConfig, resolution: int) -> None:
        super().__init__()
        self.is_half = config.is_half(resolution)
        self.is_first = resolution == config.resolutions[0]
        self.has_rgb = config.architecture == "skip" or resolution == config.resolution
        if self.is_first:
            self.input = SynthesisInput(config.w_dim, config.channels(resolution), resolution, resolution, BANDWIDTH)
        else:
            self.conv0 = SynthesisLayer(config.layer(resolution, up=2))
        residual = [False, True] * config.num_res_blocks
        self.convs1 = nn.ModuleList(SynthesisLayer(config.layer(resolution, residual=r)) for r in residual)
        if self.has_rgb:
            self.torgb = ToRGBLayer(config, resolution)
        self.register_buffer("resample_filter", setup_filter(config.resample_filter))

    @property
    def noise_consts(self) -> list[Tensor]:
        """The fixed noise map of each convolution."""
        layers = [*([] if self.is_first else [self.conv0]), *self.convs1]
        return [cast("SynthesisLayer", layer).noise_const for layer in layers]

    def forward(
        self, x: Tensor | None, image: Tensor | None, ws: Tensor, noises: Iterator[Tensor | None], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """Map features and image of half the resolution (None in the first block) to those of this one.

        Style vectors are `[N, convs + 1, w_dim]`; a noise map for each convolution is taken from `noises`.
        """
        x = self.input(ws[:, 0]).to(dtype) if x is None else self.conv0(x.to(dtype), ws[:, 0], next(noises))
        layers = zip(cast("Iterable[SynthesisLayer]", self.convs1), ws[:, 1:].unbind(1), strict=False)
        for (plain, plain_w), (residual, w) in zip(layers, layers, strict=False):
            x, moments = plain.with_moments(x, plain_w, next(noises), math.sqrt(0.5))
            x = residual(x, w, next(noises), math.sqrt(0.5), moments)
        if self.has_rgb:
            rgb = self.torgb(x, ws[:, -1]).to(ws.dtype)
            image = rgb if image is None else upsample2d(image, self.resample_filter) + rgb
        return cast("Tensor", x), image


class SynthesisNetwork(nn.Module):
    """Style vectors to images."""

    def __init__(self, config: StyleGANTConfig) -> None:
        super().__init__()
        self.config = config
        for resolution in config.resolutions:
            self.add_module(f"b{resolution}", SynthesisBlock(config, resolution))

    def forward(
        self,
        ws: Tensor,
        noise_mode: NoiseMode = "random",
        noise_maps: Sequence[Tensor] | None = None,
        force_fp32: bool = False,
    ) -> Tensor:
        """Synthesise images `[N, img_channels, H, W]`, nominally in [-1, 1] and not clamped, of `[N, num_ws, w_dim]`.

        `noise_maps`, `[N, r, r]` each, stand in for the maps that mode "random" would draw. Float16 runs on CUDA only.
        """
        consts = (noise for block in self.children() for noise in cast("SynthesisBlock", block).noise_consts)
        maps = noise_maps_of(ws, noise_mode, noise_maps, self.config.noise_resolutions, consts)
        noises = iter(maps or [None] * self.config.num_ws)
        x: Tensor | None = None
        image: Tensor | None = None
        half_may_run = ws.is_cuda and ws.dtype == torch.float32 and not force_fp32  # float64 copies stay exact
        for i, block in enumerate(cast("Iterable[SynthesisBlock]", self.children())):
            dtype = torch.float16 if block.is_half and half_may_run else ws.dtype
            start = i * self.config.convs_per_block
            # ToRGB shares its style vector with the first layer of the next block
            x, image = block(x, image, ws[:, start : start + self.config.convs_per_block + 1], noises, dtype)
        assert image is not None
        return image


class StyleGANTGenerator(nn.Module):
    """Mapping and synthesis network; keeps the protocol `ImageGenerator`. All weights are zero until set."""

    target: ClassVar[str] = "models.stylegan_t:build"

    def __init__(self, config: StyleGANTConfig) -> None:
        super().__init__()
        self.config = config
        self.settings = SamplingSettings()
        self.nfe = 1
        self.resolution, self.num_classes = config.resolution, 0
        self.z_dim, self.num_ws = config.z_dim, config.num_ws
        self.text_dim = config.text_dim
        self.conditioning: Conditioning = "text" if config.text_dim else "none"
        self.mapping = MappingNetwork(config)
        self.synthesis = SynthesisNetwork(config)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments of `build` that make this generator again."""
        return asdict(self.config)

    def forward(
        self,
        z: Tensor,
        c: Condition = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: NoiseMode = "random",
    ) -> Tensor:
        """Map latents `[N, z_dim]` and texts or their features to images `[N, img_channels, H, W]` of [-1, 1]."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff)
        return cast("Tensor", self.synthesis(ws, noise_mode))

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts to features `[N, text_dim]` of unit length, as `mapping` and `sample` take them.

        Raises:
            ValueError: the generator is unconditional or has no text encoder.
        """
        return encode_prompts(prompts, self.mapping.encoder, self.text_dim)

    def draw(self, rng: np.random.Generator) -> Latents:
        """Draw the latent `z` of one sample and, in noise mode "random", its maps `noise_0`, `noise_1`, ..."""
        shapes = ((size, size) for size in self.config.noise_resolutions)
        return draw_with_noise(rng, self.z_dim, shapes, self.settings.noise_mode)

    @torch.inference_mode()
    def images(self, latents: Latents, condition: Condition = None) -> Tensor:
        """Generate images `[N, 3, H, W]` in [-1, 1] from stacked latents of `draw` and N prompts.

        Instead of prompts, their CLIP features of unit length do, float `[N, text_dim]`; an unconditional generator
        takes neither.

        Raises:
            ValueError: texts are missing, not wanted or can't be read.
        """
        settings = self.settings
        z = latents["z"].to(self.mapping.x_avg)
        ws = self.mapping(z, condition, settings.truncation_psi, settings.truncation_cutoff)
        maps = drawn_noise(latents, settings.noise_mode)
        images: Tensor = self.synthesis(ws, settings.noise_mode, maps, settings.force_fp32)
        return images

    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        """The images as uint8 `[N, 3, H, W]`."""
        return to_uint8(self.images(latents, condition))


def build(**kwargs: Any) -> StyleGANTGenerator:
    """Make a generator of these `StyleGANTConfig` fields; its weights are zero until set.

    `num_classes`, which every registered model is given, is set aside: no class can condition this one.
    """
    fields = {name: value for name, value in kwargs.items() if name != "num_classes"}
    return StyleGANTGenerator(StyleGANTConfig(**fields))
