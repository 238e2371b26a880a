"""Sizes of the problems that kernels solve, and the least arithmetic and memory traffic that each needs."""

from __future__ import annotations

from dataclasses import dataclass

FIR_TAPS = 16  # of the 2-D [1, 3, 3, 1] resampling filter
FILTERED_LRELU_TAPS = 6  # of both filters along each axis, per factor of resampling


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer: input `[batch, in_channels, height, width]`, weight `[out_channels, in_channels, kernel, kernel]`.

    Padding keeps the size ("same"), so the output is `height * up / down` by `width * up / down`.
    """

    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: int = 3
    up: int = 1
    down: int = 1

    @property
    def inputs(self) -> int:
        """Number of input elements."""
        return self.batch * self.in_channels * self.height * self.width

    @property
    def out_pixels(self) -> int:
        """Number of output positions, all samples together."""
        return self.batch * (self.height * self.up // self.down) * (self.width * self.up // self.down)

    @property
    def outputs(self) -> int:
        """Number of output elements."""
        return self.out_pixels * self.out_channels

    @property
    def weights(self) -> int:
        """Number of weight elements."""
        return self.out_channels * self.in_channels * self.kernel**2


def conv_flops(shape: LayerShape) -> int:
    """FLOPs of the convolution and its FIR filter; a multiply-add counts two.

    A transposed convolution spends its multiply-adds per input position; the FIR runs on the larger side.
    """
    positions = shape.out_pixels if shape.up == 1 else shape.batch * shape.height * shape.width
    return 2 * positions * shape.weights + (fir_flops(shape) if shape.up > 1 or shape.down > 1 else 0)


def conv_bytes(shape: LayerShape, element_size: int) -> int:
    """Bytes of reading input and weight once and writing the output once; `element_size` in bytes."""
    return element_size * (shape.inputs + shape.weights + shape.outputs)


def modulated_conv_flops(shape: LayerShape) -> int:
    """FLOPs of `conv_flops` plus modulation, demodulation and its matrix product."""
    return conv_flops(shape) + shape.inputs + shape.outputs + demodulation_flops(shape)


def modulated_conv_bytes(shape: LayerShape, element_size: int) -> int:
    """Bytes of `conv_bytes` plus the styles `[batch, in_channels]`."""
    return conv_bytes(shape, element_size) + element_size * shape.batch * shape.in_channels


def demodulation_flops(shape: LayerShape) -> int:
    """FLOPs of the sums of squared weights and of the matrix product with the squared styles."""
    return 2 * shape.weights + 2 * shape.batch * shape.in_channels * shape.out_channels


def demodulation_bytes(shape: LayerShape, element_size: int) -> int:
    """Bytes of reading weight and styles once and writing the factors."""
    return element_size * (shape.weights + shape.batch * (shape.in_channels + shape.out_channels))


def fir_flops(shape: LayerShape) -> int:
    """FLOPs of a 16-tap FIR per channel; zeros that upsampling puts in are not counted."""
    return 2 * FIR_TAPS * shape.outputs // shape.up**2


def filtered_lrelu_flops(shape: LayerShape) -> int:
    """FLOPs of a filtered leaky ReLU by `up` and `down` at once, with separable filters as StyleGAN3 has them.

    Each filter has six taps per factor of resampling; bias, gain, activation and clamp are one each for an element.
    """
    planes, wide = shape.batch * shape.in_channels, shape.width * shape.up
    high = planes * shape.height * shape.up * wide
    up = planes * shape.height * wide + high
    down = planes * shape.height * shape.up * (wide // shape.down) + planes * shape.out_pixels // shape.batch
    return 2 * FILTERED_LRELU_TAPS * (up + down * shape.down) + shape.inputs + 3 * high


def pointwise_flops(shape: LayerShape) -> int:
    """FLOPs of bias, gain, activation and clamp: one each for every element."""
    return 4 * shape.inputs


def pointwise_bytes(shape: LayerShape, element_size: int) -> int:
    """Bytes of reading the input once and writing the output once."""
    return element_size * (shape.inputs + shape.outputs)


def minibatch_std_flops(shape: LayerShape) -> int:
    """FLOPs of mean, difference, square, mean and the sum over features: five for every element."""
    return 5 * shape.inputs
