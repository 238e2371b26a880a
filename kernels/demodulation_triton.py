"""Demodulation as one small matrix product for the layers of a whole generator."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

from kernels.conv_plan import remember
from kernels.demodulation import EPSILON, weight_energy
from kernels.launch import CompileCase, Options, launch

BLOCK_N, BLOCK_O, BLOCK_I = 16, 32, 64
OPTIONS = Options(num_warps=4, num_stages=3)


@triton.jit
def _demodulation_kernel(
    tiles, energy, styles, out, num_samples, num_styles, num_outputs, epsilon,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """`out = (styles^2 @ energy^T + epsilon)^(-1/2)` of the layer and outputs that a row of `tiles` names."""
    tile = tiles + tl.program_id(0) * 5
    first_style, fan_in = tl.load(tile), tl.load(tile + 1)
    first_energy, first_output, outputs = tl.load(tile + 2), tl.load(tile + 3), tl.load(tile + 4)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    o = tl.arange(0, BLOCK_O)
    sums = tl.zeros([BLOCK_N, BLOCK_O], tl.float32)
    for begin in tl.range(0, fan_in, BLOCK_I):
        i = begin + tl.arange(0, BLOCK_I)
        at = n * num_styles + first_style + i[None, :]
        style = tl.load(styles + at, (n < num_samples) & (i[None, :] < fan_in), 0.0).to(tl.float32)
        at = first_energy + o[None, :] * fan_in + i[:, None]
        weights = tl.load(energy + at, (o[None, :] < outputs) & (i[:, None] < fan_in), 0.0)
        sums = tl.dot(style * style, weights, sums, input_precision="ieee")  # TF32 would cost the float32 tolerance
    at = n * num_outputs + first_output + o[None, :]
    inside = (n < num_samples) & (o[None, :] < outputs)
    tl.store(out + at, tl.rsqrt(sums + epsilon).to(out.dtype.element_ty), inside)


@dataclass(frozen=True, slots=True)
class PackedEnergy:
    """`weight_energy` of many layers in one tensor, and the output and input channels of each."""

    values: Tensor  # [sum O I]
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, weights: Sequence[Tensor]) -> PackedEnergy:
        """Pack the energy of weights `[O, I, k, k]`; keep it until they change."""
        energies = [weight_energy(weight).flatten() for weight in weights]
        values = energies[0] if len(energies) == 1 else torch.cat(energies)
        return cls(values, tuple((weight.shape[0], weight.shape[1]) for weight in weights))


def demodulation_triton(weight: Tensor, styles: Tensor) -> Tensor:
    """Triton implementation of `demodulation`."""
    return demodulations_triton(packed_energy([weight]), styles)


def packed_energy(weights: Sequence[Tensor]) -> PackedEnergy:
    """Return `PackedEnergy.of(weights)`; where it needs no gradient it is kept until one of them changes."""
    tracked = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    if tracked or any(weight.is_inference() for weight in weights):  # changes of the latter aren't counted
        return PackedEnergy.of(weights)
    others = tuple((weight.data_ptr(), weight._version) for weight in weights[1:])
    packed: PackedEnergy = remember(weights[0], ("energy", others), lambda: PackedEnergy.of(weights))
    return packed


def demodulations_triton(packed: PackedEnergy, styles: Tensor) -> Tensor:
    """Demodulate all layers at once: `styles` `[N, sum I]` of all layers, one after the other, give `[N, sum O]`."""
    factors: Tensor = _Demodulation.apply(packed.values, styles, packed.shapes)
    return factors


class _Demodulation(Function):
    @staticmethod
    def forward(ctx: Any, energy: Tensor, styles: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
        out = _run(energy, styles.contiguous(), shapes)
        ctx.save_for_backward(energy, styles, out)
        ctx.shapes = shapes
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """In PyTorch, and so differentiable: two products of the size of the forward one."""
        energy, styles, out = ctx.saved_tensors
        fan_out, fan_in = zip(*ctx.shapes, strict=True)
        dsums = -0.5 * dout.to(energy.dtype) * out.to(energy.dtype) ** 3
        denergy, dsquares = [], []
        per_layer = zip(dsums.split(fan_out, 1), styles.split(fan_in, 1), _split(energy, ctx.shapes), strict=True)
        for dsum, style, weights in per_layer:
            denergy.append((dsum.T @ style.to(energy.dtype).square()).flatten())
            dsquares.append(dsum @ weights)
        return torch.cat(denergy), (2 * styles.to(energy.dtype) * torch.cat(dsquares, 1)).to(styles.dtype), None


def _split(energy: Tensor, shapes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    """The energy of each layer, `[O, I]`."""
    parts = energy.split([o * i for o, i in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


@cache
def _tiles(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """For each program: first style, number of styles, first energy, first output, number of outputs."""
    rows = []
    style = energy = output = 0
    for fan_out, fan_in in shapes:
        for first in range(0, fan_out, BLOCK_O):
            count = min(BLOCK_O, fan_out - first)
            rows.append((style, fan_in, energy + first * fan_in, output + first, count))
        style, energy, output = style + fan_in, energy + fan_out * fan_in, output + fan_out
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _run(energy: Tensor, styles: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
    fan_out, fan_in = (sum(sizes) for sizes in zip(*shapes, strict=True))
    n = styles.shape[0]
    if styles.shape != (n, fan_in):
        raise ValueError(f"demodulation: styles {list(styles.shape)} for layers {shapes}; allowed is [N, {fan_in}]")
    tiles = _tiles(shapes, styles.device)
    out = styles.new_empty(n, fan_out)
    constants = {"BLOCK_N": BLOCK_N, "BLOCK_O": BLOCK_O, "BLOCK_I": BLOCK_I}
    arguments = (tiles, energy, styles, out, n, fan_in, fan_out, EPSILON)
    launch(_demodulation_kernel, (len(tiles), triton.cdiv(n, BLOCK_N)), arguments, constants, OPTIONS)
    return out


def _case() -> CompileCase:
    def call() -> None:
        shapes = ((512, 512), (256, 512), (128, 256))
        energy = torch.empty(sum(o * i for o, i in shapes), device="meta")
        _run(energy, torch.empty(16, sum(i for _, i in shapes), device="meta"), shapes)

    return CompileCase("demodulation/layers-fp32", call)


COMPILE_CASES = (_case(),)
