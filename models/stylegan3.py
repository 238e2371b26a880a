"""The StyleGAN3 generator, configurations T and R: alias-free synthesis from Fourier features.

Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv:2106.12423). Parameters and buffers have the names of
the official networks, so that their state dicts load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from kernels.bias_act import Activation
from kernels.conv_plan import remember
from kernels.demodulation import demodulation
from kernels.filtered_lrelu import FilteredLReLU, filtered_lrelu
from kernels.modulated_conv import Epilogue, ModulatedConv, fuses
from kernels.synthesis_chain import StyledConv
from models.filter_design import lowpass_filter
from models.fourier_input import SynthesisInput
from models.layers import FullyConnectedLayer, fill_normal, one_hot, to_uint8
from models.mapping import MappingNetwork
from models.spec import Condition, Conditioning, Latents, NoiseMode, SamplingSettings
from models.stylegan3_config import InputSpec, LayerSpec, StyleGAN3Config

REUSED_BYTES = 2**25  # larger blocks go back to the system each time, and page faults then cost a sixth of the time


def modulated_conv_with_gain(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    conv: ModulatedConv,
    *,
    input_gain: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Modulated convolution whose demodulation leaves `input_gain` `[]`, `[I]` or `[N, I]` in (appendix F).

    Before a demodulation, weight and styles are brought to a mean square of 1, else its epsilon would count where they
    are small; styles officially over the batch, here for each sample, which must not depend on its batch. Returns
    `[N, O, H, W]` with `bias` `[O]` added.
    """
    return balanced(StyledConv(weight, styles, conv, Epilogue(bias=bias)), input_gain)(x)


def balanced(layer: StyledConv, input_gain: Tensor | None) -> StyledConv:
    """The convolution of `modulated_conv_with_gain`, whose demodulation is a scale of its output."""
    if not layer.conv.demodulate:
        return layer if input_gain is None else replace(layer, styles=layer.styles * input_gain)
    weight = unit_weight(layer.weight)
    styles = layer.styles * layer.styles.square().mean(1, keepdim=True).rsqrt()
    root = math.sqrt(weight[0].numel())  # keeps the sums of the convolution within float16
    gained = styles / root if input_gain is None else styles / root * input_gain
    epilogue = replace(layer.epilogue, scale=demodulation(weight, styles) * root)
    return StyledConv(weight, gained, replace(layer.conv, demodulate=False), epilogue)


def unit_weight(weight: Tensor) -> Tensor:
    """Return `[O, I, k, k]` with a mean square of 1 for each output; made once for inference."""

    def make() -> Tensor:
        return weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()

    made: Tensor = make() if torch.is_grad_enabled() else remember(weight, "unit", make)
    return made


