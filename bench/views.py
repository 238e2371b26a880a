"""The views of an image that protocols name: a network with its resize, made where its weights can be had."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bench.features import View
from bench.inversion import PerceptualLoss
from bench.networks.clip import VIT_B_32, VIT_G_14, ClipNetwork, clip_extractor
from bench.networks.dinov2 import dinov2_extractor
from bench.networks.extractors import Extractor
from bench.networks.inception import Resize, inception_extractor
from bench.networks.perceptual import lpips
from bench.networks.standin import StandinExtractor, StandinPerceptual, StandinTextImage
from bench.networks.vgg import vgg_extractor
from bench.sampling import ImageBatch, Quantiser
from bench.weights import LocalWeights, MissingWeights, WeightsOptions, resolve_weights

GIGAGAN_PREFIX = "A photo depicts "


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
    """Looks at the pixels only, quantised as the protocol asks."""

    def __init__(self, extractor: Extractor, quantiser: Quantiser = "half-up") -> None:
        self.extractor, self.quantiser = extractor, quantiser
        self.name, self.sha256, self.official = extractor.name, extractor.sha256, extractor.official

    def __call__(self, batch: ImageBatch) -> dict[str, Tensor]:
        """The layers of the extractor."""
        layers: dict[str, Tensor] = batch.look(self.extractor, self.quantiser)
        return layers


class TextImageView:
    """Looks at the pixels and at the text they should show, with `prefix` before it."""

    def __init__(self, network: TextImageNetwork, prefix: str = "") -> None:
        self.network, self.prefix = network, prefix
        self.name = f"{network.name}+prefix" if prefix else network.name
        self.sha256, self.official = network.sha256, network.official

    def __call__(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Layers "image" and "text"; none for images without text."""
        if batch.prompts is None:
            return {}
        texts = [self.prefix + prompt for prompt in batch.prompts]
        return {"image": batch.look(self.network.images), "text": self.network.texts(texts)}


class EmbeddingView:
    """Looks at the pixels with a network that could also look at text."""

    def __init__(self, network: TextImageNetwork) -> None:
        self.network = network
        self.name, self.sha256, self.official = network.name, network.sha256, network.official

    def __call__(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Layer "pool"."""
        return {"pool": batch.look(self.network.images)}


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


# one network for all views that differ in the quantiser or the text alone: it then looks at the same pixels only once
_inception = functools.lru_cache(maxsize=4)(inception_extractor)
_clip = functools.lru_cache(maxsize=2)(clip_extractor)


def _inception_view(resize: Resize, quantiser: Quantiser = "half-up", weights: str = "inception") -> ViewSpec:
    return ViewSpec(weights, lambda w, d: ImageView(_inception(_file(w), resize, d), quantiser), 11.4)


def _clip_view(weights: str, network: ClipNetwork, gflop_per_image: float, prefix: str = "") -> ViewSpec:
    return ViewSpec(weights, lambda w, d: TextImageView(_clip(_file(w), d, network), prefix), gflop_per_image)


VIEWS: dict[str, ViewSpec] = {
    "inception": _inception_view("tf1"),
    "inception-adm": _inception_view("tf1", "truncate"),
    "inception-clean": _inception_view("clean"),
    "inception-torch": _inception_view("torch"),
    "inception-random": _inception_view("tf1", weights="inception-random"),
    "vgg16-fc": ViewSpec("vgg16", lambda w, d: ImageView(vgg_extractor(_file(w), d)), 30.9),
    "dinov2-vit-l-14": ViewSpec("dinov2-vit-l-14", lambda w, d: ImageView(dinov2_extractor(_file(w), d)), 162.0),
    "clip-vit-b-32": _clip_view("clip-vit-b-32", VIT_B_32, 14.8),
    "clip-vit-b-32-prefix": _clip_view("clip-vit-b-32", VIT_B_32, 14.8, GIGAGAN_PREFIX),
    "clip-vit-g-14": _clip_view("clip-vit-g-14", VIT_G_14, 581.2),
    "clip-fid-vit-b-32": ViewSpec("clip-vit-b-32", lambda w, d: EmbeddingView(_clip(_file(w), d, VIT_B_32)), 8.8),
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
