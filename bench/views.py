"""The views of an image that protocols name: a network with its resize, made where its weights can be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bench.extractors import Extractor, clip_extractor, inception_extractor, lpips
from bench.features import View
from bench.inversion import PerceptualLoss
from bench.sampling import ImageBatch
from bench.standin import StandinExtractor, StandinPerceptual, StandinTextImage
from bench.weights import LocalWeights, MissingWeights, WeightsOptions, resolve_weights


class TextImageNetwork(Protocol):
    """A network with an embedding for images and one for texts."""

    name: str
    sha256: str
    official: bool

    def images(self, images: Tensor) -> Tensor:
        """Embed uint8 `[N, 3, H, W]` as float32 `[N, D]`."""
        ...

    def texts(self, texts: list[str]) -> Tensor:
        """Embed N texts as float32 `[N, D]`."""
        ...


class ImageView:
    """Looks at the pixels only."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.name, self.sha256, self.official = extractor.name, extractor.sha256, extractor.official

    def __call__(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Layers "pool" and "logits"."""
        return self.extractor(batch.images)


class TextImageView:
    """Looks at the pixels and at the text they should show."""

    def __init__(self, network: TextImageNetwork) -> None:
        self.network = network
        self.name, self.sha256, self.official = network.name, network.sha256, network.official

    def __call__(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Layers "image" and "text"; none for images without text."""
        if batch.prompts is None:
            return {}
        return {"image": self.network.images(batch.images), "text": self.network.texts(batch.prompts)}


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """How to make a view; `weights` is a key of weights.WEIGHTS, None for a network without a file."""

    weights: str | None
    build: Callable[[LocalWeights | None, torch.device], View]
    gflop_per_image: float  # for the estimates of `plan`


def _file(weights: LocalWeights | None) -> LocalWeights:
    if weights is None:
        raise ValueError("this view needs a weight file")
    return weights


VIEWS: dict[str, ViewSpec] = {
    "inception": ViewSpec("inception", lambda w, d: ImageView(inception_extractor(_file(w), "tf1", d)), 11.4),
    "inception-clean": ViewSpec("inception", lambda w, d: ImageView(inception_extractor(_file(w), "clean", d)), 11.4),
    "clip-vit-b-32": ViewSpec("clip-vit-b-32", lambda w, d: TextImageView(clip_extractor(_file(w), d)), 14.8),
    "standin": ViewSpec(None, lambda _, d: ImageView(StandinExtractor(d)), 0.1),
    "standin-clip": ViewSpec(None, lambda _, d: TextImageView(StandinTextImage(d)), 0.1),
}


@dataclass(frozen=True, slots=True)
class OpenedViews:
    """The views that can be had, and for each other one why not and what gets it."""

    views: dict[str, View]
    missing: dict[str, str]


def open_views(names: Iterable[str], options: WeightsOptions, device: torch.device) -> OpenedViews:
    """Make the named views; what can't be had is said in `missing`, not raised."""
    views: dict[str, View] = {}
    missing: dict[str, str] = {}
    for name in dict.fromkeys(names):
        spec = VIEWS[name]
        try:
            weights = None if spec.weights is None else resolve_weights(spec.weights, options)
        except MissingWeights as error:
            missing[name] = str(error)
        else:
            views[name] = spec.build(weights, device)
    return OpenedViews(views, missing)


def open_perceptual(options: WeightsOptions, device: torch.device) -> tuple[PerceptualLoss, str | None]:
    """LPIPS where its two files can be had, else the stand-in and why."""
    try:
        linear, vgg16 = resolve_weights("vgg16-lpips", options), resolve_weights("vgg16", options)
    except MissingWeights as error:
        return StandinPerceptual(device), str(error)
    return lpips(linear, vgg16, device), None
