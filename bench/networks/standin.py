"""Stand-ins for the feature networks, without any file: seeded random weights, the same on every machine.

They let the whole pipeline run where the official weights can't be had. Their numbers tell that it runs, and roughly
that images differ; they are comparable with nothing published and never carry the name of the metric they stand for.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.networks.extractors import check_images, check_pair, full_float32

SIZE = 32  # images are averaged down, or repeated up, to this many pixels a side
CHANNELS = (16, 32, 64)
NUM_FEATURES = sum(CHANNELS)
NUM_CLASSES = 16
LOGIT_SCALE = 1.5  # photographs then get a largest probability of about one half
POOL_SCALE = 0.25  # distances are then of the size that Inception gives
EMBEDDING_SIZE = 64
SCALES = 3  # of the perceptual distance, each half the one before
NORM_EPS = 1e-2  # keeps the gradient of a flat region's direction finite

FloatArray = npt.NDArray[np.float32]


def uniform_weights(key: int, *shape: int) -> FloatArray:
    """Weights in [-1, 1), float32, from the counter-based Philox generator.

    Its raw stream is the same in every version of NumPy and on every machine, which that of no distribution is.
    """
    raw = np.random.Philox(key=key).random_raw(math.prod(shape))
    return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)).reshape(shape)


@functools.cache
def _filters() -> tuple[FloatArray, ...]:
    """Three layers of 3x3 filters; half of the first layer's see edges only, since their mean is taken off."""
    layers = [
        uniform_weights(key, outputs, inputs, 3, 3)
        for key, (inputs, outputs) in enumerate(zip((3, *CHANNELS), CHANNELS, strict=False), start=1)
    ]
    edges = layers[0][CHANNELS[0] // 2 :]
    edges -= edges.mean(axis=(2, 3), keepdims=True)
    # Uniform weights have variance 1/3; this keeps the size of the activations over the layers (He et al. 2015).
    return tuple(layer * np.float32(math.sqrt(6 / layer[0].size)) for layer in layers)


@functools.cache
def _readout() -> tuple[FloatArray, FloatArray]:
    """From features to logits, and to embeddings."""
    scale = np.float32(math.sqrt(3 / NUM_FEATURES))
    logits = uniform_weights(11, NUM_CLASSES, NUM_FEATURES) * scale * np.float32(LOGIT_SCALE)
    return logits, uniform_weights(12, EMBEDDING_SIZE, NUM_FEATURES) * scale


def weights_sha256() -> str:
    """The SHA-256 of all weights of the stand-ins."""
    arrays = (*_filters(), *_readout())
    return hashlib.sha256(b"".join(array.astype("<f4").tobytes() for array in arrays)).hexdigest()


class _ConvolutionalNetwork:
    """Three convolutions; channel means over space, standardised, are the features."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._filters = [torch.from_numpy(layer).to(device) for layer in _filters()]
        means = self._means(_calibration_images().to(device))
        self._centre, self._spread = means.mean(dim=0), means.std(dim=0)

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Activations of each layer for float32 pixels `[N, 3, H, W]` in [-1, 1]."""
        outputs = []
        for layer, weight in enumerate(self._filters):
            pixels = F.leaky_relu(F.conv2d(pixels, weight, padding=1, stride=min(layer + 1, 2)), 0.2)
            outputs.append(pixels)
        return outputs

    def _means(self, images: Tensor) -> Tensor:
        pixels = F.adaptive_avg_pool2d(images.float(), SIZE) / 127.5 - 1
        return torch.cat([stage.mean(dim=(2, 3)) for stage in self.stages(pixels)], dim=1)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features `[N, 112]` of uint8 images `[N, 3, H, W]`."""
        check_images(images)
        with full_float32():
            return (self._means(images.to(self.device)) - self._centre) / self._spread


def _calibration_images() -> Tensor:
    """Images like photographs in one thing, more contrast in coarse than in fine detail; uint8 `[64, 3, 32, 32]`."""
    pixels = np.zeros((64, 3, SIZE, SIZE), dtype=np.float32)
    for octave in range(6):
        cells = 2**octave
        grid = uniform_weights(20 + octave, 64, 4, cells, cells)
        noise = np.float32(0.3) * grid[:, 1:] + np.float32(0.6) * grid[:, :1]
        pixels += noise.repeat(SIZE // cells, axis=2).repeat(SIZE // cells, axis=3) * np.float32(0.6 - 0.1 * octave)
    return torch.from_numpy(np.rint((pixels.clip(-1, 1) + 1) * np.float32(127.5)).astype(np.uint8))


class StandinExtractor:
    """Stands in for Inception: 112 features and 16 pseudo-classes of images of any size."""

    name = "standin-v1"
    official = False

    def __init__(self, device: torch.device) -> None:
        self.sha256 = weights_sha256()
        self._network = _ConvolutionalNetwork(device)
        self._logits = torch.from_numpy(_readout()[0]).to(device)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of uint8 `[N, 3, H, W]`, float32: "pool" `[N, 112]` and "logits" `[N, 16]`."""
        features = self._network.features(images)
        with full_float32():
            return {"pool": POOL_SCALE * features, "logits": features.mm(self._logits.T)}


class StandinTextImage:
    """Stands in for CLIP: random embeddings of images and of hashed words.

    They know nothing of each other, so a score made of them means nothing at all; it shows that the pipeline runs.
    """

    name = "standin-text-v1"
    official = False

    def __init__(self, device: torch.device) -> None:
        self.sha256 = weights_sha256()
        self._network = _ConvolutionalNetwork(device)
        self._projection = torch.from_numpy(_readout()[1]).to(device)

    def images(self, images: Tensor) -> Tensor:
        """Embed uint8 `[N, 3, H, W]` as float32 `[N, 64]`."""
        features = self._network.features(images)
        with full_float32():
            return features.mm(self._projection.T)

    def texts(self, texts: list[str]) -> Tensor:
        """Embed N texts as float32 `[N, 64]`: the sum of a random vector a word."""
        words = [re.findall(r"\w+", text.lower()) or [""] for text in texts]
        sums = [np.sum([_word_vector(word) for word in line], axis=0, dtype=np.float32) for line in words]
        return torch.from_numpy(np.stack(sums)).to(self._network.device)


@functools.lru_cache(maxsize=4096)
def _word_vector(word: str) -> FloatArray:
    key = int.from_bytes(hashlib.sha256(word.encode()).digest()[:16], "little")
    return uniform_weights(key, EMBEDDING_SIZE)


class StandinPerceptual:
    """Stands in for LPIPS: squared differences of normalised activations, over the layers of three scales."""

    name = "standin-perceptual-v1"
    official = False

    def __init__(self, device: torch.device) -> None:
        self.sha256 = weights_sha256()
        self._network = _ConvolutionalNetwork(device)

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances `[N]` between uint8 images `[N, 3, H, W]`."""
        check_images(a)
        check_pair(a, b)
        device = self._network.device
        return self.loss(a.to(device).float() / 127.5 - 1, b.to(device).float() / 127.5 - 1)

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        """Differentiable distances `[N]` between float32 images `[N, 3, H, W]` in [-1, 1]."""
        check_pair(a, b)
        total = a.new_zeros(len(a))
        with full_float32():
            for _ in range(SCALES):
                stages = zip(self._network.stages(a), self._network.stages(b), strict=True)
                total = total + sum((_direction(x) - _direction(y)).square().sum(1).mean((1, 2)) for x, y in stages)
                a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        return total / (SCALES * len(CHANNELS))


def _direction(activations: Tensor) -> Tensor:
    return activations / (activations.square().sum(dim=1, keepdim=True) + NORM_EPS).sqrt()
