"""The layers of a synthesis network as one chain: each scales its output by the style of the layer that reads it.

A style multiplies the input of its convolution, which is the output of the layer before. Multiplied there, while it
still is in registers, it costs nothing, and the convolution reads its operands as they are. ToRGB, the second reader,
gets the unscaled output, in the same pass where that can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.conv2d_resample import ResampledConv, triton_limit
from kernels.conv_plan import remember
from kernels.dispatch import resolve
from kernels.modulated_conv import NOTHING, PLAIN, Epilogue, ModulatedConv, fuses, modulated_conv2d


@dataclass(frozen=True, slots=True)
class StyledConv:
    """A modulated convolution with the styles of a batch, and what comes after it."""

    weight: Tensor  # [O, I, k, k]
    styles: Tensor  # [N, I]
    conv: ModulatedConv = PLAIN
    epilogue: Epilogue = NOTHING
    fir: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to `[N, I, H, W]`."""
        return modulated_conv2d(x, self.weight, self.styles, self.conv, fir=self.fir, epilogue=self.epilogue)

    def widened(self, inputs: int, outputs: int) -> StyledConv:
        """The same for more channels, for inference: those after its own are zeros, in and out.

        Without demodulation or a noise, which would make them something else. The wider weight is kept.
        """
        more_in, more_out = inputs - self.weight.shape[1], outputs - self.weight.shape[0]
        if not more_in and not more_out:
            return self
        key = ("widened", inputs, outputs)
        weight = remember(self.weight, key, lambda: pad(self.weight, (0, 0, 0, 0, 0, more_in, 0, more_out)))
        given = self.epilogue.bias, self.epilogue.scale
        bias, scale = (None if values is None else pad(values, (0, more_out)) for values in given)
        epilogue = replace(self.epilogue, bias=bias, scale=scale)
        return replace(self, weight=weight, styles=pad(self.styles, (0, more_in)), epilogue=epilogue)


@dataclass(frozen=True, slots=True)
class StyledBlock:
    """The layers of one resolution: convolutions one after the other, and ToRGB of the last, which keeps the size."""

    convs: Sequence[StyledConv]
    to_rgb: StyledConv | None  # 1x1, without demodulation, linear; its `fir` doubles the image so far
    dtype: torch.dtype


def is_chained(ws: Tensor, fir: Tensor) -> bool:
    """Whether `synthesis_chain` is to run: nobody asks for gradients, and `use` selects Triton.

    `fir` is the filter of the layers that double the resolution.
    """
    return fuses(ws, fir, limit=triton_limit(fir, ResampledConv(up=2)))


def synthesis_chain(x: Tensor, blocks: Sequence[StyledBlock]) -> Tensor:
    """Run `blocks` on `x` `[N, C, H, W]` and return the image `[N, colours, H, W]`, float32. Not differentiable.

    Equal to applying the convolutions one after the other, and adding up what each ToRGB makes of the last one.
    ValueError for convolutions that don't demodulate or have a scale, and where no block makes an image.
    """
    convs = [conv for block in blocks for conv in block.convs]
    if not all(conv.conv.demodulate and conv.epilogue.scale is None for conv in convs):
        raise ValueError("synthesis_chain: a convolution without demodulation, or with a scale; allowed are others")
    if all(block.to_rgb is None for block in blocks):
        raise ValueError("synthesis_chain: no block makes an image; give one of them a to_rgb")
    return resolve("kernels.synthesis_chain_triton:synthesis_chain_triton")(x, blocks)
