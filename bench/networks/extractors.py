"""What all feature networks share: the images they take, true float32, and weights that are read as data only.

What is scored with a file that is not the official one carries the first digits of its SHA-256 in its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from bench.errors import UserError
from bench.weights import LocalWeights, how_to_get

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Extractor(Protocol):
    """A network that looks at pixels."""

    name: str
    sha256: str  # of the weights
    official: bool

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Layers of uint8 `[N, 3, H, W]`, float32 `[N, D]` each: "pool", and what else the network is asked for."""
        ...


def check_images(images: Tensor) -> None:
    """Raise ValueError unless the images are uint8 `[N, 3, H, W]`."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}")


def check_pair(a: Tensor, b: Tensor) -> None:
    """Raise ValueError unless both are RGB images of one shape and dtype."""
    if a.shape != b.shape or a.dtype != b.dtype or a.ndim != 4 or a.shape[1] != 3:
        raise ValueError(
            f"both must be [N, 3, H, W] of one shape and dtype, got {a.dtype} {list(a.shape)} and "
            f"{b.dtype} {list(b.shape)}"
        )


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and products in true float32 (no TF32), with deterministic algorithms, whatever the caller set."""
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.deterministic
    matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.deterministic = "ieee", "ieee", True
    try:
        yield
    finally:
        matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.deterministic = before


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The network without memory for its weights, and without drawing initial ones; `fill` gives it some."""
    with torch.device("meta"):
        return build()


def fill(module: nn.Module, tensors: Mapping[str, Tensor], weights: LocalWeights) -> None:
    """Make the tensors read from a file the network's own, to the last name and shape; it then only evaluates.

    Raises `UserError` if they are another network's.
    """
    try:
        module.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        raise foreign_file(weights, error) from error
    module.requires_grad_(False).eval()


def foreign_file(weights: LocalWeights, error: Exception) -> UserError:
    """What is told of a file that holds another network."""
    lines = " ".join(str(error).split())
    return UserError(
        f"{weights.path} does not hold the weights {weights.name}: {lines[:300]}. {how_to_get(weights.name)}"
    )


def pil_images(images: Tensor) -> list[Image.Image]:
    """Images uint8 `[N, 3, H, W]` as Pillow takes them."""
    return [Image.fromarray(array) for array in images.permute(0, 2, 3, 1).cpu().contiguous().numpy()]


def normalised(pixels: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """Pixels float32 `[N, 3, H, W]` less the mean, over the spread, of each channel."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]
