"""What the tests of inversion share: tiny generators with random weights, and images that they can make."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.inversion import mean_w, render
from models.biggan import BigGANGenerator
from models.biggan_config import BigGANConfig
from models.biggan_deep import BigGANDeepGenerator
from models.biggan_deep_config import BigGANDeepConfig
from models.layers import initialise
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2_config import StyleGAN2Config

CPU = torch.device("cpu")
NUM_CLASSES = 10  # as the data set `shapes`


class PixelLoss:
    """Squared error in the place of LPIPS: the optimisation is the same, and a hundred times cheaper."""

    name, sha256, official = "pixels", "0" * 64, False

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean((1, 2, 3))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return self.loss(a / 127.5, b / 127.5)


def ready(generator: Any) -> Any:
    initialise(generator, 0)
    return generator.requires_grad_(requires_grad=False).eval()


def style_generator(num_classes: int = NUM_CLASSES, resolution: int = 8) -> Any:
    sizes: Any = {"z_dim": 16, "w_dim": 16, "mapping_layers": 2, "channel_base": 256, "channel_max": 16}
    return ready(StyleGAN2Generator(StyleGAN2Config(resolution=resolution, num_classes=num_classes, **sizes)))


def biggan(num_classes: int = NUM_CLASSES) -> Any:
    config = BigGANConfig(32, num_classes=num_classes, channels=4, z_dim=32, shared_dim=16, attention=())
    return ready(BigGANGenerator(config))


def biggan_deep(num_classes: int = NUM_CLASSES) -> Any:
    layers = ((False, 16, 16), (True, 16, 8), (True, 8, 4), (True, 4, 2), (False, 2, 1))
    config = BigGANDeepConfig(32, num_classes=num_classes, z_dim=16, channels=8, layers=layers, num_statistics=3)
    return ready(BigGANDeepGenerator(config))


def labels(*classes: int, num_classes: int = NUM_CLASSES) -> Tensor:
    return torch.eye(num_classes)[list(classes)]


def made_images(generator: Any, c: Tensor, seed: int = 3) -> Tensor:
    """Images that the generator makes of random z."""
    z = torch.from_numpy(np.random.default_rng(seed).standard_normal((len(c), generator.z_dim), dtype="float32"))
    with torch.no_grad():
        return render(generator, generator.mapping(z, c))


def starts_of(generator: Any, c: Tensor, num_samples: int = 500) -> Tensor:
    return torch.cat([mean_w(generator, one[None], num_samples, CPU) for one in c])
