"""When a convolution runs on flat images, whose tiles a GPU's copy engine brings to its tensor cores as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.conv_geometry import Geometry, Size
from kernels.conv_plan import Fusion, Tile, processors
from kernels.flat_image import ROWS, pitch_of
from kernels.launch import Options, architecture

MIN_PIXELS, MIN_CHANNELS = 32 * 32, 256  # of layers that wait for the tensor cores and not for memory


def flat_limit(x: Tensor, geometry: Geometry, out_channels: int, fusion: Fusion) -> str | None:
    """Say why the flat form can't convolve `x` `[N, C, H, W]`, or None where it can."""
    in_channels, size, capability = x.shape[1], geometry.out_size, architecture(x.device)
    if capability < 90:
        return f"it needs the copy engine of sm_90 and later, and this GPU is sm_{capability}"
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"it multiplies float16 and bfloat16, and not {x.dtype}"
    if geometry.up > 1 or geometry.down > 1:
        return f"it does not resample, and this layer goes up by {geometry.up} and down by {geometry.down}"
    if geometry.kernel not in ((1, 1), (3, 3)):
        return f"it takes kernels of 3x3 and 1x1, and not {geometry.kernel[0]}x{geometry.kernel[1]}"
    if not all(0 <= begin <= whole - part for begin, part, whole in _placed(geometry)):
        return f"it keeps every pixel, and a padding of {geometry.pad} makes {size} of {geometry.in_size}"
    if in_channels % 16 or out_channels % 16:
        return f"it takes multiples of 16 channels, and not {in_channels} and {out_channels}; pad them with zeros"
    if fusion.against is not None or fusion.moments:
        return "it adds nothing up over the pixels, as the gradient of styles and moments of the output need it"
    if fusion.colours is not None or not fusion.keep:
        return "it makes no colours of its output, and always stores that"
    if pitch_of(size) * max(out_channels, size[1] + 1) >= 2**31:
        return f"it counts in 32 bits, and {size} with {out_channels} channels is more"
    return None


def flat_pays(x: Tensor, geometry: Geometry, out_channels: int) -> bool:
    """Whether laying `x` out flat should be worth its pass over memory: an estimate, which nobody has measured."""
    hopper, channels = 90 <= architecture(x.device) < 100, min(x.shape[1], out_channels)
    tiles = flat_tiles(x.shape[0], geometry.out_size) * -(-out_channels // 128)
    return hopper and geometry.pixels >= MIN_PIXELS and channels >= MIN_CHANNELS and tiles >= processors(x.device)


def flat_tiles(batch: int, size: Size) -> int:
    """Tiles of rows that have pixels; the others of a sample are zeros only."""
    height, width = size
    return batch * -(-height * (width + 1) // ROWS)


def offset_of(geometry: Geometry) -> Size:
    """Where the input begins in the image, of the size of the output, that a "same" convolution makes the output of."""
    return geometry.pad[0] - geometry.kernel[0] // 2, geometry.pad[1] - geometry.kernel[1] // 2


def reciprocal_of(width: int) -> int:
    """`2^32 / (width + 1)`, rounded up: the high half of a row times this is the row's line, for all that fit."""
    return -(-(1 << 32) // (width + 1))


def choose_flat_tile(batch: int, size: Size, channels: tuple[int, int], device: torch.device) -> Tile:
    """The widest tile that the output channels fill and that gives each processor one; `channels` are (in, out)."""
    inputs, outputs = channels
    k = min((64, 32, 16), key=lambda k: -(-inputs // k) * (k + 4))
    n = min((256, 128, 64), key=lambda n: -(-outputs // n) * n)
    while n > 64 and flat_tiles(batch, size) * -(-outputs // n) < processors(device):
        n //= 2
    # on Hopper Triton makes three roles of four warps, one that copies and two that multiply, and of no other number
    blackwell = architecture(device) >= 100
    return Tile(ROWS, n, k, Options(num_warps=8, num_stages=3) if blackwell else Options(num_warps=4, num_stages=4))


def _placed(geometry: Geometry) -> list[tuple[int, int, int]]:
    """Along each axis: where the input begins in the image of `offset_of`, its size, and that of the image."""
    return list(zip(offset_of(geometry), geometry.in_size, geometry.out_size, strict=True))
