"""Plain and transposed convolution with any zero padding: uneven, or negative, which crops."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Pair = int | tuple[int, int]  # one value, or (x, y)
PaddingLike = int | tuple[int, int] | tuple[int, int, int, int]  # one value, (x, y), or (x0, x1, y0, y1)
Padding = tuple[int, int, int, int]


def as_pair(value: Pair, what: str) -> tuple[int, int]:
    """Return (x, y) of a factor; ValueError unless both are at least 1."""
    x, y = (value, value) if isinstance(value, int) else value
    if x < 1 or y < 1:
        raise ValueError(f"{what}: got {value!r}; allowed are an integer from 1 up or a pair (x, y) of them")
    return x, y


def as_padding(value: PaddingLike) -> Padding:
    """Return (x0, x1, y0, y1); ValueError for another number of values."""
    if isinstance(value, int):
        return value, value, value, value
    if len(value) == 2:
        return value[0], value[0], value[1], value[1]
    if len(value) == 4:
        return value
    raise ValueError(f"padding: got {value!r}; allowed are an integer, (x, y) or (x0, x1, y0, y1)")


def padded_conv2d(
    x: Tensor, weight: Tensor, padding: Padding, *, stride: tuple[int, int] = (1, 1), groups: int = 1
) -> Tensor:
    """Correlate `x` `[N, I, H, W]` with `weight` `[O, I/groups, kh, kw]`; `stride` is (x, y)."""
    x0, x1, y0, y1 = padding
    # the convolution's own padding costs no copy of x, so it takes what is common to both sides
    px, py = max(min(x0, x1), 0), max(min(y0, y1), 0)
    x = _pad(x, (x0 - px, x1 - px, y0 - py, y1 - py))
    return F.conv2d(x, weight, stride=stride[::-1], padding=(py, px), groups=groups)


def padded_conv_transpose2d(
    x: Tensor, weight: Tensor, padding: Padding, *, up: tuple[int, int], groups: int = 1
) -> Tensor:
    """Put `up - 1` zeros after every sample, pad, and convolve, with `weight` `[I, O/groups, kh, kw]`.

    It is a true convolution, and `up` is (x, y). The output is `H * up + y0 + y1 - kh + 1` high.
    """
    kh, kw = weight.shape[2:]
    # what the full transposed convolution has too much at each edge
    x0, x1 = kw - 1 - padding[0], kw - up[0] - padding[1]
    y0, y1 = kh - 1 - padding[2], kh - up[1] - padding[3]
    cx, cy = max(min(x0, x1), 0), max(min(y0, y1), 0)
    y = F.conv_transpose2d(x, weight, stride=up[::-1], padding=(cy, cx), groups=groups)
    return _pad(y, (cx - x0, cx - x1, cy - y0, cy - y1))


def _pad(x: Tensor, padding: Padding) -> Tensor:
    return F.pad(x, padding) if any(padding) else x
