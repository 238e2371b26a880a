"""The StyleGAN2 and StyleGAN2-ADA generator: mapping network and skip, resnet or orig synthesis network.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv:1912.04958) and "Training Generative
Adversarial Networks with Limited Data" (arXiv:2006.06676). Parameters and buffers have the names of the official
PyTorch networks, so that their state dicts load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from kernels.bias_act import Activation
from kernels.conv2d_resample import ResampledConv
from kernels.modulated_conv import Epilogue, ModulatedConv
from kernels.synthesis_chain import StyledBlock, StyledConv, is_chained, synthesis_chain
from kernels.upfirdn2d import setup_filter, upsample2d
from models.layers import FIR_TAPS, FullyConnectedLayer, ResampledSkip, fill_normal, one_hot, scaled, to_uint8
from models.mapping import MappingNetwork
from models.noise import draw_with_noise, drawn_noise, noise_maps_of
from models.spec import Condition, Conditioning, Latents, NoiseMode, SamplingSettings
from models.stylegan2_config import StyleGAN2Config


class SynthesisLayer(nn.Module):
    """Modulated convolution, noise, bias and activation; doubles the resolution first where `up` is 2."""

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(self, config: StyleGAN2Config, resolution: int, up: int = 1) -> None:
        super().__init__()
        self.up, self.use_noise = up, config.use_noise
        self.activation = Activation(config.activation, clamp=config.conv_clamp)
        in_channels, out_channels = config.channels(resolution // up), config.channels(resolution)
        self.affine = FullyConnectedLayer(config.w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, config.kernel_size, config.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        # officially only layers that resample are told of another filter
        self.register_buffer("resample_filter", setup_filter(config.resample_filter if up > 1 else FIR_TAPS))
        if config.use_noise:
            self.noise_strength = nn.Parameter(torch.zeros(()))
            self.register_buffer("noise_const", torch.zeros(resolution, resolution))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill_normal(self.weight, rng)
        self.bias.zero_()
        if self.use_noise:
            fill_normal(self.noise_const, rng)
            self.noise_strength.zero_()

    def styled(self, w: Tensor, noise: Tensor | None, gain: float = 1.0) -> StyledConv:
        """The convolution of the layer under styles `[N, w_dim]`; noise is `[H, W]` or `[N, 1, H, W]`."""
        epilogue = Epilogue(
            noise=None if noise is None else noise * self.noise_strength,
            bias=self.bias,
            activation=scaled(self.activation, gain),
        )
        # the up-sampling layers were trained with true convolution, all others with correlation
        conv = ModulatedConv(up=self.up, padding=self.weight.shape[2] // 2, flip_weight=self.up == 1)
        return StyledConv(self.weight, self.affine(w), conv, epilogue, self.resample_filter)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None, gain: float = 1.0) -> Tensor:
        """Apply the layer to `[N, Cin, H, W]`."""
        return self.styled(w, noise, gain)(x)


class ToRGBLayer(nn.Module):
    """Modulated 1x1 convolution to colours, without demodulation."""

    def __init__(self, config: StyleGAN2Config, resolution: int) -> None:
        super().__init__()
        channels = config.channels(resolution)
        self.affine = FullyConnectedLayer(config.w_dim, channels, bias_init=1)
        self.weight = nn.Parameter(torch.zeros(config.img_channels, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.img_channels))
        self.activation = Activation("linear", clamp=config.conv_clamp)

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill_normal(self.weight, rng)
        self.bias.zero_()

    def styled(self, w: Tensor, fir: Tensor | None = None) -> StyledConv:
        """The convolution of the layer under styles `[N, w_dim]`."""
        styles = self.affine(w) / math.sqrt(self.weight.shape[1])
        epilogue = Epilogue(bias=self.bias, activation=self.activation)
        return StyledConv(self.weight, styles, ModulatedConv(demodulate=False), epilogue, fir)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Turn features `[N, C, H, W]` into colours `[N, img_channels, H, W]` under styles `[N, w_dim]`."""
        return self.styled(w)(x)


