"""The pass over memory that normalises, once statistics are known."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import CompileCase, Options, launch

TILE, BLOCK_CHANNELS = 4096, 64  # elements of a tile, and of one of its rows
OPTIONS = Options(num_warps=4)


@triton.jit
def _scale_and_shift_kernel(
    x, factor, shift, y, pixels, channels, tiles, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """`y = x factor + shift` of images `[N, H, W, C]`, with a factor and a shift for each sample and channel."""
    sample, first = tl.program_id(0) // tiles, tl.program_id(0) % tiles * PIXELS
    pixel = first + tl.arange(0, PIXELS)[:, None]
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    there = (pixel < pixels) & (c < channels)
    at = (sample.to(tl.int64) * pixels + pixel) * channels + c
    value = tl.load(x + at, there, 0.0).to(tl.float32) * tl.load(factor + sample * channels + c, c < channels, 0.0)
    value += tl.load(shift + sample * channels + c, c < channels, 0.0)
    tl.store(y + at, value.to(y.dtype.element_ty), there)


def scale_and_shift_triton(x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Return `x factor + shift`, channels_last, of `x` `[N, C, H, W]`; the other two are float32 `[N, C]`."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    if x.numel() == 0:
        return y
    n, channels, height, width = x.shape
    block = min(triton.next_power_of_2(channels), BLOCK_CHANNELS)
    tiles = triton.cdiv(height * width, TILE // block)
    constants = {"PIXELS": TILE // block, "CHANNELS": block}
    arguments = (x, factor.contiguous(), shift.contiguous(), y, height * width, channels, tiles)
    launch(_scale_and_shift_kernel, (n * tiles, triton.cdiv(channels, block)), arguments, constants, OPTIONS)
    return y


def _case(dtype: str) -> CompileCase:
    def call() -> None:
        x = torch.empty(16, 512, 64, 64, dtype=getattr(torch, dtype), device="meta")
        scale_and_shift_triton(x, *(torch.empty(16, 512, device="meta") for _ in range(2)))

    return CompileCase(f"group_norm/scale-and-shift-{dtype}", call)


COMPILE_CASES = (_case("float16"), _case("float32"))
