"""Frechet distance between Gaussians fitted to two sets of features: FID, sFID and FD, by the features given.

Heusel et al., GANs Trained by a Two Time-Scale Update Rule (2017), eq. 6; Dowson and Landau (1982), eq. 4:
`|mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))`.

The last trace is the sum of the singular values of `R1^T R2` for any roots `S = R R^T`. No matrix square root of the
unsymmetric product is taken, so there is no imaginary part to drop.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from bench.statistics import FeatureStatistics, check_features, checked_features

EPSILON = torch.finfo(torch.float64).eps
BLOCK_ROWS = 4096  # of features at a time where each image gets a value


@dataclass(frozen=True, eq=False)  # no slots: the root is kept in the instance
class Gaussian:
    """Mean `[D]` and covariance `[D, D]`, float64; its root is taken once, so that a reference serves many models.

    ValueError for NaN or infinity and for shapes that don't fit, here, and for a negative eigenvalue, at first use.
    """

    mean: torch.Tensor
    cov: torch.Tensor

    def __post_init__(self) -> None:
        width = len(self.mean)
        if self.mean.shape != (width,) or self.cov.shape != (width, width):
            raise ValueError(
                f"mean {list(self.mean.shape)} and covariance {list(self.cov.shape)}; "
                "expected [D] and [D, D] with one D"
            )
        object.__setattr__(self, "mean", checked_features(self.mean[None])[0])
        object.__setattr__(self, "cov", checked_features(self.cov))

    @classmethod
    def of(cls, statistics: FeatureStatistics, ddof: Literal[0, 1]) -> Gaussian:
        """The Gaussian of a set of features; `ddof` as in `FeatureStatistics.cov`."""
        return cls(statistics.mean, statistics.cov(ddof))

    @classmethod
    def of_features(cls, features: torch.Tensor, ddof: Literal[0, 1]) -> Gaussian:
        """The Gaussian of features `[N, D]`; with N <= D they are themselves its root, exact and free."""
        statistics = FeatureStatistics.empty(features.shape[-1]).update(features)
        gaussian = cls.of(statistics, ddof)
        if statistics.n <= len(statistics.mean):
            root = _centred_root(features, statistics, ddof)
            vars(gaussian).update(root=root, factor=root)
        return gaussian

    @functools.cached_property
    def root(self) -> torch.Tensor:
        """R `[D, rank]` with `cov = R R^T`; directions within rounding of no variance are left out."""
        return _root(self.cov)

    @functools.cached_property
    def factor(self) -> torch.Tensor:
        """A cheaper R with `cov = R R^T`: Cholesky's factor, or the root where the covariance has none."""
        lower, failed = torch.linalg.cholesky_ex(self.cov)
        return self.root if failed else lower

    def distance(self, other: Gaussian) -> float:
        """Squared Frechet distance, never below 0; at full rank only this one is factorised, once."""
        if len(other.mean) != len(self.mean):
            raise ValueError(f"Gaussians of {len(self.mean)} and {len(other.mean)} features; expected one D")
        eigenvalues = torch.linalg.eigvalsh(self.factor.T @ other.cov @ self.factor)
        if not _resolved(eigenvalues):  # their square roots would turn rounding of 1e-16 into 1e-8
            eigenvalues = torch.linalg.svdvals(self.root.T @ other.root).square()
        overlap = eigenvalues.sqrt().sum()
        return _distance(self.mean - other.mean, self.cov.trace() + other.cov.trace(), overlap)

    def distance_of_features(self, features: torch.Tensor, ddof: Literal[0, 1]) -> float:
        """Squared Frechet distance of features `[N, D]`, by the exact low-rank route where N <= D."""
        statistics = FeatureStatistics.empty(len(self.mean)).update(features)
        if statistics.n > len(self.mean):
            return self.distance(Gaussian.of(statistics, ddof))
        root = _centred_root(features, statistics, ddof)
        traces = self.cov.trace() + root.square().sum()
        return _distance(self.mean - statistics.mean, traces, torch.linalg.svdvals(self.factor.T @ root).sum())


def frechet_distance(mu1: torch.Tensor, cov1: torch.Tensor, mu2: torch.Tensor, cov2: torch.Tensor) -> float:
    """Squared Frechet distance of two Gaussians, means `[D]`, covariances `[D, D]`; float64, never below 0.

    ValueError for shapes that don't fit, for NaN or infinity, and for a covariance with a negative eigenvalue.
    """
    return Gaussian(mu1, cov1).distance(Gaussian(mu2, cov2))


