"""Triton implementation of `synthesis_chain`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import repeat

import torch
from torch import Tensor

from kernels.bias_act import Activation
from kernels.conv2d_resample_triton import begin_resampled
from kernels.conv_geometry import Size
from kernels.conv_plan import Colours, Fusion, case_of_dtype, paints
from kernels.conv_triton import convolve
from kernels.demodulation_triton import demodulations_triton, packed_energy
from kernels.launch import CompileCase
from kernels.modulated_conv import Epilogue, ModulatedConv
from kernels.modulated_conv_triton import reciprocal, weight_gain, with_noise_of
from kernels.synthesis_chain import StyledBlock, StyledConv
from kernels.upfirdn2d import upsample2d
from kernels.upfirdn2d_triton import upfirdn2d_epilogue_triton, upfirdn2d_triton

MAX_COLOURS = 4  # that a convolution makes of its output by the way


@dataclass(frozen=True, slots=True)
class _Link:
    """A convolution of the chain, and by what its input has been multiplied."""

    layer: StyledConv
    styles: Tensor  # [N, I]
    scale: Tensor  # [N, O]
    weight_gain: Tensor | None  # [O]
    next_style: Tensor | None  # [N, O]; the last layer has none


def synthesis_chain_triton(x: Tensor, blocks: Sequence[StyledBlock]) -> Tensor:
    """Triton implementation of `synthesis_chain`."""
    links = _links(blocks)
    x = x * links[0].styles[:, :, None, None]
    remaining, image = iter(links), None
    for block in blocks:
        *before, last = (next(remaining) for _ in block.convs)
        x = x.to(block.dtype)
        for link in before:
            x = _run(x, link)
        if block.to_rgb is None:
            x = _run(x, last)
        else:
            x, image = _run_and_paint(x, last, block.to_rgb, image)
    assert image is not None
    return image


def _run(x: Tensor, link: _Link) -> Tensor:
    layer = link.layer
    x, weight, geometry, after = begin_resampled(x, layer.weight, layer.fir, layer.conv.resampled())
    if not after:
        return convolve(x, weight, geometry, _fusion(link, geometry.out_size))[0]
    y, _ = convolve(x, weight, geometry, Fusion(scale=link.scale, weight_gain=link.weight_gain))
    *first, last = after
    for resampling in first:
        y = upfirdn2d_triton(y, layer.fir, resampling)
    return upfirdn2d_epilogue_triton(y, layer.fir, last, layer.epilogue, link.next_style)


def _run_and_paint(x: Tensor, link: _Link, to_rgb: StyledConv, image: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run a layer that doesn't resample; also return the image, to which ToRGB of its unscaled output is added."""
    x, weight, geometry, _ = begin_resampled(x, link.layer.weight, None, link.layer.conv.resampled())
    fusion = _fusion(link, geometry.out_size)
    colours = to_rgb.weight.shape[0]
    if colours <= MAX_COLOURS and paints(x, geometry, weight.shape[0]):
        painted = _colours(to_rgb, image, geometry.out_size)
        y, _ = convolve(x, weight, geometry, replace(fusion, colours=painted, keep=link.next_style is not None))
        return y, painted.image
    unscaled: Tensor | None = None
    if link.next_style is not None:
        shape = (len(x), weight.shape[0], *geometry.out_size)
        unscaled = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    y, _ = convolve(x, weight, geometry, replace(fusion, unscaled=unscaled))
    rgb = to_rgb(y if unscaled is None else unscaled).to(torch.float32, memory_format=torch.contiguous_format)
    return y, rgb if image is None else rgb.add_(upsample2d(image, to_rgb.fir))


def _fusion(link: _Link, size: Size) -> Fusion:
    epilogue = with_noise_of(link.layer.epilogue, len(link.styles), size)
    return Fusion(None, link.scale, epilogue, link.next_style, weight_gain=link.weight_gain)


def _colours(to_rgb: StyledConv, image: Tensor | None, size: Size) -> Colours:
    """The image that a convolution paints: ToRGB's weight of each sample, on top of the image so far."""
    weight = to_rgb.weight[None, :, :, 0, 0].float() * to_rgb.styles[:, None, :]
    new = weight.new_empty(*weight.shape[:2], *size)
    skip, fir = image, to_rgb.fir
    if skip is not None and not (fir is not None and fir.shape == (4, 4)):
        skip, fir = upsample2d(skip, fir).contiguous(), None
    clamp = to_rgb.epilogue.activation.clamp
    return Colours(new, weight, to_rgb.epilogue.bias, clamp, skip, None if skip is None or fir is None else fir)


