"""The BigGAN and BigGAN-deep generators of the PyTorch code by their author.

Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (arXiv:1809.11096), appendix B.
Parameters and buffers have the names of the official PyTorch networks, so that their state dicts load as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from models.biggan_config import BigGANConfig, BlockShape
from models.biggan_layers import (
    MOMENTUM,
    ConditionalNorm,
    Norm,
    SelfAttention,
    SpectralConv2d,
    truncated_normal,
    upsample,
)
from models.layers import one_hot
from models.spec import Condition, Conditioning, Latents, NoiseMode, SamplingSettings
from models.spectral_norm import Init, SpectralLinear, fill

TRUNCATION_RANGE = 2.0  # of z at truncation_psi just below 1


class ClassEmbedding(nn.Module):
    """One vector `[C]` a class, without spectral normalisation."""

    def __init__(self, num_classes: int, channels: int, init: Init) -> None:
        super().__init__()
        self.init = init
        self.weight = nn.Parameter(torch.zeros(num_classes, channels))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill(self.weight, self.init, rng)

    def forward(self, c: Tensor) -> Tensor:
        """Embed one-hot labels `[N, num_classes]`, or mixtures of classes."""
        return c @ self.weight


def _conditional_norm(channels: int, config: BigGANConfig) -> ConditionalNorm:
    def layer() -> nn.Module:
        if not config.shared_dim:
            return ClassEmbedding(config.num_classes, channels, config.init)
        return SpectralLinear(config.condition_dim, channels, config.weights, bias=False)

    return ConditionalNorm(channels, layer(), layer(), config.norm, config.bn_eps)


class GeneratorBlock(nn.Module):
    """The residual block of BigGAN (figure 15b): two 3x3 convolutions at twice the resolution."""

    def __init__(self, config: BigGANConfig, shape: BlockShape) -> None:
        super().__init__()
        channels, out_channels, weights = shape.in_channels, shape.out_channels, config.weights
        self.bn1 = _conditional_norm(channels, config)
        self.bn2 = _conditional_norm(out_channels, config)
        self.conv1 = SpectralConv2d((channels, out_channels, 3), weights, up=True)
        self.conv2 = SpectralConv2d((out_channels, out_channels, 3), weights)
        self.conv_sc = SpectralConv2d((channels, out_channels, 1), weights)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, 2 H, 2 W]` under conditions `[N, D]`."""
        h = self.conv1(self.bn1(x, y).relu_())
        h = self.conv2(self.bn2(h, y).relu_())
        # a 1x1 convolution is the same before upsampling, and has a quarter of the pixels there
        return cast("Tensor", h + upsample(self.conv_sc(x)))


