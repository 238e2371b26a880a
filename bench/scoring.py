"""From features to measurements: the maths of each protocol, and the honest name of what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.features import FeatureSet, View
from bench.metrics.clip_score import clip_score
from bench.metrics.frechet import frechet_distance_from_features
from bench.metrics.inception_score import inception_score
from bench.metrics.kernel_distance import KernelDistance, kernel_distance
from bench.metrics.precision_recall import precision_recall
from bench.protocols import Maths, Protocol
from bench.statistics import bootstrap_interval


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of a table; `generic` is its name when the network is not the official one."""

    label: str
    generic: str
    higher_is_better: bool
    unit: str = ""


METRICS: dict[Maths, tuple[Metric, ...]] = {
    "frechet": (Metric("FID", "FD", higher_is_better=False),),
    "kernel_distance": (Metric("KID", "KD", higher_is_better=False, unit="x 1e-3"),),
    "inception_score": (Metric("IS", "IS", higher_is_better=True),),
    "precision_recall": (
        Metric("Precision", "Precision", higher_is_better=True),
        Metric("Recall", "Recall", higher_is_better=True),
    ),
    "clip_score": (Metric("CLIP score", "Score", higher_is_better=True),),
}
REFERENCE_FREE: frozenset[Maths] = frozenset({"inception_score", "clip_score"})


@dataclass(frozen=True, slots=True)
class Score:
    """A value and, where the maths gives one, the interval or spread around it."""

    value: float
    interval: tuple[float, float] | None = None


def honest_name(metric: Metric, protocol: Protocol, view: View, n: int) -> str:
    """The name under which a number may be printed: "FID" only for the whole protocol with the official network."""
    name = metric.label + protocol.suffix if view.official else f"{metric.generic}-{view.name}"
    return name if n >= protocol.num_images else f"{name} [n={n}]"


def caveats(protocol: Protocol, view: View, n: int) -> tuple[str, ...]:
    """Why a number is not a full one of its protocol."""
    reasons = []
    if n < protocol.num_images:
        reasons.append(f"{n:,} images instead of {protocol.num_images:,}: compare only inside this column")
    if not view.official:
        reasons.append(f"{view.name} is not the network of the papers: comparable with nothing published")
    return tuple(reasons)


def _frechet(fake: FeatureSet, real: FeatureSet, protocol: Protocol) -> list[Score]:
    pools = (fake.layer(protocol.view, "pool"), real.layer(protocol.view, "pool"))
    return [Score(frechet_distance_from_features(*pools, ddof=protocol.ddof))]


def _kernel_distance(fake: FeatureSet, real: FeatureSet, protocol: Protocol) -> list[Score]:
    subsets = KernelDistance()
    both = real.layer(protocol.view, "pool"), fake.layer(protocol.view, "pool")
    mean, std = kernel_distance(*both, subsets)
    if min(map(len, both)) <= subsets.subset_size:  # every subset is the whole set: no spread can be seen
        return [Score(1000 * mean)]
    return [Score(1000 * mean, (1000 * (mean - std), 1000 * (mean + std)))]


def _inception_score(fake: FeatureSet, _real: FeatureSet, protocol: Protocol) -> list[Score]:
    mean, std = inception_score(fake.layer(protocol.view, "logits"), splits=10, shuffle_seed=None)
    return [Score(mean, (mean - std, mean + std))]


def _precision_recall(fake: FeatureSet, real: FeatureSet, protocol: Protocol) -> list[Score]:
    both = precision_recall(real.layer(protocol.view, "pool"), fake.layer(protocol.view, "pool"), neighbourhood=3)
    return [Score(both.precision), Score(both.recall)]


def _clip_score(fake: FeatureSet, _real: FeatureSet, protocol: Protocol) -> list[Score]:
    cosines = clip_score(fake.layer(protocol.view, "image"), fake.layer(protocol.view, "text"))
    return [Score(float(cosines.mean()), bootstrap_interval(cosines, seed=0))]


MATHS: dict[Maths, Callable[[FeatureSet, FeatureSet, Protocol], list[Score]]] = {
    "frechet": _frechet,
    "kernel_distance": _kernel_distance,
    "inception_score": _inception_score,
    "precision_recall": _precision_recall,
    "clip_score": _clip_score,
}


def score(protocol: Protocol, fake: FeatureSet, real: FeatureSet) -> list[tuple[Metric, Score]]:
    """Score generated features against real ones; both hold the layers of `protocol.view`, float32 `[N, D]`."""
    with torch.no_grad():
        return list(zip(METRICS[protocol.maths], MATHS[protocol.maths](fake, real, protocol), strict=True))