def _links(blocks: Sequence[StyledBlock]) -> list[_Link]:
    """What all layers are multiplied by, in a few launches for all of them together."""
    convs = [conv for block in blocks for conv in block.convs]
    weights = [conv.weight for conv in convs]
    styles = torch.cat([conv.styles for conv in convs], 1).float()
    scales = demodulations_triton(packed_energy(weights), styles)
    fan_out, fan_in = zip(*((weight.shape[0], weight.shape[1]) for weight in weights), strict=True)
    gains: list[Tensor] | None = None
    if any(block.dtype == torch.float16 for block in blocks):
        # into the range of float16, and out of it with the scale; layers in float32 lose nothing by it
        gains = [weight_gain(weight) for weight in weights]
        largest = styles.abs()[:, _channels(fan_in, styles.device)].amax(2)  # [N, layers]
        style_gain = reciprocal(largest)
        styles = styles * style_gain[:, _owners(fan_in, styles.device)]
        scales = scales / (style_gain[:, _owners(fan_out, styles.device)] * torch.cat(gains))
    factors = _by_layer(styles, fan_in), _by_layer(scales, fan_out), gains or repeat(None, len(convs))
    split = list(zip(convs, *factors, strict=True))
    readers = [style for _, style, _, _ in split[1:]] + [None]
    return [_Link(*parts, reader) for parts, reader in zip(split, readers, strict=True)]


def _by_layer(values: Tensor, sizes: tuple[int, ...]) -> Iterator[Tensor]:
    """Split `[N, sum of sizes]` into contiguous parts, one for each layer."""
    n = len(values)
    parts = values.flatten()[_positions(n, sizes, values.device)].split([n * size for size in sizes])
    return (part.view(n, size) for part, size in zip(parts, sizes, strict=True))


@cache
def _positions(n: int, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    columns = torch.arange(n * sum(sizes)).view(n, sum(sizes)).split(sizes, 1)
    return torch.cat([part.flatten() for part in columns]).to(device)


@cache
def _owners(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """For each channel of all layers the number of its layer."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(device)


@cache
def _channels(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """`[layers, largest size]`: the channels of each layer; the last one of it fills up the row."""
    ends = torch.tensor(sizes).cumsum(0)[:, None]
    starts = ends - torch.tensor(sizes)[:, None]
    return torch.minimum(starts + torch.arange(max(sizes)), ends - 1).to(device)


def _painting_case(x: tuple[int, int, int, int], outputs: int, dtype: str, last: bool = False) -> CompileCase:
    """A layer that also makes an image of its output; of the last one nothing else is stored."""

    def call(dtype: torch.dtype) -> None:
        n, _, height, width = x
        features, before = (
            torch.empty(shape, dtype=kind, device="meta")
            for shape, kind in ((x, dtype), ((n, 3, height // 2, width // 2), torch.float32))
        )
        weight, rgb, scale, noise, bias, rgb_bias, fir = (
            torch.empty(shape, device="meta")
            for shape in ((outputs, x[1], 3, 3), (3, outputs, 1, 1), (n, outputs), (height, width), outputs, 3, (4, 4))
        )
        layer = StyledConv(weight, scale, SAME_SIZE, Epilogue(noise, bias, Activation("lrelu", clamp=256.0)))
        to_rgb = StyledConv(rgb, scale, COLOURED, Epilogue(None, rgb_bias, Activation("linear", clamp=256.0)), fir)
        _run_and_paint(features, _Link(layer, scale, scale, None, None if last else scale), to_rgb, before)

    shape = f"{x[1]}-{outputs}-{x[2]}"
    return case_of_dtype(f"synthesis_chain/{'last' if last else 'paint'}-{shape}", dtype, "warpgroup", call)


SAME_SIZE, COLOURED = ModulatedConv(padding=1), ModulatedConv(demodulate=False)
COMPILE_CASES = (
    _painting_case((16, 256, 128, 128), 256, "float16"),
    _painting_case((16, 128, 256, 256), 128, "float16"),
    _painting_case((16, 128, 256, 256), 128, "float32"),
    _painting_case((16, 128, 256, 256), 128, "tf32"),
    _painting_case((16, 64, 512, 512), 64, "bfloat16"),
    _painting_case((16, 64, 512, 512), 64, "float32"),
    _painting_case((4, 32, 1024, 1024), 32, "float16", last=True),
    _painting_case((4, 32, 1024, 1024), 32, "tf32", last=True),
)
