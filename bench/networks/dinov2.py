"""DINOv2: the self-supervised features of FD-DINOv2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from bench.networks.extractors import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_images,
    fill,
    full_float32,
    normalised,
    on_meta,
    pil_images,
)
from bench.weights import LocalWeights, read_tensors

DINOV2_SIZE = 224
PATCH = 14
GRID_OFFSET = 0.1  # the official network asks for a grid of 16.1, so that rounding can't make it 15


@dataclass(frozen=True, slots=True)
class VisionTransformerShape:
    """Size of a vision transformer."""

    name: str
    width: int
    depth: int
    num_heads: int


VIT_L_14 = VisionTransformerShape("vit-l-14", width=1024, depth=24, num_heads=16)


def build_network(shape: VisionTransformerShape) -> nn.Module:
    """A DINOv2 network for images of 224 pixels; its output is the class token after the last norm."""
    from timm.models.vision_transformer import VisionTransformer

    network: nn.Module = VisionTransformer(
        img_size=DINOV2_SIZE,
        patch_size=PATCH,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.num_heads,
        init_values=1.0,
        num_classes=0,
        global_pool="token",
    )
    return network


def resample_positions(positions: Tensor) -> Tensor:
    """Position embeddings `[1, 1 + M * M, D]` of a square grid as those of 16 x 16 patches, `[1, 257, D]`.

    Bicubic without antialiasing, and with the scale factor 16.1 / M that the official network gives, so that samples
    lie where it takes them.
    """
    class_token, patches = positions[:, :1], positions[:, 1:]
    grid = round(patches.shape[1] ** 0.5)
    if grid == DINOV2_SIZE // PATCH or grid**2 != patches.shape[1]:  # nothing to do, or not this network's
        return positions
    scale = (DINOV2_SIZE // PATCH + GRID_OFFSET) / grid
    square = patches.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    resampled = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([class_token, resampled.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class Dinov2Extractor:
    """The class token of a DINOv2 network: "pool" `[N, D]`, 1,024 values for ViT-L/14."""

    def __init__(self, weights: LocalWeights, device: torch.device, shape: VisionTransformerShape) -> None:
        origin = "" if weights.official else f"-{weights.sha256[:8]}"
        self.name = f"dinov2-{shape.name}{origin}+pil-bicubic"
        self.sha256, self.official = weights.sha256, weights.official
        self._network = on_meta(lambda: build_network(shape))
        tensors = read_tensors(weights)
        tensors.pop("mask_token", None)  # for training only
        if (positions := tensors.get("pos_embed")) is not None and positions.ndim == 3:
            tensors["pos_embed"] = resample_positions(positions)
        fill(self._network, tensors, weights)
        self._network.to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of uint8 `[N, 3, H, W]`, on the network's device."""
        check_images(images)
        size = (DINOV2_SIZE, DINOV2_SIZE)
        resized = [np.array(image.resize(size, Image.Resampling.BICUBIC)) for image in pil_images(images)]
        pixels = torch.from_numpy(np.stack(resized)).to(self._device).permute(0, 3, 1, 2).float() / 255
        with full_float32():
            return {"pool": self._network(normalised(pixels, IMAGENET_MEAN, IMAGENET_STD))}


def dinov2_extractor(
    weights: LocalWeights, device: torch.device, shape: VisionTransformerShape = VIT_L_14
) -> Dinov2Extractor:
    """DINOv2 (Oquab et al. 2023, arXiv 2304.07193) as FD-DINOv2 uses it (Stein et al. 2023, arXiv 2306.04675).

    PIL's antialiased bicubic to 224 x 224 pixels, rounded to bytes, whatever the aspect ratio; ImageNet's mean and
    spread. Raises `UserError` if the file does not hold this network.
    """
    return Dinov2Extractor(weights, device, shape)