class SynthesisLayer(nn.Module):
    """Modulated convolution and leaky ReLU, the latter between low-pass filters at a higher sampling rate."""

    magnitude_ema: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(self, spec: LayerSpec, w_dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.affine = FullyConnectedLayer(w_dim, spec.in_channels, bias_init=1)
        kernel = spec.conv_kernel
        self.weight = nn.Parameter(torch.zeros(spec.out_channels, spec.in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(spec.out_channels))
        self.register_buffer("magnitude_ema", torch.ones(()))
        fs = spec.tmp_sampling_rate
        up_filter = lowpass_filter(spec.up_taps, spec.in_cutoff, 2 * spec.in_half_width, fs)
        self.register_buffer("up_filter", up_filter)
        down_filter = lowpass_filter(spec.down_taps, spec.out_cutoff, 2 * spec.out_half_width, fs, radial=spec.radial)
        self.register_buffer("down_filter", down_filter)
        self.conv = ModulatedConv(padding=kernel - 1, demodulate=not spec.is_torgb)
        name, gain = ("linear", 1.0) if spec.is_torgb else ("lrelu", math.sqrt(2))
        activation = Activation(name, gain=gain, clamp=spec.conv_clamp)
        self.filtering = FilteredLReLU(spec.up_factor, spec.down_factor, spec.padding, activation)

    @property
    def aligned_channels(self) -> int:
        """Output channels and as many more as make them a multiple of 8, which GPUs load at once."""
        return -(-self.spec.out_channels // 8) * 8

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill_normal(self.weight, rng)
        self.bias.zero_()
        self.magnitude_ema.fill_(1)

    def forward(self, x: Tensor, w: Tensor, dtype: torch.dtype, update_emas: bool = False) -> Tensor:
        """Map `[N, Cin, in_size, in_size]` to `[N, Cout, out_size, out_size]` under styles `[N, w_dim]`."""
        if update_emas:
            magnitude = x[:, : self.spec.in_channels].detach().to(self.magnitude_ema.dtype).square().mean()
            self.magnitude_ema.copy_(magnitude.lerp(self.magnitude_ema, self.spec.magnitude_ema_beta))
        styles = self.affine(w)
        if self.spec.is_torgb:
            styles = styles / math.sqrt(self.weight[0].numel())
        layer = StyledConv(self.weight, styles, self.conv, Epilogue(bias=self.bias))
        layer = balanced(layer, self.magnitude_ema.rsqrt())
        if fuses(x, self.weight):  # from here to ToRGB there are zeros after channels that 8 doesn't divide
            layer = layer.widened(x.shape[1], self.spec.out_channels if self.spec.is_torgb else self.aligned_channels)
        x = layer(x.to(dtype))
        return filtered_lrelu(x, None, self.up_filter, self.down_filter, self.filtering)


class SynthesisNetwork(nn.Module):
    """Style vectors to images. Rotate and shift the latter by the buffer `input.transform`, output to input pixel."""

    def __init__(self, input_spec: InputSpec, layers: Sequence[LayerSpec], w_dim: int, output_scale: float) -> None:
        super().__init__()
        self.output_scale = output_scale
        self.resolution, self.num_ws = layers[-1].out_size, len(layers) + 1
        self.input = SynthesisInput(
            w_dim, input_spec.channels, input_spec.size, input_spec.sampling_rate, input_spec.bandwidth
        )
        self.layer_names = [spec.name for spec in layers]
        for spec in layers:
            self.add_module(spec.name, SynthesisLayer(spec, w_dim))

    def forward(
        self,
        ws: Tensor,
        noise_mode: NoiseMode = "const",  # noqa: ARG002
        force_fp32: bool = False,
        update_emas: bool = False,
    ) -> Tensor:
        """Synthesise images `[N, C, H, W]`, nominally in [-1, 1] and not clamped, from `[N, num_ws, w_dim]`.

        There is no noise, whatever the mode. `update_emas` moves the magnitudes, which only training should ask for.
        ValueError for another number of style vectors.
        """
        if ws.ndim != 3 or ws.shape[1] != self.num_ws:
            raise ValueError(f"ws {list(ws.shape)}; allowed is [N, {self.num_ws}, w_dim], as the mapping gives them")
        half_may_run = ws.is_cuda and ws.dtype == torch.float32 and not force_fp32  # float64 copies stay exact
        x = self.input(ws[:, 0])
        for layer, w in zip(self.layers(), ws[:, 1:].unbind(1), strict=True):
            dtype = torch.float16 if layer.spec.use_fp16 and half_may_run else ws.dtype
            x = layer(x, w, dtype, update_emas)
        image: Tensor = x.to(ws.dtype) * self.output_scale
        return image

    def samples_at_once(self, ws: Tensor) -> int:
        """How many samples of a batch are best made together: all, or on a CPU what the allocator can reuse."""
        if ws.device.type != "cpu":
            return max(1, len(ws))
        largest = max(layer.spec.out_channels * layer.spec.out_size**2 for layer in self.layers())
        return max(1, REUSED_BYTES // (largest * ws.element_size()))

    def layers(self) -> Iterable[SynthesisLayer]:
        """The layers in the order in which they run."""
        return (cast("SynthesisLayer", self.get_submodule(name)) for name in self.layer_names)


class AliasFreeGenerator(nn.Module):
    """Mapping and synthesis network; keeps the protocol `ImageGenerator`. All weights are zero until set."""

    def __init__(self, mapping: nn.Module, synthesis: SynthesisNetwork, z_dim: int, num_classes: int) -> None:
        super().__init__()
        self.settings = SamplingSettings()
        self.nfe = 1
        self.z_dim, self.num_classes = z_dim, num_classes
        self.resolution, self.num_ws = synthesis.resolution, synthesis.num_ws
        self.conditioning: Conditioning = "class" if num_classes else "none"
        self.mapping, self.synthesis = mapping, synthesis

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> Tensor:
        """Map latents `[N, z_dim]` and one-hot labels `[N, num_classes]` to images `[N, C, H, W]` of [-1, 1]."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas)
        return cast("Tensor", self.synthesis(ws, update_emas=update_emas))

    def draw(self, rng: np.random.Generator) -> Latents:
        """Draw the latent `z` of one sample."""
        return {"z": torch.from_numpy(rng.standard_normal(self.z_dim, dtype=np.float32))}

    @torch.inference_mode()
    def images(self, latents: Latents, condition: Condition = None) -> Tensor:
        """Generate images `[N, 3, H, W]` in [-1, 1] from stacked latents of `draw` and int64 `[N]` labels.

        Raises:
            ValueError: labels are missing, not wanted or out of range.
        """
        settings = self.settings
        z = latents["z"].to(self.synthesis.input.weight)
        c = one_hot(condition, self.num_classes, like=z)
        ws = self.mapping(z, c, settings.truncation_psi, settings.truncation_cutoff)
        parts = ws.split(self.synthesis.samples_at_once(ws))
        return torch.cat([self.synthesis(part, force_fp32=settings.force_fp32) for part in parts])

    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        """The images as uint8 `[N, C, H, W]`."""
        return to_uint8(self.images(latents, condition))


class StyleGAN3Generator(AliasFreeGenerator):
    """The generator of configurations T and R."""

    target: ClassVar[str] = "models.stylegan3:build"

    def __init__(self, config: StyleGAN3Config) -> None:
        synthesis = SynthesisNetwork(config.input, config.layers, config.w_dim, config.output_scale)
        super().__init__(MappingNetwork(config.mapping), synthesis, config.z_dim, config.num_classes)
        self.config = config

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments of `build` that make this generator again."""
        return asdict(self.config)


def build(**kwargs: Any) -> StyleGAN3Generator:
    """Make a generator of these `StyleGAN3Config` fields; its weights are zero until set."""
    return StyleGAN3Generator(StyleGAN3Config(**kwargs))
