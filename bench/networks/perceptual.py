"""LPIPS: a distance of two images that follows how alike people find them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from bench.networks.extractors import check_images, check_pair, fill, full_float32, on_meta
from bench.weights import LocalWeights, read_tensors

LPIPS_CHANNELS = (64, 128, 256, 512, 512)
VGG16_STAGES = ((0, 4), (4, 9), (9, 16), (16, 23), (23, 30))  # layers up to relu1_2, 2_2, 3_3, 4_3, 5_3


class Lpips:
    """LPIPS v0.1 with the VGG16 trunk (Zhang et al. 2018, arXiv 1801.03924, eq. 1), of images in [-1, 1]."""

    def __init__(self, linear: LocalWeights, vgg16: LocalWeights, device: torch.device) -> None:
        self.official = linear.official and vgg16.official
        self.sha256 = hashlib.sha256((linear.sha256 + vgg16.sha256).encode()).hexdigest()
        self.name = "lpips-vgg16-v0.1" if self.official else f"lpips-{self.sha256[:8]}"
        self._network = _lpips(linear, vgg16).to(device)
        self._device = device

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances `[N]` between uint8 images `[N, 3, H, W]`."""
        check_images(a)
        check_pair(a, b)
        return self._of_bytes(a.to(self._device).float(), b.to(self._device).float())

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        """Differentiable distances `[N]` between float32 images `[N, 3, H, W]` in [-1, 1]."""
        check_pair(a, b)
        return self._of_bytes((a + 1) * 127.5, (b + 1) * 127.5)

    def _of_bytes(self, a: Tensor, b: Tensor) -> Tensor:
        with full_float32():
            values: Tensor = self._network(a, b)
        return values.flatten()


def lpips(linear: LocalWeights, vgg16: LocalWeights, device: torch.device) -> Lpips:
    """LPIPS for scoring and for inversion, from its channel weights and torchvision's VGG16.

    Raises `UserError` if a file does not hold what it should.
    """
    return Lpips(linear, vgg16, device)


class _Vgg16Stages(nn.Module):
    def __init__(self, weights: LocalWeights) -> None:
        from torchvision.models import vgg16

        super().__init__()
        layers = on_meta(lambda: vgg16(weights=None).features)
        prefix = "features."  # the rest of the file classifies
        tensors = read_tensors(weights)
        fill(layers, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, weights)
        children = list(layers.children())
        self.stages = nn.ModuleList(nn.Sequential(*children[first:last]) for first, last in VGG16_STAGES)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        outputs = []
        for stage in self.stages:
            pixels = stage(pixels)
            outputs.append(pixels)
        return outputs


def _lpips(linear: LocalWeights, vgg16: LocalWeights) -> nn.Module:
    from torch_fidelity.sample_similarity_base import SampleSimilarityBase
    from torch_fidelity.sample_similarity_lpips import NetLinLayer, SampleSimilarityLPIPS

    class Network(SampleSimilarityLPIPS):  # type: ignore[misc]
        """torch-fidelity's distance without its constructor, which downloads and unpickles."""

        def __init__(self) -> None:
            SampleSimilarityBase.__init__(self, "lpips-vgg16")
            self.sample_similarity_resize = self.sample_similarity_dtype = None
            self.L = len(LPIPS_CHANNELS)
            for index, channels in enumerate(LPIPS_CHANNELS):
                self.add_module(f"lin{index}", NetLinLayer(channels, use_dropout=True))
            self.lins = [self.get_submodule(f"lin{index}") for index in range(self.L)]

    with torch.random.fork_rng(devices=[]):
        network: nn.Module = Network()
    fill(network, read_tensors(linear), linear)
    network.add_module("net", _Vgg16Stages(vgg16).eval())
    return network
