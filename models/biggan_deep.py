"""The BigGAN-deep generators that DeepMind published, as the pytorch-pretrained-BigGAN package holds them.

Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (arXiv:1809.11096), appendix B,
figure 16. Parameters and buffers have the names of that package, so that its state dicts load as they are.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.biggan_deep_config import FIRST_WIDTH, BigGANDeepConfig, Layer
from models.biggan_layers import attend, convolve, phase_weights, truncated_normal, upsample
from models.layers import fill_normal, one_hot
from models.spec import Condition, Conditioning, Latents, NoiseMode, SamplingSettings
from models.spectral_norm import PreparedLayer, fill_orthogonal, fill_uniform

_TRUNCATION_RANGE = 2.0  # of z at truncation 1


class FixedSpectralWeight(PreparedLayer):
    """A weight over the singular value that the stored `weight_u` and `weight_v` belong to, as torch's old hook does.

    Unlike BigGAN's there is no iteration outside training.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, shape: tuple[int, ...], eps: float, *, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight_orig = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.register_buffer("weight_u", torch.zeros(shape[0]))
        self.register_buffer("weight_v", torch.zeros(math.prod(shape[1:])))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw orthogonal weights, with vectors that belong to a singular value of them."""
        fill_orthogonal(self.weight_orig, rng)
        fill_uniform(self.weight_u, 1, rng)
        self._iterate()
        if self.bias is not None:
            self.bias.zero_()

    def make(self) -> Tensor:
        """The normalised weight; in training, moves the estimate on."""
        if self.training:
            self._iterate()
        u, v = self.weight_u.clone(), self.weight_v.clone()
        return self.weight_orig / torch.dot(u, self.weight_orig.flatten(1) @ v)

    @torch.no_grad()
    def _iterate(self) -> None:
        matrix = self.weight_orig.flatten(1)
        self.weight_v.copy_(F.normalize(matrix.t() @ self.weight_u, dim=0, eps=self.eps))
        self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0, eps=self.eps))


class Linear(FixedSpectralWeight):
    """`[N, in] -> [N, out]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return F.linear(x, self.prepared(), self.bias)


class Conv2d(FixedSpectralWeight):
    """Convolution that keeps the size; with `up`, of images upsampled to twice the size."""

    def __init__(self, shape: tuple[int, int, int], eps: float, *, bias: bool = True, up: bool = False) -> None:
        in_channels, out_channels, kernel_size = shape
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), eps, bias=bias)
        self.up = up

    def to_keep(self, weight: Tensor) -> Tensor:
        """Where `up`, weights for the pixels before upsampling."""
        return phase_weights(weight) if self.up else weight

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `[N, Cin, H, W]`."""
        return convolve(x, self.prepared(), self.bias, up=self.up)


class ToRGB(Conv2d):
    """A convolution of which only the first three channels are looked at."""

    def forward(self, x: Tensor) -> Tensor:
        """Turn features `[N, C, H, W]` into colours `[N, 3, H, W]`."""
        assert self.bias is not None
        return convolve(x, self.prepared()[:3], self.bias[:3], up=False)


class TruncatedNorm(nn.Module):
    """Normalisation by statistics that were recorded at several truncations.

    With `condition_dim` gain and shift are made from the condition, else they are learned.
    """

    running_means: Tensor
    running_vars: Tensor

    def __init__(self, channels: int, config: BigGANDeepConfig, condition_dim: int = 0) -> None:
        super().__init__()
        self.eps = config.eps
        self.register_buffer("running_means", torch.zeros(config.num_statistics, channels))
        self.register_buffer("running_vars", torch.ones(config.num_statistics, channels))
        if condition_dim:
            self.scale = Linear((channels, condition_dim), config.eps, bias=False)
            self.offset = Linear((channels, condition_dim), config.eps, bias=False)
        else:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Forget the statistics."""
        self.running_means.zero_()
        self.running_vars.fill_(1)
        if not hasattr(self, "scale"):
            self.weight.fill_(1)
            self.bias.zero_()

    def forward(self, x: Tensor, truncation: float, condition: Tensor | None = None) -> Tensor:
        """Normalise `[N, C, H, W]` with the statistics of a truncation of (0, 1]."""
        if condition is None:
            gain, shift = self.weight[None], self.bias[None]
        else:
            gain, shift = 1 + self.scale(condition), self.offset(condition)
        scale = gain * (self._row(self.running_vars, truncation) + self.eps).rsqrt()
        shift = shift - self._row(self.running_means, truncation) * scale
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])

    def _row(self, rows: Tensor, truncation: float) -> Tensor:
        step = 1.0 / (len(rows) - 1)
        fraction, index = math.modf(truncation / step)
        row = int(index)
        if fraction == 0 or row + 1 == len(rows):
            return rows[row]
        # the package gives each of the two rows the weight of the other, also where only rounding lies between them:
        # at truncation 0.14, 0.28, 0.56, 0.58 and 0.94 the neighbouring row is used
        return rows[row] * fraction + rows[row + 1] * (1 - fraction)


class DeepBlock(nn.Module):
    """The residual block of BigGAN-deep (figure 16b): a bottleneck; the shortcut drops channels."""

    def __init__(self, config: BigGANDeepConfig, layer: Layer) -> None:
        super().__init__()
        self.up, channels, self.out_channels = layer[0], layer[1] * config.channels, layer[2] * config.channels
        hidden = channels // 4
        self.bn_0 = TruncatedNorm(channels, config, config.condition_dim)
        self.conv_0 = Conv2d((channels, hidden, 1), config.eps)
        self.bn_1 = TruncatedNorm(hidden, config, config.condition_dim)
        self.conv_1 = Conv2d((hidden, hidden, 3), config.eps, up=self.up)
        self.bn_2 = TruncatedNorm(hidden, config, config.condition_dim)
        self.conv_2 = Conv2d((hidden, hidden, 3), config.eps)
        self.bn_3 = TruncatedNorm(hidden, config, config.condition_dim)
        self.conv_3 = Conv2d((hidden, self.out_channels, 1), config.eps)

    def forward(self, x: Tensor, condition: Tensor, truncation: float) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, H, W]`, or twice the size, under conditions `[N, D]`."""
        h = self.conv_0(self.bn_0(x, truncation, condition).relu_())
        h = self.conv_1(self.bn_1(h, truncation, condition).relu_())
        h = self.conv_2(self.bn_2(h, truncation, condition).relu_())
        h = self.conv_3(self.bn_3(h, truncation, condition).relu_())
        x = x[:, : self.out_channels]
        return cast("Tensor", h + (upsample(x) if self.up else x))


class Attention(nn.Module):
    """Every pixel attends to the pixels of the image at half the resolution (arXiv:1805.08318, section 3)."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.snconv1x1_theta = Conv2d((channels, channels // 8, 1), eps, bias=False)
        self.snconv1x1_phi = Conv2d((channels, channels // 8, 1), eps, bias=False)
        self.snconv1x1_g = Conv2d((channels, channels // 2, 1), eps, bias=False)
        self.snconv1x1_o_conv = Conv2d((channels // 2, channels, 1), eps, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Start without attention."""
        self.gamma.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Add to `[N, C, H, W]` what its pixels attend to."""
        attended = attend(self.snconv1x1_theta(x), self.snconv1x1_phi(x), self.snconv1x1_g(x))
        return cast("Tensor", x + self.gamma * self.snconv1x1_o_conv(attended))


class ClassEmbedding(nn.Module):
    """One vector a class, stored as the weight `[C, num_classes]` of a linear layer."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, num_classes))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw vectors of unit variance a component, as z has."""
        fill_normal(self.weight, rng)

    def forward(self, c: Tensor) -> Tensor:
        """Embed one-hot labels `[N, num_classes]`, or mixtures of classes."""
        return F.linear(c, self.weight)


class Synthesis(nn.Module):
    """Joined latents and class embeddings to images."""

    def __init__(self, config: BigGANDeepConfig) -> None:
        super().__init__()
        channels = config.channels
        self.gen_z = Linear((16 * FIRST_WIDTH * channels, config.condition_dim), config.eps)
        blocks: list[nn.Module] = [DeepBlock(config, layer) for layer in config.layers]
        if config.attention_before < len(blocks):
            at = config.attention_before
            blocks.insert(at, Attention(config.layers[at][1] * channels, config.eps))
        self.layers = nn.ModuleList(blocks)
        self.bn = TruncatedNorm(channels, config)
        self.conv_to_rgb = ToRGB((channels, channels, 3), config.eps)

    def forward(self, condition: Tensor, truncation: float) -> Tensor:
        """Synthesise images `[N, 3, H, W]` of [-1, 1] from `[N, D]`."""
        # the first layer's outputs were laid out for channels last
        x = self.gen_z(condition).view(len(condition), 4, 4, -1).permute(0, 3, 1, 2).contiguous()
        for layer in self.layers:
            x = layer(x, condition, truncation) if isinstance(layer, DeepBlock) else layer(x)
        x = self.bn(x, truncation).relu_()
        return torch.tanh(self.conv_to_rgb(x))


class BigGANDeepGenerator(nn.Module):
    """Latents and classes to images; keeps the protocol `ImageGenerator`. All weights are zero until set.

    `settings.truncation_psi` is the package's truncation: it scales z where that is drawn, and chooses the statistics.
    """

    target: ClassVar[str] = "models.biggan_deep:build"
    conditioning: ClassVar[Conditioning] = "class"
    nfe: ClassVar[int] = 1
    num_ws: ClassVar[int] = 1

    def __init__(self, config: BigGANDeepConfig) -> None:
        super().__init__()
        self.config = config
        self.settings = SamplingSettings()
        self.resolution, self.num_classes, self.z_dim = config.resolution, config.num_classes, config.z_dim
        self.embeddings = ClassEmbedding(config.num_classes, config.z_dim)
        self.generator = Synthesis(config)
        self.eval()

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
        """Join latents `[N, z_dim]` and embedded one-hot labels `[N, num_classes]` to `[N, 1, 2 z_dim]`.

        Truncation is done where z is drawn, and in `synthesis`; the last two arguments do nothing here.
        """
        return torch.cat([z, self.embeddings(c)], dim=1).unsqueeze(1)

    def synthesis(
        self,
        ws: Tensor,
        noise_mode: NoiseMode = "const",  # noqa: ARG002
        truncation: float | None = None,
    ) -> Tensor:
        """Synthesise images `[N, 3, H, W]` of [-1, 1] from `mapping`'s `[N, 1, 2 z_dim]`; has no noise.

        `truncation` chooses the statistics; None: `settings.truncation_psi`.

        Raises:
            ValueError: the truncation is not of (0, 1].
        """
        images: Tensor = self.generator(ws.squeeze(1), self._truncation(truncation))
        return images

    def _truncation(self, truncation: float | None = None) -> float:
        truncation = self.settings.truncation_psi if truncation is None else truncation
        if not 0 < truncation <= 1:
            raise ValueError(f"truncation {truncation}; BigGAN-deep takes more than 0, up to 1")
        return truncation

    def forward(self, z: Tensor, c: Tensor, truncation_psi: float | None = None) -> Tensor:
        """Map latents `[N, z_dim]` and one-hot labels `[N, num_classes]` to images `[N, 3, H, W]` of [-1, 1].

        As in the package, z has been scaled by the truncation before.
        """
        return self.synthesis(self.mapping(z, c), truncation=truncation_psi)

    def draw(self, rng: np.random.Generator) -> Latents:
        """Draw the latent `z` of one sample: truncation_psi times N(0, 1) without what is farther than 2 from zero."""
        return {"z": self._truncation() * truncated_normal(rng, _TRUNCATION_RANGE, self.z_dim)}

    @torch.inference_mode()
    def images(self, latents: Latents, condition: Condition = None) -> Tensor:
        """Generate images `[N, 3, H, W]` in [-1, 1] from stacked latents of `draw` and int64 `[N]` labels.

        Raises:
            ValueError: labels are missing or out of range.
        """
        z = latents["z"].to(self.embeddings.weight)
        c = cast("Tensor", one_hot(condition, self.num_classes, like=z))
        return cast("Tensor", self(z, c))

    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        """The images as uint8: (x + 1) / 2 * 256 is clipped to 255 and cut to an integer, as the package writes."""
        return ((self.images(latents, condition) + 1) / 2 * 256).clamp(0, 255).to(torch.uint8)


def build(**kwargs: Any) -> BigGANDeepGenerator:
    """Make a generator of these `BigGANDeepConfig` fields; its weights are zero until set."""
    return BigGANDeepGenerator(BigGANDeepConfig(**kwargs))
