"""VGG16's last hidden layer: what StyleGAN's precision and recall look at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.networks.extractors import IMAGENET_MEAN, IMAGENET_STD, check_images, fill, full_float32, normalised, on_meta
from bench.networks.resize import tf1_bilinear
from bench.weights import LocalWeights, read_tensors

VGG16_SIZE = 224
HIDDEN_LAYERS = 5  # of the classifier: linear, ReLU, dropout, linear, ReLU


class VggExtractor:
    """Activations of VGG16's second fully connected layer after its ReLU: "pool" `[N, 4096]`."""

    def __init__(self, weights: LocalWeights, device: torch.device) -> None:
        from torchvision.models import vgg16

        origin = "torchvision" if weights.official else weights.sha256[:8]
        self.name, self.sha256, self.official = f"vgg16-{origin}-fc2", weights.sha256, weights.official
        network = on_meta(lambda: vgg16(weights=None))
        fill(network, read_tensors(weights), weights)
        parts = dict(network.named_children())
        hidden = list(parts["classifier"].children())[:HIDDEN_LAYERS]
        self._network = nn.Sequential(parts["features"], parts["avgpool"], nn.Flatten(), *hidden).to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of uint8 `[N, 3, H, W]`, on the network's device."""
        check_images(images)
        with full_float32():
            pixels = tf1_bilinear(images.to(self._device), VGG16_SIZE)
            return {"pool": self._network(normalised(pixels / 255, IMAGENET_MEAN, IMAGENET_STD))}


def vgg_extractor(weights: LocalWeights, device: torch.device) -> VggExtractor:
    """VGG16 as precision and recall use it (Kynkäänniemi et al. 2019, arXiv 1904.06991, section 2).

    TensorFlow 1's bilinear resize to 224 without half-pixel centres, ImageNet's mean and spread, torchvision's weights.
    StyleGAN2-ADA to StyleGAN-T take the network from a TorchScript program, which is not run here. torch-fidelity's
    tests hold its own VGG16, which this one is, against that program: features of random images of 32 to 512 pixels
    agree within 1e-4. Not known: features in TF32 or float16, which the originals round to before they compare.
    Raises `UserError` if the file does not hold this network.
    """
    return VggExtractor(weights, device)
