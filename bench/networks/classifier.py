"""The classifier that tells inversion which class of ImageNet an image may be of: DeiT-B, distilled, 224 pixels.

Touvron et al., "Training data-efficient image transformers & distillation through attention" (arXiv:2012.12877).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.errors import UserError
from bench.networks.extractors import check_images, full_float32
from bench.weights import LocalWeights, MissingWeights, WeightsOptions, read_tensors, resolve_weights

ARCHITECTURE = "deit_base_distilled_patch16_224"
SIZE = 224


class DeitClassifier:
    """Probabilities of ImageNet's classes, from the mean of the logits of both heads.

    Images are resized by the nearest pixel and scaled to [-1, 1], as StyleGAN-XL's inversion prepares them: not as the
    network was trained, but so the published starts came about.
    """

    def __init__(self, weights: LocalWeights, device: torch.device, architecture: str = ARCHITECTURE) -> None:
        import timm

        self.sha256, self.official = weights.sha256, weights.official
        self.name = "deit-b-distilled-224" if weights.official else f"deit-{weights.sha256[:8]}"
        with torch.random.fork_rng(devices=[]):  # building layers draws initial weights
            self._network: torch.nn.Module = timm.create_model(architecture, pretrained=False)
        try:
            self._network.load_state_dict(read_tensors(weights))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{weights.path} does not hold the weights deit: {reason}. `python -m bench fetch deit` gets them."
            ) from error
        self._network.requires_grad_(False).eval().to(device)
        self._device = device

    @torch.no_grad()
    def posterior(self, images: Tensor) -> Tensor:
        """Probabilities `[N, 1000]`, float32 on the classifier's device, of uint8 images `[N, 3, H, W]`."""
        check_images(images)
        pixels = F.interpolate(images.to(self._device).float(), size=(SIZE, SIZE), mode="nearest") / 127.5 - 1
        with full_float32():
            logits: Tensor = self._network(pixels)
        return logits.softmax(dim=1)


def open_classifier(options: WeightsOptions, device: torch.device) -> DeitClassifier | None:
    """The classifier, if its file can be had."""
    try:
        return DeitClassifier(resolve_weights("deit", options), device)
    except MissingWeights:
        return None
