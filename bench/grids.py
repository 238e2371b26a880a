"""Pictures of samples for a report: uncurated grids, and inversions beside their targets."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MIN_TILE, MAX_TILE = 128, 256  # pixels a side: 32-pixel images can be seen, 1024-pixel ones fit a page
GAP = 2
LABEL_HEIGHT = 18
COLUMNS = 8
DIFFERENCE_GAIN = 4  # differences of a good inversion could not be seen without


def image_grid(images: Tensor, columns: int | None = None, labels: Sequence[str] | None = None) -> bytes:
    """Lay images out row by row, as a PNG. The caller gives the first samples of a run, never chosen ones.

    Args:
        images: uint8 `[N, 3, H, W]`.
        columns: images a row; 8 by default, or fewer for fewer images.
        labels: a text above each image.
    """
    columns = min(columns or COLUMNS, len(images))
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images; give one for each, or none")
    return _png(_lay_out(_tiles(images), columns, labels))


def png(image: Tensor) -> bytes:
    """Encode one image, uint8 `[3, H, W]`, as it is."""
    return _png(Image.fromarray(image.permute(1, 2, 0).cpu().numpy()))


def triptych(targets: Tensor, inverted: Tensor) -> bytes:
    """Show inversions, one a row: target, inversion, four times their absolute difference; as a PNG.

    Args:
        targets: uint8 `[N, 3, H, W]`.
        inverted: uint8 of the same shape.
    """
    if targets.shape != inverted.shape:
        raise ValueError(f"targets {tuple(targets.shape)} and inversions {tuple(inverted.shape)} differ in shape")
    difference = (DIFFERENCE_GAIN * (targets.int() - inverted.int()).abs()).clamp(max=255).to(targets.dtype)
    columns = [_tiles(images) for images in (targets, inverted, difference)]
    tiles = [tile for row in zip(*columns, strict=True) for tile in row]
    return _png(_lay_out(tiles, 3, ["target", "inversion", f"|difference| x {DIFFERENCE_GAIN}"]))


def _tiles(images: Tensor) -> list[Image.Image]:
    """Each image at a size to look at: whole multiples of pixels up, whole fractions (box filter) down."""
    if images.ndim != 4 or images.shape[1] != 3 or str(images.dtype) != "torch.uint8" or not len(images):
        raise ValueError(f"images {images.dtype} {tuple(images.shape)}; expected uint8 [N, 3, H, W] with N >= 1")
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    side = max(pixels.shape[1:3])
    up, down = max(1, MIN_TILE // side), max(1, math.ceil(side / MAX_TILE))
    pixels = np.repeat(np.repeat(pixels, up, axis=1), up, axis=2)
    return [Image.fromarray(image).reduce(down) for image in pixels]


def _lay_out(tiles: Sequence[Image.Image], columns: int, labels: Sequence[str] | None) -> Image.Image:
    """Put tiles on white; labels stand above the first `len(labels)` tiles, and make their rows taller."""
    width, height = tiles[0].size
    labels = labels or []
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heads = [LABEL_HEIGHT if row.start < len(labels) else 0 for row in rows]
    size = (columns * (width + GAP) - GAP, sum(heads) + len(rows) * (height + GAP) - GAP)
    canvas = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    top = 0
    for row, head in zip(rows, heads, strict=True):
        for i in row:
            left = (i - row.start) * (width + GAP)
            canvas.paste(tiles[i], (left, top + head))
            if i < len(labels):
                pen.text((left + 2, top + 2), labels[i], fill="black", font=font)
        top += head + height + GAP
    return canvas


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()