class SynthesisBlock(nn.Module):
    """The layers of one resolution."""

    resample_filter: Tensor

    def __init__(self, config: StyleGAN2Config, resolution: int) -> None:
        super().__init__()
        self.residual = config.architecture == "resnet" and resolution > 4
        self.has_rgb = config.architecture == "skip" or resolution == config.resolution
        self.is_half = config.is_half(resolution)
        self.num_convs = 1 if resolution == 4 else 2
        channels = config.channels(resolution)
        if resolution == 4:
            self.const = nn.Parameter(torch.zeros(channels, 4, 4))
        else:
            self.conv0 = SynthesisLayer(config, resolution, up=2)
        self.conv1 = SynthesisLayer(config, resolution)
        if self.residual:
            upsampling = ResampledConv(up=2)
            self.skip = ResampledSkip(config.channels(resolution // 2), channels, upsampling, config.resample_filter)
        if self.has_rgb:
            self.torgb = ToRGBLayer(config, resolution)
        self.register_buffer("resample_filter", setup_filter(config.resample_filter))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the constant input, which only the 4x4 block has."""
        if self.num_convs == 1:
            fill_normal(self.const, rng)

    @property
    def noise_consts(self) -> list[Tensor]:
        """The fixed noise map of each convolution."""
        return [layer.noise_const for layer in self.children() if isinstance(layer, SynthesisLayer)]

    def forward(
        self, x: Tensor | None, image: Tensor | None, ws: Tensor, noises: Sequence[Tensor | None], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """Map features and image of half the resolution (None at 4x4) to those of this one.

        Style vectors are `[N, num_convs + has_rgb, w_dim]`; `noises` has one map for each convolution.
        """
        # a copy: a view of a parameter asks for gradients even in inference mode, and FLOP counters trip over it
        x = self.const.repeat(len(ws), 1, 1, 1) if x is None else x
        x = self._features(x.to(dtype), ws, noises)
        if self.has_rgb:
            rgb = self.torgb(x, ws[:, self.num_convs]).to(ws.dtype)
            image = rgb if image is None else upsample2d(image, self.resample_filter) + rgb
        return x, image

    def styled(self, ws: Tensor, noises: Sequence[Tensor | None], dtype: torch.dtype) -> StyledBlock:
        """The layers of a block without residual, as `synthesis_chain` takes them."""
        layers = [layer for layer in self.children() if isinstance(layer, SynthesisLayer)]
        convs = [layer.styled(w, noise) for layer, w, noise in zip(layers, ws.unbind(1), noises, strict=False)]
        to_rgb = self.torgb.styled(ws[:, self.num_convs], self.resample_filter) if self.has_rgb else None
        return StyledBlock(convs, to_rgb, dtype)

    def _features(self, x: Tensor, ws: Tensor, noises: Sequence[Tensor | None]) -> Tensor:
        if self.num_convs == 1:
            return cast("Tensor", self.conv1(x, ws[:, 0], noises[0]))
        gain = math.sqrt(0.5) if self.residual else 1.0
        y = self.conv1(self.conv0(x, ws[:, 0], noises[0]), ws[:, 1], noises[1], gain)
        return cast("Tensor", self.skip(x, gain) + y if self.residual else y)


class SynthesisNetwork(nn.Module):
    """Style vectors to images."""

    def __init__(self, config: StyleGAN2Config) -> None:
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
        """Synthesise images `[N, img_channels, H, W]`, nominally of [-1, 1], not clamped, from `[N, num_ws, w_dim]`.

        `noise_maps`, `[N, r, r]` each, stand in for the maps that mode "random" would draw. Float16 runs on CUDA only.
        """
        consts = (noise for block in self.children() for noise in cast("SynthesisBlock", block).noise_consts)
        maps = noise_maps_of(ws, noise_mode, noise_maps, self.config.noise_resolutions, consts)
        noises = maps or [None] * (self.config.num_ws - 1)
        half_may_run = ws.is_cuda and ws.dtype == torch.float32 and not force_fp32  # float64 copies stay exact
        blocks = [cast("SynthesisBlock", block) for block in self.children()]
        inputs = []
        layer = 0
        for block in blocks:
            dtype = torch.float16 if block.is_half and half_may_run else ws.dtype
            end = layer + block.num_convs
            # ToRGB shares its style vector with the first convolution of the next block
            inputs.append((ws[:, layer : end + 1], noises[layer:end], dtype))
            layer = end
        if self.config.architecture != "resnet" and is_chained(ws, blocks[-1].resample_filter):
            styled = [block.styled(*given) for block, given in zip(blocks, inputs, strict=True)]
            return synthesis_chain(blocks[0].const[None], styled).to(ws.dtype)
        x: Tensor | None = None
        image: Tensor | None = None
        for block, given in zip(blocks, inputs, strict=True):
            x, image = block(x, image, *given)
        assert image is not None
        return image


class StyleGAN2Generator(nn.Module):
    """Mapping and synthesis network; keeps the protocol `ImageGenerator`. All weights are zero until set."""

    target: ClassVar[str] = "models.stylegan2:build"

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.settings = SamplingSettings()
        self.nfe = 1
        self.resolution, self.num_classes = config.resolution, config.num_classes
        self.z_dim, self.num_ws = config.z_dim, config.num_ws
        self.conditioning: Conditioning = "class" if config.num_classes else "none"
        self.mapping = MappingNetwork(config.mapping)
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
        """Map latents `[N, z_dim]` and one-hot labels `[N, num_classes]` to images `[N, img_channels, H, W]`."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff)
        return cast("Tensor", self.synthesis(ws, noise_mode))

    def draw(self, rng: np.random.Generator) -> Latents:
        """Draw the latent `z` of one sample and, in noise mode "random", its maps `noise_0`, `noise_1`, ..."""
        shapes = ((size, size) for size in self.config.noise_resolutions)
        return draw_with_noise(rng, self.z_dim, shapes, self.settings.noise_mode)

    @torch.inference_mode()
    def images(self, latents: Latents, condition: Condition = None) -> Tensor:
        """Generate images `[N, 3, H, W]` in [-1, 1] from stacked latents of `draw` and int64 `[N]` labels.

        Raises:
            ValueError: labels are missing, not wanted or out of range.
        """
        settings = self.settings
        z = latents["z"].to(next(self.parameters()))
        c = one_hot(condition, self.num_classes, like=z)
        ws = self.mapping(z, c, settings.truncation_psi, settings.truncation_cutoff)
        maps = drawn_noise(latents, settings.noise_mode)
        images: Tensor = self.synthesis(ws, settings.noise_mode, maps, settings.force_fp32)
        return images

    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        """The images as uint8 `[N, C, H, W]`."""
        return to_uint8(self.images(latents, condition))


def build(**kwargs: Any) -> StyleGAN2Generator:
    """Make a generator of these `StyleGAN2Config` fields; its weights are zero until set."""
    return StyleGAN2Generator(StyleGAN2Config(**kwargs))
