"""CLIP: one space for images and texts, behind CLIP scores and CLIP-FID."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.networks.extractors import check_images, fill, full_float32, normalised, on_meta, pil_images
from bench.weights import LocalWeights, read_tensors

ClipResize = Literal["pil-bicubic", "torch-bicubic"]


@dataclass(frozen=True, slots=True)
class ClipNetwork:
    """A network that open_clip knows, and how a protocol has images brought to its size."""

    architecture: str
    origin: str  # who trained it, on what
    resize: ClipResize


VIT_B_32 = ClipNetwork("ViT-B-32-quickgelu", "openai", "pil-bicubic")
VIT_G_14 = ClipNetwork("ViT-g-14", "laion2b-s12b-b42k", "torch-bicubic")


def _pil_pixels(images: Tensor, size: int, device: torch.device) -> Tensor:
    from open_clip.transform import image_transform

    prepare: Any = image_transform(size, is_train=False)
    return torch.stack([prepare(image) for image in pil_images(images)]).to(device)


def _torch_pixels(images: Tensor, size: int, device: torch.device) -> Tensor:
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    unit = images.to(device).float() / 255
    resized = F.interpolate(unit, size=(size, size), mode="bicubic", align_corners=False)
    return normalised(resized, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


PIXELS: dict[ClipResize, Callable[[Tensor, int, torch.device], Tensor]] = {
    "pil-bicubic": _pil_pixels,
    "torch-bicubic": _torch_pixels,
}


class ClipExtractor:
    """CLIP embeddings of images and texts, not normalised. Texts longer than 77 tokens are cut."""

    def __init__(self, weights: LocalWeights, device: torch.device, network: ClipNetwork) -> None:
        import open_clip

        origin = network.origin if weights.official else weights.sha256[:8]
        self.name = f"clip-{network.architecture.lower()}-{origin}+{network.resize}"
        self.sha256, self.official = weights.sha256, weights.official
        module: Any = on_meta(lambda: open_clip.CLIP(**open_clip.get_model_config(network.architecture)))
        fill(module, read_tensors(weights), weights)
        module.attn_mask = torch.full((module.context_length,) * 2, -torch.inf).triu(1)  # no file has this buffer
        self._network = module.to(device)
        self._device = device
        self._pixels, self._size = PIXELS[network.resize], module.visual.image_size[0]
        self._tokenize = open_clip.get_tokenizer(network.architecture)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Embed uint8 `[N, 3, H, W]` as float32 `[N, D]`."""
        check_images(images)
        with full_float32():
            embedded: Tensor = self._network.encode_image(self._pixels(images, self._size, self._device))
        return embedded

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Embed N texts as float32 `[N, D]`."""
        with full_float32():
            embedded: Tensor = self._network.encode_text(self._tokenize(texts).to(self._device))
        return embedded


def clip_extractor(weights: LocalWeights, device: torch.device, network: ClipNetwork = VIT_B_32) -> ClipExtractor:
    """CLIP (Radford et al. 2021, arXiv 2103.00020) with the way in which a protocol shows it images.

    "pil-bicubic" is OpenAI's preparation, which CLIP-FID shares: PIL's antialiased bicubic of the shorter side to 224
    pixels, centre crop, rounded to bytes. "torch-bicubic" is StyleGAN-T's (Sauer et al. 2023, arXiv 2301.09515):
    bicubic to 224 x 224 without antialiasing or rounding, so that another score comes out for images over 224 pixels.
    Raises `UserError` if the file does not hold this network.
    """
    return ClipExtractor(weights, device, network)
