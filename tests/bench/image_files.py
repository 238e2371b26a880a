"""Writers of small image zips and folders for the tests of the data sets."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(seed: int, size: int | tuple[int, int] = 16) -> Image.Image:
    """An RGB image of random pixels; `size` is (width, height)."""
    width, height = (size, size) if isinstance(size, int) else size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def pngs(count: int, size: int | tuple[int, int] = 16) -> dict[str, bytes]:
    return {f"00000/img{index:08d}.png": encode(noise(index, size)) for index in range(count)}


def write_zip(path: Path, files: Mapping[str, bytes], document: Any = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        if document is not None:
            archive.writestr("dataset.json", document if isinstance(document, bytes) else json.dumps(document))
    return path


def write_folder(path: Path, files: Mapping[str, bytes], document: Any = None) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    if document is not None:
        (path / "dataset.json").write_text(json.dumps(document))
    return path
