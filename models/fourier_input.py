"""The input of StyleGAN3's and StyleGAN-T's synthesis networks: Fourier features that a style can rotate and shift.

Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv:2106.12423), section 3.2 and appendix F.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import FullyConnectedLayer, fill_normal


class TransformAffine(FullyConnectedLayer):
    """Style to rotation (cosine, sine) and translation (x, y); training starts at the identity."""

    def reset(self, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Start at no rotation and no translation, whatever the style."""
        self.weight.zero_()
        self.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer in float64."""
        weight = self.weight.double() / math.sqrt(self.weight.shape[1])
        return F.linear(x.double(), weight, self.bias.double())


class SynthesisInput(nn.Module):
    """Style vectors `[N, w_dim]` to Fourier features `[N, channels, size, size]`, low-pass at `bandwidth`."""

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, w_dim: int, channels: int, size: int, sampling_rate: float, bandwidth: float) -> None:
        super().__init__()
        self.size, self.sampling_rate, self.bandwidth = size, sampling_rate, bandwidth
        self.weight = nn.Parameter(torch.zeros(channels, channels))
        self.affine = TransformAffine(w_dim, 4)
        self.register_buffer("transform", torch.zeros(3, 3))  # of the user: output pixel to input pixel
        self.register_buffer("freqs", torch.zeros(channels, 2))
        self.register_buffer("phases", torch.zeros(channels))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw frequencies of the disc of radius `bandwidth`, phases and weights; the transform is the identity."""
        fill_normal(self.weight, rng)
        fill_normal(self.freqs, rng)
        radii = self.freqs.norm(dim=1, keepdim=True)
        self.freqs.div_(radii * radii.square().exp().pow(0.25)).mul_(self.bandwidth)
        self.phases.copy_(torch.from_numpy(rng.uniform(-0.5, 0.5, len(self.phases)).astype(np.float32)))
        self.transform.copy_(torch.eye(3))

    def forward(self, w: Tensor) -> Tensor:
        """Make the features."""
        # sin(a + b) of a column and a row takes sines of one side of the image only, which float64 can be afforded for:
        # phases of several periods would lose digits of float32, and a slip here goes through every layer
        freqs, phases, amplitudes = self._placed(w)
        along_x = self._positions(w)[:, None] * freqs[:, None, :, 0] + phases[:, None]  # [N, size, C]
        along_y = self._positions(w)[:, None] * freqs[:, None, :, 1]
        columns = [wave.to(w.dtype)[:, None, :] for wave in (along_x.sin(), along_x.cos())]
        rows = [(wave * amplitudes[:, None]).to(w.dtype)[:, :, None] for wave in (along_y.cos(), along_y.sin())]
        waves = torch.addcmul(columns[0] * rows[0], columns[1], rows[1])  # [N, size, size, C]
        mixed: Tensor = waves @ (self.weight / math.sqrt(len(self.weight))).T
        return mixed.permute(0, 3, 1, 2)

    def _placed(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frequencies `[N, C, 2]`, phases and amplitudes `[N, C]` under the style's transform; float64, in radians."""
        transform = _rigid(self.affine(w)) @ self.transform.double()
        phases = self.phases + (self.freqs.double() @ transform[:, :2, 2:]).squeeze(2)
        freqs = self.freqs.double() @ transform[:, :2, :2]
        # frequencies that the user's transform pushes past the band fade out
        fade = (freqs.norm(dim=2) - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)
        return freqs * (2 * math.pi), phases * (2 * math.pi), (1 - fade).clamp(0, 1)

    def _positions(self, like: Tensor) -> Tensor:
        """Pixel centres `[size]` along one axis; the unit is the width of the image without its margin."""
        pixels = torch.arange(self.size, device=like.device, dtype=torch.float64)
        return (pixels + 0.5 - self.size / 2) / self.sampling_rate


def _rigid(affine: Tensor) -> Tensor:
    """`[N, 4]` of cosine, sine, x and y to matrices `[N, 3, 3]`; the first pair gives its direction only."""
    cos, sin, x, y = (affine / affine[:, :2].norm(dim=1, keepdim=True)).unbind(1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1)
    translation = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], dim=1)
    turned: Tensor = rotation.unflatten(1, (3, 3)) @ translation.unflatten(1, (3, 3))
    return turned