class DeepGeneratorBlock(nn.Module):
    """The residual block of BigGAN-deep (figure 16b): a bottleneck; the shortcut drops channels."""

    def __init__(self, config: BigGANConfig, shape: BlockShape) -> None:
        super().__init__()
        channels, out_channels, weights = shape.in_channels, shape.out_channels, config.weights
        self.up, self.out_channels = shape.up, out_channels
        hidden = channels // 4
        self.conv1 = SpectralConv2d((channels, hidden, 1), weights)
        self.conv2 = SpectralConv2d((hidden, hidden, 3), weights, up=shape.up)
        self.conv3 = SpectralConv2d((hidden, hidden, 3), weights)
        self.conv4 = SpectralConv2d((hidden, out_channels, 1), weights)
        self.bn1 = _conditional_norm(channels, config)
        self.bn2 = _conditional_norm(hidden, config)
        self.bn3 = _conditional_norm(hidden, config)
        self.bn4 = _conditional_norm(hidden, config)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, H, W]`, or twice the size, under conditions `[N, D]`."""
        h = self.conv1(self.bn1(x, y).relu_())
        h = self.conv2(self.bn2(h, y).relu_())
        h = self.conv3(self.bn3(h, y).relu_())
        h = self.conv4(self.bn4(h, y).relu_())
        x = x[:, : self.out_channels]
        return cast("Tensor", h + (upsample(x) if self.up else x))


class BigGANGenerator(nn.Module):
    """Latents and classes to images; keeps the protocol `ImageGenerator`. All weights are zero until set.

    It is made for evaluation; in training mode, an image depends on the others of its batch.
    """

    target: ClassVar[str] = "models.biggan:build"
    conditioning: ClassVar[Conditioning] = "class"
    nfe: ClassVar[int] = 1
    num_ws: ClassVar[int] = 1

    def __init__(self, config: BigGANConfig) -> None:
        super().__init__()
        self.config = config
        self.settings = SamplingSettings()
        self.resolution, self.num_classes, self.z_dim = config.image_size, config.num_classes, config.z_dim
        if config.shared_dim:
            self.shared: nn.Module = ClassEmbedding(config.num_classes, config.shared_dim, config.init)
        else:
            self.shared = nn.Identity()
        shapes = config.blocks
        self.linear = SpectralLinear(config.linear_dim, shapes[0].in_channels * config.bottom_width**2, config.weights)
        self.blocks = nn.ModuleList(self._block(shape) for shape in shapes)
        channels = shapes[-1].out_channels
        # the official output layer has neither bn_eps nor a norm of images
        norm = config.norm if config.norm in ("mybn", "cross_replica") else "bn"
        self.output_layer = nn.Sequential(
            Norm(channels, norm), nn.ReLU(), SpectralConv2d((channels, 3, 3), config.weights)
        )
        self.eval()

    def _block(self, shape: BlockShape) -> nn.ModuleList:
        block = DeepGeneratorBlock(self.config, shape) if self.config.depth else GeneratorBlock(self.config, shape)
        attention = [SelfAttention(shape.out_channels, self.config.weights)] if shape.attention else []
        return nn.ModuleList([block, *attention])

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments of `build` that make this generator again."""
        return asdict(self.config)

    def mapping(
        self,
        z: Tensor,
        c: Tensor,
        truncation_psi: float = 1.0,  # noqa: ARG002
        truncation_cutoff: int | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Join latents `[N, z_dim]` and embedded one-hot labels `[N, num_classes]` to `[N, 1, z_dim + embed_dim]`.

        BigGAN truncates z where it is drawn; the last two arguments are for the protocol's sake and do nothing.
        """
        return torch.cat([z, self.shared(c)], dim=1).unsqueeze(1)

    def synthesis(self, ws: Tensor, noise_mode: NoiseMode = "const") -> Tensor:  # noqa: ARG002
        """Synthesise images `[N, 3, H, W]` of [-1, 1] from `mapping`'s `[N, 1, z_dim + embed_dim]`; has no noise."""
        first, conditions = self._inputs(ws.squeeze(1))
        x = self.linear(first).unflatten(1, (-1, self.config.bottom_width, self.config.bottom_width))
        for (block, *attention), y in zip(cast("Iterable[nn.ModuleList]", self.blocks), conditions, strict=True):
            x = block(x, y)
            for layer in attention:
                x = layer(x)
        return torch.tanh(self.output_layer(x))

    def _inputs(self, w: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the first layer and each block get of a joined vector."""
        z, y = w.split([self.config.z_dim, self.config.embed_dim], dim=1)
        if self.config.depth:
            joined = torch.cat([y, z], dim=1)
            return joined, [joined] * len(self.blocks)
        first, *parts = z.chunk(self.config.num_slots, dim=1)
        return first, [torch.cat([y, part], dim=1) for part in parts] or [y] * len(self.blocks)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """Map latents `[N, z_dim]` and one-hot labels `[N, num_classes]` to images `[N, 3, H, W]` of [-1, 1]."""
        return self.synthesis(self.mapping(z, c))

    def draw(self, rng: np.random.Generator) -> Latents:
        """Draw the latent `z` of one sample: N(0, 1) if `truncation_psi` is 1.

        Below, values farther from zero than a threshold are drawn anew (section 3.1). The threshold is
        2 truncation_psi, so that |z| has the bound that the published BigGAN-deep modules have for their truncation.
        """
        psi = self.settings.truncation_psi
        if not 0 < psi <= 1:
            raise ValueError(f"truncation_psi {psi}; a BigGAN takes more than 0, up to 1 for none")
        if psi == 1:
            return {"z": torch.from_numpy(rng.standard_normal(self.z_dim, dtype=np.float32))}
        return {"z": truncated_normal(rng, TRUNCATION_RANGE * psi, self.z_dim)}

    @torch.inference_mode()
    def images(self, latents: Latents, condition: Condition = None) -> Tensor:
        """Generate images `[N, 3, H, W]` in [-1, 1] from stacked latents of `draw` and int64 `[N]` labels.

        Raises:
            ValueError: labels are missing or out of range.
        """
        z = latents["z"].to(self.linear.weight)
        c = cast("Tensor", one_hot(condition, self.num_classes, like=z))
        return cast("Tensor", self(z, c))

    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        """The images as uint8: 255 (x + 1) / 2 is cut to an integer, as the official code writes images."""
        return (255 * (self.images(latents, condition) + 1) / 2).to(torch.uint8)


def build(**kwargs: Any) -> BigGANGenerator:
    """Make a generator of these `BigGANConfig` fields; its weights are zero until set."""
    return BigGANGenerator(BigGANConfig(**kwargs))


@torch.no_grad()
def accumulate_statistics(generator: BigGANGenerator, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Replace the running averages of the normalisations by the mean over these batches of latents and labels.

    The standing statistics of appendix D: they belong to the truncation that z was drawn with. Batches are
    `[N, z_dim]` and one-hot `[N, num_classes]`. The weights, and what their normalisation knows, stay as they are.
    """
    norms = [module for module in generator.modules() if isinstance(module, ConditionalNorm | Norm)]
    try:
        for i, (z, c) in enumerate(batches):
            for norm in norms:
                norm.training, norm.momentum = True, 1 / (i + 1)
            generator(z, c)
    finally:
        for norm in norms:
            norm.training, norm.momentum = generator.training, MOMENTUM
