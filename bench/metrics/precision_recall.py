"""Precision and recall, density and coverage, and realism, from neighbourhoods of features.

Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models (2019), eq. 1 to 3;
Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models (2020), eq. 3 and 5.

Memory: the features in float64, 8 (N + M) D bytes, and a few blocks of 64 MiB; never a whole N x M matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from bench.statistics import checked_features

BLOCK_ELEMENTS = 2**23  # float64: 64 MiB
NEAR = 1e-6  # of |x|^2 + |y|^2: below it |x|^2 + |y|^2 - 2 x.y has lost too many digits


class PrecisionRecall(NamedTuple):
    """Shares of fakes within the real manifold and of reals within the fake one."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Mean number of real neighbourhoods around a fake over k, and share of real neighbourhoods with a fake."""

    density: float
    coverage: float


def precision_recall(
    real: torch.Tensor,
    fake: torch.Tensor,
    neighbourhood: int = 3,
    strict: bool = False,
    rounding: torch.dtype | None = None,
) -> PrecisionRecall:
    """Precision and recall of features `[N, D]`, `[M, D]`.

    A point lies in the manifold of a set if it is no farther from some member than the member's k-th other neighbour,
    `k = neighbourhood` (StyleGAN3, ADM, torch-fidelity: 3). `strict` asks for nearer (PRDC code, dgm-eval).
    `rounding` rounds distances to a dtype before they are compared: torch.float16, with features rounded to it
    beforehand, is what StyleGAN3 does.
    """
    real, fake = _checked_pair(real, fake)
    radii_real = neighbour_radii(real, neighbourhood, rounding)
    radii_fake = neighbour_radii(fake, neighbourhood, rounding)
    is_within = torch.lt if strict else torch.le
    fakes_within = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    reals_within = 0
    for rows, distances in _distance_blocks(real, fake, rounding):
        fakes_within |= is_within(distances, radii_real[rows, None]).any(dim=0)
        reals_within += int(is_within(distances, radii_fake).any(dim=1).sum())
    return PrecisionRecall(float(fakes_within.double().mean()), reals_within / len(real))


def density_coverage(real: torch.Tensor, fake: torch.Tensor, neighbourhood: int = 5) -> DensityCoverage:
    """Density and coverage of features `[N, D]`, `[M, D]`; neighbourhoods are open balls, as in the authors' code."""
    real, fake = _checked_pair(real, fake)
    radii = neighbour_radii(real, neighbourhood)
    pairs = covered = 0
    for rows, distances in _distance_blocks(real, fake):
        within = distances < radii[rows, None]
        pairs += int(within.sum())
        covered += int(within.any(dim=1).sum())
    return DensityCoverage(pairs / (neighbourhood * len(fake)), covered / len(real))


def realism(real: torch.Tensor, fake: torch.Tensor, neighbourhood: int = 3) -> torch.Tensor:
    """Realism `[M]` of each fake: the largest ratio of a real point's radius to its distance (2019, eq. 3).

    As in the paper, the real points with radii above the median don't count. A fake upon a real point has infinity.
    """
    real, fake = _checked_pair(real, fake)
    radii = neighbour_radii(real, neighbourhood)
    compact = radii <= radii.median()
    real, radii = real[compact], radii[compact]
    ratios = [(radii[rows, None] / distances).amax(dim=0) for rows, distances in _distance_blocks(real, fake)]
    return torch.stack(ratios).nan_to_num(nan=torch.inf, posinf=torch.inf).amax(dim=0)


def neighbour_radii(features: torch.Tensor, neighbourhood: int, rounding: torch.dtype | None = None) -> torch.Tensor:
    """Distance `[N]`, float64, of each row to its k-th nearest other row, k = `neighbourhood`.

    Code that counts a point as its own nearest neighbour takes the (k+1)-th smallest distance, which is the same.
    """
    if not 1 <= neighbourhood < len(features):
        raise ValueError(f"neighbourhood {neighbourhood} among {len(features)} features; allowed are 1 to N - 1")
    features = checked_features(features)
    radii = torch.empty_like(features[:, 0])
    for rows, distances in _distance_blocks(features, features, rounding):
        distances.diagonal(rows.start).fill_(torch.inf)
        radii[rows] = distances.topk(neighbourhood, dim=1, largest=False).values[:, -1]
    return radii


def _checked_pair(real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    real = checked_features(real)
    return real, checked_features(fake, real.shape[1])


def _distance_blocks(
    x: torch.Tensor, y: torch.Tensor, rounding: torch.dtype | None = None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield rows of x and their distances `[rows, M]` to all of y."""
    height = max(1, BLOCK_ELEMENTS // len(y))
    norms_x, norms_y = (torch.linalg.vector_norm(features, dim=1).square() for features in (x, y))
    for start in range(0, len(x), height):
        rows = slice(start, min(start + height, len(x)))
        distances = _distances(x[rows], y, norms_x[rows, None] + norms_y, start if x is y else None)
        yield rows, distances if rounding is None else distances.to(rounding).double()


def _distances(x: torch.Tensor, y: torch.Tensor, norms: torch.Tensor, own: int | None) -> torch.Tensor:
    """Euclidean distances by one matrix product, and directly (ten times slower) for rows with near-duplicates.

    `own` is the diagonal on which a set is compared with itself: these zeros are known.
    """
    squared = torch.addmm(norms, x, y.T, alpha=-2)
    near = squared < NEAR * norms
    if own is not None:
        near.diagonal(own).fill_(False)
        squared.diagonal(own).fill_(0)
    distances = squared.clamp_(min=0).sqrt_()
    doubtful = near.any(dim=1)
    if doubtful.any():
        distances[doubtful] = torch.cdist(x[doubtful], y, compute_mode="donot_use_mm_for_euclid_dist")
    return distances
