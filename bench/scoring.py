"""From features to measurements: the maths of each protocol, and the honest name of what comes out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from bench.features import FeatureSet, View
from bench.intervals import Interval, bootstrap_interval, t_interval
from bench.metrics.clip_score import clip_score
from bench.metrics.extrapolation import Extrapolation, extrapolate
from bench.metrics.frechet import Gaussian, frechet_contributions
from bench.metrics.inception_score import inception_score
from bench.metrics.kernel_distance import KernelDistance, kernel_contributions, kernel_distance
from bench.metrics.precision_recall import density_coverage, manifold_membership
from bench.protocols import Maths, Protocol

REFERENCE_SEED = 0  # of the real images that a protocol takes only some of
MAX_KERNEL_VALUES = 5000  # images up to which each one's part in a kernel distance is worth its N^2 products
IntervalKind = Literal[
    "95 % bootstrap over images",
    "95 % binomial over images, neighbourhoods as given",
    "95 % Student over sample sets",
    "standard deviation over subsets",
    "standard deviation over splits",
]


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of a table; `generic` is its name when the network is not the official one."""

    label: str
    generic: str
    higher_is_better: bool
    unit: str = ""


METRICS: dict[Maths, tuple[Metric, ...]] = {
    "frechet": (Metric("FID", "FD", higher_is_better=False),),
    "frechet_infinity": (Metric("FID-infinity", "FD-infinity", higher_is_better=False),),
    "kernel_distance": (Metric("KID", "KD", higher_is_better=False, unit="x 1e-3"),),
    "inception_score": (Metric("IS", "IS", higher_is_better=True),),
    "precision_recall": (
        Metric("Precision", "Precision", higher_is_better=True),
        Metric("Recall", "Recall", higher_is_better=True),
    ),
    "density_coverage": (
        Metric("Density", "Density", higher_is_better=True),
        Metric("Coverage", "Coverage", higher_is_better=True),
    ),
    "clip_score": (Metric("CLIP score", "Score", higher_is_better=True),),
}
TAKES_STATISTICS: frozenset[Maths] = frozenset({"frechet", "frechet_infinity"})  # of the reference, not its features
REFERENCE_FREE: frozenset[Maths] = frozenset({"inception_score", "clip_score"})


@dataclass(frozen=True, slots=True)
class Score:
    """A value and, where the maths gives one, the interval or spread around it.

    `values` is what each image, or each sample set, adds to the value, float64 `[N]` with the value as its mean:
    two models are compared by these, one by one.
    """

    value: float
    interval: Interval | None = None
    interval_kind: IntervalKind | None = None
    values: Tensor | None = field(default=None, compare=False, repr=False)


def metric_name(metric: Metric, protocol: Protocol) -> str:
    """What the papers call the number of a protocol."""
    return (protocol.label or metric.label) + protocol.suffix


def honest_name(metric: Metric, protocol: Protocol, view: View, n: int, runs: int = 1) -> str:
    """The name under which a number may be printed: "FID" only for the whole protocol with the official network.

    `n` images in each of `runs` sample sets.
    """
    name = metric_name(metric, protocol) if view.official else _own_name(metric, protocol, view)
    short = [f"n={n}"] if n < protocol.num_images else []
    short += [f"runs={runs}"] if runs < protocol.runs else []
    return f"{name} [{', '.join(short)}]" if short else name


def _own_name(metric: Metric, protocol: Protocol, view: View) -> str:
    """The name of a number of another network; it tells apart what one network serves, as the papers' names do."""
    generic = metric.generic if protocol.layer != "spatial" else protocol.label.replace("FID", "FD")
    return f"{generic}-{view.name}{protocol.suffix}"


def caveats(protocol: Protocol, view: View, n: int, runs: int = 1) -> tuple[str, ...]:
    """Why a number is not a full one of its protocol."""
    reasons = []
    if n < protocol.num_images:
        reasons.append(f"{n:,} images instead of {protocol.num_images:,}: compare only inside this column")
    if runs < protocol.runs:
        reasons.append(f"sample sets: {runs} instead of {protocol.runs}; `repeats = {protocol.runs}` in the suite")
    if not view.official:
        reasons.append(f"{view.name} is not the network of the papers: comparable with nothing published")
    return tuple(reasons)


def _over_images(values: Tensor) -> Score:
    return Score(float(values.mean()), bootstrap_interval(values, seed=0), "95 % bootstrap over images", values)


def _share(share: float, n: int, values: Tensor | None = None) -> Score:
    """A share of n images, with Wilson's interval, which doesn't shrink to a point at 0 and 1."""
    low, high = binomtest(round(share * n), n).proportion_ci(method="wilson")
    kind: IntervalKind = "95 % binomial over images, neighbourhoods as given"
    return Score(share, (float(low), float(high)), kind, values)


@functools.lru_cache(maxsize=6)
def _reference_gaussian(real: FeatureSet, view: str, layer: str, ddof: Literal[0, 1]) -> Gaussian:
    """The reference of a Frechet distance; the last six are kept with their roots, some 100 MB each, for other models.

    Subjects are scored one after the other under all protocols, so there must be room for those of an entry.
    """
    statistics = real.statistics(view, layer)
    if real.reference(view, layer) is None and statistics.n <= len(statistics.mean):
        return Gaussian.of_features(real.layer(view, layer), ddof)
    return Gaussian.of(statistics, ddof)


def _frechet(fake: FeatureSet, real: FeatureSet, protocol: Protocol) -> list[Score]:
    reference = _reference_gaussian(real, protocol.view, protocol.layer, protocol.ddof)
    values = frechet_contributions(fake.layer(protocol.view, protocol.layer), reference, protocol.ddof)
    distance = max(0.0, float(values.mean()))
    return [dataclasses.replace(_over_images(values), value=distance)]