def frechet_distance_from_features(features_a: torch.Tensor, features_b: torch.Tensor, ddof: Literal[0, 1]) -> float:
    """Squared Frechet distance of two sets of features `[N, D]`, `[M, D]`; float64, never below 0.

    A set of no more than D images has a singular covariance. Its centred features are then themselves the root, which
    is exact and cheaper; otherwise the distance comes from the moments. `ddof` as in `FeatureStatistics.cov`.
    """
    statistics = [FeatureStatistics.empty(features_a.shape[-1]).update(f) for f in (features_a, features_b)]
    a, b = statistics
    if min(a.n, b.n) > len(a.mean):
        return Gaussian.of(a, ddof).distance(Gaussian.of(b, ddof))
    root_a, root_b = (_root_of_features(f, s, ddof) for f, s in zip((features_a, features_b), statistics, strict=True))
    traces = root_a.square().sum() + root_b.square().sum()
    return _distance(a.mean - b.mean, traces, torch.linalg.svdvals(root_a.T @ root_b).sum())


def frechet_contributions(features: torch.Tensor, reference: Gaussian, ddof: Literal[0, 1]) -> torch.Tensor:
    """What each image adds, float64 `[N]` with the distance as its mean: for intervals and tests, one pass in all.

    The value of image x is the distance plus `2 (mu - m) (x - mu) + (x - mu)^T G (x - mu) - tr(G S)`, where mu and S
    are the moments of the features, m and `C = R R^T` those of the reference, and `G = 1 - R (R^T S R)^(-1/2) R^T` is
    the derivative of the distance by S (the infinitesimal jackknife; Efron 1982, section 6.1). The spread of a
    resampled distance agrees with it to first order, so N should be several times D.
    """
    check_features(features, len(reference.mean))
    own = Gaussian.of_features(features, ddof)
    step, gradient = own.mean - reference.mean, _covariance_gradient(own, reference)
    blocks = [block.double() - own.mean for block in torch.split(features, BLOCK_ROWS)]
    values = torch.cat([2 * (block @ step) + (block @ gradient * block).sum(dim=1) for block in blocks])
    return values - values.mean() + reference.distance(own)


def resampled_frechet(
    features: torch.Tensor, reference: Gaussian, ddof: Literal[0, 1]
) -> Callable[[torch.Tensor], float]:
    """The distance as a function of how often each row of `features` `[N, D]` counts, for `resampled_interval`.

    Exact where `frechet_contributions` is linear, and costs moments and eigenvalues a resample: seconds at D = 2048.
    """
    check_features(features, len(reference.mean))

    def distance(counts: torch.Tensor) -> float:
        statistics = FeatureStatistics.empty(len(reference.mean)).update_counted(features, counts)
        return reference.distance(Gaussian.of(statistics, ddof))

    return distance


def _covariance_gradient(own: Gaussian, reference: Gaussian) -> torch.Tensor:
    """Derivative `[D, D]` of the distance by the covariance of `own`; flat where that has no variance."""
    eigenvalues, vectors = torch.linalg.eigh(reference.factor.T @ own.cov @ reference.factor)
    kept = eigenvalues > len(eigenvalues) * EPSILON * eigenvalues[-1:]
    sides = reference.factor @ vectors[:, kept] / eigenvalues[kept].pow(0.25)
    identity = torch.eye(len(own.mean), dtype=torch.float64, device=own.cov.device)
    return torch.addmm(identity, sides, sides.T, alpha=-1)


def _distance(step: torch.Tensor, traces: torch.Tensor, overlap: torch.Tensor) -> float:
    return max(0.0, float(step.square().sum() + traces - 2 * overlap))


def _resolved(eigenvalues: torch.Tensor) -> bool:
    """Whether all eigenvalues (ascending) stand clear of the rounding of the largest."""
    return bool((eigenvalues > len(eigenvalues) * EPSILON * eigenvalues[-1:]).all())


def _root(cov: torch.Tensor) -> torch.Tensor:
    eigenvalues, vectors = torch.linalg.eigh(cov)
    rounding = len(cov) * EPSILON * eigenvalues[-1].abs()
    if eigenvalues[0] < -1e3 * rounding:
        raise ValueError(
            f"a covariance has the eigenvalue {float(eigenvalues[0]):.3g} beside {float(eigenvalues[-1]):.3g}; "
            "it must be symmetric and positive semi-definite, and be stored in float64"
        )
    kept = eigenvalues > rounding
    return torch.mul(vectors[:, kept], eigenvalues[kept].sqrt())


def _root_of_features(features: torch.Tensor, statistics: FeatureStatistics, ddof: Literal[0, 1]) -> torch.Tensor:
    if statistics.n > len(statistics.mean):
        return _root(statistics.cov(ddof))
    return _centred_root(features, statistics, ddof)


def _centred_root(features: torch.Tensor, statistics: FeatureStatistics, ddof: Literal[0, 1]) -> torch.Tensor:
    return (features.double() - statistics.mean).T / math.sqrt(statistics.degrees_of_freedom(ddof))
