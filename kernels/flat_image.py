"""Images as one matrix, a pixel a row, in which each tap of a 3x3 convolution is a shift by a fixed number of rows.

One pixel of zeros ends each line of an image and is the neighbour of both ends of the lines beside it; zeros between
two samples are the lines above and below. A tile of rows, shifted or not, is then one rectangle of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernels.conv_geometry import Size

ROWS = 128  # of every tile: a sample begins with a tile, so that no tile has rows of two of them


@dataclass(frozen=True, slots=True)
class FlatImage:
    """Images `[N, C, H, W]` as the rows of a matrix `[N * pitch, C]`, pixels first, each line ended by a zero.

    All rows that are not pixels are zeros, and whoever writes the matrix keeps them so.
    """

    rows: Tensor
    size: Size

    @classmethod
    def empty(cls, batch: int, channels: int, size: Size, like: Tensor) -> FlatImage:
        """Memory of the dtype and device of `like` for `batch` images, with nothing in it yet, not even the zeros."""
        return cls(like.new_empty(batch * pitch_of(size), channels), size)

    @classmethod
    def of(cls, x: Tensor) -> FlatImage:
        """Copy images `[N, C, H, W]`; with PyTorch, and differentiable."""
        n, channels, *(height, width) = x.shape
        made = cls(x.new_zeros(n * pitch_of((height, width)), channels), (height, width))
        made.image.copy_(x)
        return made

    @property
    def pitch(self) -> int:
        """Rows of a sample."""
        return pitch_of(self.size)

    @property
    def image(self) -> Tensor:
        """The pixels as a view `[N, C, H, W]`, channels_last but for the zeros that its strides step over."""
        (height, width), channels = self.size, self.rows.shape[1]
        samples = self.rows.view(-1, self.pitch, channels)
        lines = samples[:, : height * (width + 1)].view(-1, height, width + 1, channels)
        return lines[:, :, :width].permute(0, 3, 1, 2)


def pitch_of(size: Size) -> int:
    """Rows of a sample: its lines, at least a line and a pixel of zeros after them, and zeros up to a whole tile."""
    height, width = size
    return -(-(height * (width + 1) + width + 2) // ROWS) * ROWS
