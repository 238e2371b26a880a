"""Layers whose weight is divided by its largest singular value, and the weights that their training starts from.

Miyato et al., "Spectral Normalization for Generative Adversarial Networks" (arXiv:1802.05957).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.dispatch import is_naive
from models.layers import fill_normal

Init = Literal["ortho", "N02", "glorot", "xavier"]


@dataclass(frozen=True, slots=True)
class SpectralNorm:
    """How a weight is divided by its largest singular value (arXiv:1802.05957, algorithm 1)."""

    num_svs: int = 1  # singular values that are followed; only the first divides
    num_itrs: int = 1  # power iterations of a step of training
    eps: float = 1e-12


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """Normalisation of the weights of a network (None: none), and where its training starts."""

    norm: SpectralNorm | None
    init: Init


class _Kept:
    """A weight that was made of tensors, and the state of these then; copies of a network start without it."""

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.state: tuple[tuple[int, int], ...] = ()
        self.sources: tuple[Tensor, ...] = ()  # held, so that their addresses can't be given to others

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return _Kept()

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


class PreparedLayer(nn.Module):
    """A layer that computes with a weight made of its tensors, and keeps it as long as these are as they were.

    Kept is only what needs no gradient, outside training. Writing to a tensor is noticed by its version counter;
    writing to its `.data`, which has none, is not: call `eval()` or `train()` after that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept = _Kept()

    def make(self) -> Tensor:
        """Make the weight, differentiably."""
        raise NotImplementedError

    def to_keep(self, weight: Tensor) -> Tensor:
        """What to keep of a weight: itself, or what computes faster than it."""
        return weight

    def prepared(self) -> Tensor:
        """The weight that `make` makes, or what was kept of it."""
        tensors = (*self._parameters.values(), *self._buffers.values())
        sources = tuple(tensor for tensor in tensors if tensor is not None)
        tracked = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in sources)
        if self.training or tracked or is_naive() or any(tensor.is_inference() for tensor in sources):
            return self.make()
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in sources)
        if self._kept.value is None or self._kept.state != state:
            # a tensor of inference mode would be of no use outside it
            with torch.inference_mode(False), torch.no_grad():
                self._kept.value, self._kept.state = self.to_keep(self.make()), state
                self._kept.sources = tuple(tensor.detach() for tensor in sources)
        return self._kept.value

    def train(self, mode: bool = True) -> Self:
        """Switch to training or back; either forgets the weight."""
        self._kept = _Kept()
        return super().train(mode)


class SpectralWeight(PreparedLayer):
    """A weight over its largest singular value, of which one power iteration from the stored `u0` is the estimate.

    The iteration also runs outside training, but then `u0` stays as it is.
    """

    def __init__(self, shape: tuple[int, ...], spec: WeightSpec, *, bias: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        for i in range(spec.norm.num_svs if spec.norm else 0):
            self.register_buffer(f"u{i}", torch.zeros(1, shape[0]))
            self.register_buffer(f"sv{i}", torch.ones(1))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the start of training."""
        fill(self.weight, self.spec.init, rng)
        if self.bias is not None:
            fill_uniform(self.bias, 1 / math.sqrt(self.weight[0].numel()), rng)
        for i in range(self.spec.norm.num_svs if self.spec.norm else 0):
            fill_normal(self.get_buffer(f"u{i}"), rng)
            self.get_buffer(f"sv{i}").fill_(1)

    def make(self) -> Tensor:
        """The normalised weight; in training, moves the estimate on."""
        if self.spec.norm is None:
            return self.weight
        matrix = self.weight.flatten(1)
        for _ in range(self.spec.norm.num_itrs if self.training else 1):
            singular_values = self._power_iteration(matrix, self.spec.norm)
        return self.weight / singular_values[0]

    def _power_iteration(self, matrix: Tensor, norm: SpectralNorm) -> list[Tensor]:
        lefts: list[Tensor] = []
        rights: list[Tensor] = []
        values = []
        for i in range(norm.num_svs if self.training else 1):
            u = self.get_buffer(f"u{i}")
            with torch.no_grad():
                rights.append(F.normalize(_orthogonal_to(rights, u @ matrix), eps=norm.eps))
            image = rights[-1] @ matrix.t()
            with torch.no_grad():
                lefts.append(F.normalize(_orthogonal_to(lefts, image.detach()), eps=norm.eps))
            values.append((image @ lefts[-1].t()).squeeze())
            if self.training:
                with torch.no_grad():
                    u.copy_(lefts[-1])
                    self.get_buffer(f"sv{i}").copy_(values[-1])
        return values


class SpectralLinear(SpectralWeight):
    """`[N, in] -> [N, out]`."""

    def __init__(self, in_features: int, out_features: int, spec: WeightSpec, *, bias: bool = True) -> None:
        super().__init__((out_features, in_features), spec, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return F.linear(x, self.prepared(), self.bias)


class SpectralEmbedding(SpectralWeight):
    """One vector `[C]` a class."""

    def __init__(self, num_classes: int, channels: int, spec: WeightSpec) -> None:
        super().__init__((num_classes, channels), spec)

    def forward(self, c: Tensor) -> Tensor:
        """Embed one-hot labels `[N, num_classes]`, or mixtures of classes."""
        return c @ self.prepared()


def _orthogonal_to(others: Iterable[Tensor], x: Tensor) -> Tensor:
    """Take from the row `[1, C]` its components along the rows of `others`."""
    for other in others:
        x = x - (other @ x.t()) * other / (other @ other.t())
    return x


def fill(weight: Tensor, init: Init, rng: np.random.Generator) -> None:
    """Overwrite a weight `[O, I, ...]` with the start of training of that name."""
    if init == "ortho":
        fill_orthogonal(weight, rng)
    elif init == "N02":
        fill_normal(weight, rng, 0.02)
    else:
        receptive = weight[0, 0].numel()
        fill_uniform(weight, math.sqrt(6 / (receptive * (weight.shape[0] + weight.shape[1]))), rng)


def fill_uniform(tensor: Tensor, bound: float, rng: np.random.Generator) -> None:
    """Overwrite a tensor on any device with U(-bound, bound)."""
    tensor.copy_(torch.from_numpy(rng.uniform(-bound, bound, tuple(tensor.shape)).astype(np.float32)))


def fill_orthogonal(weight: Tensor, rng: np.random.Generator) -> None:
    """Overwrite a weight `[O, I, ...]` on any device with a matrix `[O, I * ...]` of orthonormal rows or columns."""
    rows, columns = weight.shape[0], weight[0].numel()
    gauss = torch.from_numpy(rng.standard_normal((max(rows, columns), min(rows, columns)), dtype=np.float32))
    q, r = torch.linalg.qr(gauss)
    q = q * r.diagonal().sign()
    weight.copy_((q if rows >= columns else q.t()).reshape(weight.shape))
