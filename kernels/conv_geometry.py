"""Sizes of a convolution, of its transpose, and of anything between: up by one whole factor, or down by one."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.padded_conv import Padding

Size = tuple[int, int]  # (y, x)


@dataclass(frozen=True, slots=True)
class Geometry:
    """`z[p] = sum_k x'[p down + k - pad] w[k]`, where `x'` is `x` with `up - 1` zeros after every sample.

    Either `up` or `down` is 1. One weight `[O, I, kh, kw]` serves a convolution and its transpose: `flipped` reads it
    from its end, and `swapped` takes `O` for the channels of the input.
    """

    in_size: Size
    out_size: Size
    kernel: Size
    pad: Size  # before the first sample, of the zero-stuffed image; negative crops
    up: int = 1
    down: int = 1
    flipped: bool = False
    swapped: bool = False

    @classmethod
    def of(cls, in_size: Size, kernel: Size, padding: Padding, *, down: int = 1, flipped: bool = False) -> Geometry:
        """A convolution with padding (x0, x1, y0, y1)."""
        x0, x1, y0, y1 = padding
        height, width = (
            (size + pad - taps) // down + 1 for size, pad, taps in zip(in_size, (y0 + y1, x0 + x1), kernel, strict=True)
        )
        return cls(in_size, (height, width), kernel, (y0, x0), 1, down, flipped)

    @classmethod
    def upsampling(cls, in_size: Size, kernel: Size, up: int, *, flipped: bool) -> Geometry:
        """A transposed convolution of which nothing is cropped."""
        height, width = (size * up + taps - up for size, taps in zip(in_size, kernel, strict=True))
        return cls(in_size, (height, width), kernel, (kernel[0] - 1, kernel[1] - 1), up, 1, flipped)

    @property
    def transposed(self) -> Geometry:
        """The geometry that takes gradients of the output to gradients of the input."""
        pad = self.kernel[0] - 1 - self.pad[0], self.kernel[1] - 1 - self.pad[1]
        sizes = self.out_size, self.in_size
        return Geometry(*sizes, self.kernel, pad, self.down, self.up, not self.flipped, not self.swapped)

    @property
    def phase_size(self) -> Size:
        """Outputs of one of the `up * up` phases, each of which meets taps of its own."""
        return -(-self.out_size[0] // self.up), -(-self.out_size[1] // self.up)

    @property
    def pixels(self) -> int:
        """Number of output positions of a sample."""
        return self.out_size[0] * self.out_size[1]
