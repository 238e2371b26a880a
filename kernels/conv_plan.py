"""How a convolution is cut into programs for a GPU, and its weight laid out for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kernels.conv_geometry import Geometry, Size
from kernels.launch import CompileCase, Options, TensorCores, architecture
from kernels.modulated_conv import NOTHING, Epilogue

PROCESSORS = {"cpu": 1, "meta": 132}  # of a GPU that isn't there: the interpreter wants few tiles, the gate an H100
MIN_STEPS, MAX_PARTS = 4, 16  # of a program that makes a part of a convolution, and of the parts


# FLOP/s of float16 and bytes/s that kernels reach, about: 70 % and 88 % of a data sheet's
RATES = {80: (218e12, 1.8e12), 90: (690e12, 2.9e12), 100: (1570e12, 7.0e12)}


@dataclass(frozen=True, slots=True)
class Colours:
    """An image that a launch makes of its output, by products with it, and adds to the image so far.

    The image is contiguous. With `fir` the image so far has half the size, and is doubled as `upsample2d` does.
    """

    image: Tensor  # [N, colours, H, W], which is written
    weight: Tensor  # [N, colours, O], float32
    bias: Tensor | None = None  # [colours]
    clamp: float | None = None
    skip: Tensor | None = None  # [N, colours, H, W] or half of that: the image so far
    fir: Tensor | None = None  # [4, 4]


@dataclass(frozen=True, slots=True)
class Fusion:
    """What one launch does beside the convolution; styles and scales are `[N, channels]`.

    All but `style` happens after it, in this order: `against`, `scale`, `epilogue`, `moments`, `colours`, `unscaled`,
    `next_style`.
    """

    style: Tensor | None = None  # by which the input is multiplied
    scale: Tensor | None = None  # by which the convolution is multiplied
    epilogue: Epilogue = NOTHING
    next_style: Tensor | None = None  # by which the output is multiplied, for the layer that reads it
    against: Tensor | None = None  # like the output: the sum over pixels of its product with the convolution is wanted
    weight_gain: Tensor | None = None  # [O] of the stored weight, put in when the weight is prepared
    moments: bool = False  # mean and variance of the output by sample and channel are wanted; not if transposed
    colours: Colours | None = None  # for which a tile has all output channels: see `paints`
    unscaled: Tensor | None = None  # like the output, channels_last: is given what that is before `next_style`
    keep: bool = True  # False: the output itself is not stored

    @property
    def sums_up(self) -> bool:
        """Whether sums over the pixels of each sample are wanted."""
        return self.against is not None or self.moments


@dataclass(frozen=True, slots=True)
class Tile:
    """Pixels, output channels and input channels of one step, and how it is compiled."""

    m: int
    n: int
    k: int
    options: Options
    parts: int = 1  # that taps and channels are shared out to


NO_FUSION = Fusion()
_prepared: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def choose_tile(x: Tensor, geometry: Geometry, out_channels: int, fusion: Fusion) -> Tile:
    """The largest tile that the channels fill, and as many parts as it takes to keep all processors at work."""
    wide, capability = x.element_size() == 4, architecture(x.device)
    hopper, blackwell = 90 <= capability < 100, capability >= 100
    rows = x.shape[0] * geometry.phase_size[0] * geometry.phase_size[1] * geometry.up**2
    # at least 16 channels, and as few as possible of zeros that fill up the last step
    k = min((32, 16) if wide else (64, 32, 16), key=lambda k: _cdiv(x.shape[1], k) * (k + 4))
    m, n = (min(max(_next_power_of_2(size), 16), 128) for size in (rows, out_channels))
    # channels that are loaded one by one, and float32 on its way to three TF32 products, take registers
    if x.shape[1] % 8 or (capability < 90 and precision(x.dtype) == "tf32x3"):
        m, n = min(m, 64), min(n, 64)
    if fusion.colours is not None:  # all output channels, and as many warps as leave room for sums over them
        n = _next_power_of_2(max(out_channels, 16))
        m = min(m, 64 if n > 64 else 128)
    if blackwell and fusion.moments:  # 128 x 128 would spill
        m = min(m, max((1 << 13) // n, 64))
    tiles = _cdiv(rows, m) * _cdiv(out_channels, n)
    while m * n > 4096 and tiles < processors(x.device):
        m, n = (m, n // 2) if n > m and fusion.colours is None else (m // 2, n)
        tiles = _cdiv(rows, m) * _cdiv(out_channels, n)
    steps = geometry.kernel[0] * geometry.kernel[1] * _cdiv(x.shape[1], k) // geometry.up**2
    parts = max(min(processors(x.device) // tiles, steps // MIN_STEPS, MAX_PARTS), 1)
    parts = 1 if fusion.colours is not None else parts
    simple = (
        geometry.up == 1 and geometry.pixels % m == 0 and fusion.unscaled is None and not fusion.sums_up and not wide
    )
    if simple and hopper and out_channels >= 256 and m * n == 1 << 14 and tiles >= 8 * processors(x.device):
        n = 256
    # ptxas gives kernels that multiply with tcgen05 few registers, so that four warps spill on a B200
    warps = 8 if m * n * x.element_size() > 1 << 14 or (blackwell and m * n >= 4096) else 4
    if fusion.colours is not None and n > 64:
        warps = n // 16
    return Tile(m, n, k, Options(num_warps=warps, num_stages=3 if blackwell or m * n > 4096 else 4), parts)


def paints(x: Tensor, geometry: Geometry, out_channels: int) -> bool:
    """Whether one launch can also make `Colours` of its output: each of its tiles then has all channels."""
    capability = architecture(x.device)
    widest = 256 if x.element_size() == 2 and capability < 100 else 128
    widest = 64 if precision(x.dtype) == "tf32x3" and capability < 90 else widest
    enough = x.shape[0] * geometry.pixels >= 64 * processors(x.device)  # or tiles would get too flat
    return out_channels <= widest and x.shape[1] % 8 == 0 and enough


def composes(x: Tensor, geometry: Geometry, out_channels: int, fir: Size) -> bool:
    """Whether a convolution that upsamples is best made one with the filter of `fir` taps that follows it.

    That multiplies by all taps of both together, and saves what lies between them from being written and read. An
    estimate by the time that multiplications and memory take; nobody measured it.
    """
    capability = max(known for known in RATES if known <= max(architecture(x.device), min(RATES)))
    flops_per_s, bytes_per_s = RATES[capability]
    if x.element_size() == 4:
        flops_per_s /= 6 if precision(x.dtype) == "tf32x3" else 2
    taps = geometry.kernel[0] * geometry.kernel[1] / geometry.up**2  # of an output
    all_taps = (geometry.kernel[0] + fir[0] - 1) * (geometry.kernel[1] + fir[1] - 1) / geometry.up**2
    multiply = 2 * x.shape[1] * out_channels / flops_per_s
    written = out_channels * x.element_size() / bytes_per_s
    moved = x.shape[1] / geometry.up**2 * x.element_size() / bytes_per_s + written
    return max(all_taps * multiply, moved) < max(taps * multiply, moved) + 2 * written


def rows_of_sample(pixels: int, block: int, *, separate: bool) -> tuple[int, int]:
    """Rows that a sample takes up, and how many of them, all of one sample, may be added up in a tile of `block`.

    With `separate` no such group has pixels of two samples. Small images otherwise share a tile.
    """
    if block % pixels == 0:
        return pixels, pixels
    padded = _cdiv(pixels, block) * block
    return (padded, block) if separate or padded - pixels <= pixels // 8 else (pixels, block)


def prepare_weight(weight: Tensor, geometry: Geometry, tile: Tile, dtype: torch.dtype, gain: Tensor | None) -> Tensor:
    """Return `weight` as the kernel reads it, `[outputs, taps, inputs]`; zeros fill up the last tiles."""

    def make() -> Tensor:
        stored = weight if gain is None else weight * gain[:, None, None, None]
        stored = stored.flip(2, 3) if geometry.flipped else stored
        order = (1, 2, 3, 0) if geometry.swapped else (0, 2, 3, 1)
        ordered = stored.permute(order).flatten(1, 2)
        outputs, taps, inputs = ordered.shape
        shape = (_cdiv(outputs, tile.n) * tile.n, taps, _cdiv(inputs, tile.k) * tile.k)
        prepared = ordered.new_zeros(shape, dtype=dtype)
        prepared[:outputs, :, :inputs] = ordered
        return prepared

    made: Tensor = remember(weight, (geometry.flipped, geometry.swapped, tile.n, tile.k, dtype, gain is None), make)
    return made


def remember(weight: Tensor, key: Hashable, make: Callable[[], Any]) -> Any:
    """Return what `make` makes of a weight and nothing else; it is kept until the weight changes or is gone.

    A CUDA graph keeps what it was captured with: capture it again when weights have changed.
    """
    if weight.is_inference():  # changes of these aren't counted
        return make()
    state = weight._version, weight.data_ptr(), weight.dtype
    before, kept = _prepared.get(weight, (None, {}))
    if before != state:
        _prepared[weight] = state, (kept := {})
    if key not in kept:
        with torch.inference_mode(False), torch.no_grad():
            made = make()
        if is_captured(weight):
            return made
        kept[key] = made
    return kept[key]


def is_captured(weight: Tensor) -> bool:
    """Whether what is made of a weight now belongs to a CUDA graph, and has no values before that is replayed."""
    return weight.is_cuda and torch.cuda.is_current_stream_capturing()


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied, as PyTorch's flag for convolutions says; three TF32 products are as good as one."""
    cudnn: Any = torch.backends.cudnn  # its older flag, allow_tf32, can't be read where one of the newer ones is set
    return "tf32" if dtype != torch.float32 or cudnn.conv.fp32_precision == "tf32" else "tf32x3"


@cache
def processors(device: torch.device) -> int:
    """Number of multiprocessors of a GPU."""
    if device.type != "cuda":
        return PROCESSORS[device.type]
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Set PyTorch's flag for convolutions meanwhile."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def case_of_dtype(
    name: str, dtype: str, tensor_cores: TensorCores, call: Callable[[torch.dtype], object]
) -> CompileCase:
    """A case of one of PyTorch's dtypes, or of "tf32"."""

    def run() -> None:
        with allow_tf32(dtype == "tf32"):
            call(torch.float32 if dtype == "tf32" else getattr(torch, dtype))

    return CompileCase(f"{name}-{dtype}", run, tensor_cores)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