def _frechet_infinity(fake: FeatureSet, real: FeatureSet, protocol: Protocol) -> list[Score]:
    reference = _reference_gaussian(real, protocol.view, protocol.layer, protocol.ddof)
    features = fake.layer(protocol.view, protocol.layer)
    spec = Extrapolation(smallest=min(Extrapolation().smallest, max(2, len(features) // 10)))
    line = extrapolate(lambda rows: reference.distance_of_features(features[rows], protocol.ddof), len(features), spec)
    return [Score(line.value)]


def _some(real: FeatureSet, protocol: Protocol, count: int) -> Tensor:
    """So many rows at random: the first ones of a data set that is sorted by class are a few classes."""
    if count >= real.count:
        return real.layer(protocol.view, protocol.layer)
    rows = np.random.default_rng(REFERENCE_SEED).permutation(real.count)[:count]
    return real.rows(protocol.view, protocol.layer, torch.from_numpy(np.sort(rows)))


def _kernel_distance(fake: FeatureSet, real: FeatureSet, protocol: Protocol) -> list[Score]:
    subsets = KernelDistance()
    reals, fakes = (source.layer(protocol.view, protocol.layer) for source in (real, fake))
    mean, std = (1000 * value for value in kernel_distance(reals, fakes, subsets))
    values = None
    if len(fakes) <= MAX_KERNEL_VALUES:
        values = 1000 * kernel_contributions(_some(real, protocol, MAX_KERNEL_VALUES), fakes, subsets)
        values += mean - values.mean()
        if min(len(reals), len(fakes)) <= subsets.subset_size:  # every subset is the whole set: they have no spread
            return [_over_images(values)]
    return [Score(mean, (mean - std, mean + std), "standard deviation over subsets", values)]


def _inception_score(fake: FeatureSet, _real: FeatureSet, protocol: Protocol) -> list[Score]:
    logits, size = fake.layer(protocol.view, protocol.layer), protocol.split_size
    splits = 10 if size is None else 1
    mean, std = inception_score(logits, splits, protocol.shuffle_seed, size)
    if size is not None and len(logits) <= size:  # one split has no spread
        return [Score(mean)]
    return [Score(mean, (mean - std, mean + std), "standard deviation over splits")]


def _neighbours(fake: FeatureSet, real: FeatureSet, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """The features of the real and of the fake images whose neighbours a protocol looks at, on the run's device."""
    reals = _some(real, protocol, protocol.num_reference or real.count).to(fake.device)
    fakes = fake.layer(protocol.view, protocol.layer).to(fake.device)
    return (reals.half(), fakes.half()) if protocol.half_precision else (reals, fakes)


def _precision_recall(fake: FeatureSet, real: FeatureSet, protocol: Protocol) -> list[Score]:
    rounding = torch.float16 if protocol.half_precision else None
    reals, fakes = _neighbours(fake, real, protocol)
    within = manifold_membership(reals, fakes, protocol.neighbourhood, rounding=rounding)
    return [_share(float(one.mean()), len(one), one) for one in (shares.double().cpu() for shares in within)]


def _density_coverage(fake: FeatureSet, real: FeatureSet, protocol: Protocol) -> list[Score]:
    reals, fakes = _neighbours(fake, real, protocol)
    both = density_coverage(reals, fakes, protocol.neighbourhood)
    return [Score(both.density), _share(both.coverage, len(reals))]


def _clip_score(fake: FeatureSet, _real: FeatureSet, protocol: Protocol) -> list[Score]:
    cosines = clip_score(fake.layer(protocol.view, "image"), fake.layer(protocol.view, "text"))
    return [_over_images(cosines)]


MATHS: dict[Maths, Callable[[FeatureSet, FeatureSet, Protocol], list[Score]]] = {
    "frechet": _frechet,
    "frechet_infinity": _frechet_infinity,
    "kernel_distance": _kernel_distance,
    "inception_score": _inception_score,
    "precision_recall": _precision_recall,
    "density_coverage": _density_coverage,
    "clip_score": _clip_score,
}


def score_runs(protocol: Protocol, fakes: Sequence[FeatureSet], real: FeatureSet) -> list[Score]:
    """Score sample sets of one generator, and aggregate as the protocol says: one `Score` a metric.

    The mean of several sets has Student's interval over them, the lowest has none. `runs` sets count where the
    protocol asks for the lowest, all of them otherwise.
    """
    if protocol.aggregate == "min":
        fakes = fakes[: protocol.runs]
    columns = zip(*([one for _, one in score(protocol, fake, real)] for fake in fakes), strict=True)
    return [_aggregate(protocol, scores) for scores in columns]


def _aggregate(protocol: Protocol, scores: tuple[Score, ...]) -> Score:
    if len(scores) == 1:
        return scores[0]
    values = [one.value for one in scores]
    if protocol.aggregate == "min":
        return Score(min(values))
    sets = torch.tensor(values, dtype=torch.float64)
    return Score(float(sets.mean()), t_interval(sets), "95 % Student over sample sets", sets)


def score(protocol: Protocol, fake: FeatureSet, real: FeatureSet) -> list[tuple[Metric, Score]]:
    """Score generated features, the first `num_images` of the protocol, against real ones.

    Both hold the layers of `protocol.view`, float32 `[N, D]`.
    """
    with torch.no_grad():
        scores = MATHS[protocol.maths](fake.first(protocol.num_images), real, protocol)
    return list(zip(METRICS[protocol.maths], scores, strict=True))
