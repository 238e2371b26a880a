"""Lays an image out flat, and scales it by its styles on the way, in one pass over memory."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.conv_geometry import Size
from kernels.flat_image import ROWS, FlatImage
from kernels.launch import CompileCase, Options, launch

TILE, WIDEST_TILE = 8192, 512  # elements: of a tile, and of one of its rows
OPTIONS = Options(num_warps=4)


@triton.jit
def _lay_flat_kernel(
    x, style, y,
    pitch, in_height, in_width, width, top, left, channels,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows `y` `[N pitch, C]` of `x style`, where `x` `[N, H', W', C]` begins at (`top`, `left`) of the image."""
    first = tl.program_id(0) * BLOCK_M
    sample = first // pitch  # a tile has rows of one sample
    row = first - sample * pitch + tl.arange(0, BLOCK_M)
    line, column = row // (width + 1), row % (width + 1)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (line >= top) & (line < top + in_height) & (column >= left) & (column < left + in_width)
    pixel = (line - top) * in_width + column - left
    x_sample = x + sample.to(tl.int64) * in_height * in_width * channels
    known = (c < channels)[None, :]
    value = tl.load(x_sample + pixel.to(tl.int64)[:, None] * channels + c[None, :], inside[:, None] & known, 0.0)
    if style is not None:
        value = value.to(tl.float32) * tl.load(style + sample * channels + c[None, :], known, 0.0).to(tl.float32)
    # a style may be infinite, and zeros must stay zeros
    value = tl.where(inside[:, None], value, 0.0).to(y.dtype.element_ty)
    at = (first.to(tl.int64) + tl.arange(0, BLOCK_M))[:, None] * channels + c[None, :]
    tl.store(y + at, value, known)


def lay_flat(x: Tensor, style: Tensor | None = None, frame: Size | None = None, offset: Size = (0, 0)) -> FlatImage:
    """Return `x` `[N, C, H', W']` times `style` `[N, C]`, flat; not differentiable.

    The image is `frame` (y, x) large, of the size of `x` if that isn't given, and `x` begins at `offset`; zeros are
    around it. Raises ValueError if `x` sticks out.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    n, channels, *in_size = x.shape
    frame = (in_size[0], in_size[1]) if frame is None else frame
    if any(begin < 0 or begin + size > whole for begin, size, whole in zip(offset, in_size, frame, strict=True)):
        raise ValueError(f"lay_flat: an image {in_size} at {list(offset)} sticks out of {list(frame)}; enlarge `frame`")
    flat = FlatImage.empty(n, channels, frame, x)
    style = None if style is None else style.contiguous()
    columns = min(triton.next_power_of_2(channels), WIDEST_TILE)
    rows = min(TILE // columns, ROWS)
    grid = (len(flat.rows) // rows, triton.cdiv(channels, columns))
    sizes = (flat.pitch, *in_size, frame[1], *offset, channels)
    if flat.rows.numel():
        launch(_lay_flat_kernel, grid, (x, style, flat.rows, *sizes), {"BLOCK_M": rows, "BLOCK_C": columns}, OPTIONS)
    return flat


def _case(name: str, x: tuple[int, int, int, int], frame: Size, dtype: torch.dtype) -> CompileCase:
    def call() -> None:
        lay_flat(torch.empty(x, dtype=dtype, device="meta"), torch.empty(x[:2], device="meta"), frame, (1, 1))

    return CompileCase(f"flat_image/{name}", call)


COMPILE_CASES = (
    _case("512-64-float16", (16, 512, 64, 64), (66, 66), torch.float16),
    _case("336-276-bfloat16", (16, 336, 276, 276), (278, 278), torch.bfloat16),
)
