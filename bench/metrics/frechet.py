"""Frechet distance between Gaussians fitted to two sets of features: FID, sFID and FD, by the features given.

Heusel et al., GANs Trained by a Two Time-Scale Update Rule (2017), eq. 6; Dowson and Landau (1982), eq. 4:
`|mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))`.

The last trace is the sum of the singular values of `R1^T R2` for any roots `S = R R^T`. No matrix square root of the
unsymmetric product is taken, so there is no imaginary part to drop.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from bench.statistics import FeatureStatistics, checked_features

EPSILON = torch.finfo(torch.float64).eps


def frechet_distance(mu1: torch.Tensor, cov1: torch.Tensor, mu2: torch.Tensor, cov2: torch.Tensor) -> float:
    """Squared Frechet distance of two Gaussians, means `[D]`, covariances `[D, D]`; float64, never below 0.

    ValueError for shapes that don't fit, for NaN or infinity, and for a covariance with a negative eigenvalue.
    """
    mu1, mu2 = (checked_features(mu[None])[0] for mu in (mu1, mu2))
    width = len(mu1)
    if mu2.shape != (width,) or cov1.shape != (width, width) or cov2.shape != (width, width):
        raise ValueError(
            f"means {list(mu1.shape)}, {list(mu2.shape)} and covariances {list(cov1.shape)}, {list(cov2.shape)}; "
            "expected [D] and [D, D] with one D"
        )
    cov1, cov2 = checked_features(cov1), checked_features(cov2)
    root1 = _root(cov1)
    eigenvalues = torch.linalg.eigvalsh(root1.T @ cov2 @ root1)
    if not _resolved(eigenvalues):  # their square roots would turn rounding of 1e-16 into 1e-8
        eigenvalues = torch.linalg.svdvals(root1.T @ _root(cov2)).square()
    overlap = eigenvalues.sqrt().sum()
    return _distance(mu1 - mu2, cov1.trace() + cov2.trace(), overlap)


def frechet_distance_from_features(features_a: torch.Tensor, features_b: torch.Tensor, ddof: Literal[0, 1]) -> float:
    """Squared Frechet distance of two sets of features `[N, D]`, `[M, D]`; float64, never below 0.

    A set of no more than D images has a singular covariance. Its centred features are then themselves the root, which
    is exact and cheaper; otherwise the distance comes from the moments. `ddof` as in `FeatureStatistics.cov`.
    """
    statistics = [FeatureStatistics.empty(features_a.shape[-1]).update(f) for f in (features_a, features_b)]
    a, b = statistics
    if min(a.n, b.n) > len(a.mean):
        return frechet_distance(a.mean, a.cov(ddof), b.mean, b.cov(ddof))
    root_a, root_b = (_root_of_features(f, s, ddof) for f, s in zip((features_a, features_b), statistics, strict=True))
    traces = root_a.square().sum() + root_b.square().sum()
    return _distance(a.mean - b.mean, traces, torch.linalg.svdvals(root_a.T @ root_b).sum())


def _distance(step: torch.Tensor, traces: torch.Tensor, overlap: torch.Tensor) -> float:
    return max(0.0, float(step.square().sum() + traces - 2 * overlap))


def _resolved(eigenvalues: torch.Tensor) -> bool:
    """Whether all eigenvalues (ascending) stand clear of the rounding of the largest."""
    return bool((eigenvalues > len(eigenvalues) * EPSILON * eigenvalues[-1:]).all())


def _root(cov: torch.Tensor) -> torch.Tensor:
    """R `[D, rank]` with `cov = R R^T`; directions within rounding of no variance are left out."""
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
    return (features.double() - statistics.mean).T / math.sqrt(statistics.degrees_of_freedom(ddof))
