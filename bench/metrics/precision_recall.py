"""Precision and recall, density and coverage, and realism, from neighbourhoods of features.

Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models (2019), eq. 1 to 3;
Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models (2020), eq. 3 and 5.

Memory beyond the features, which stay in the dtype and on the device they come in: a tile of either set and their
distances, `16 TILE D + 32 TILE^2` bytes (0.2 GB at D = 2048), and a few numbers an image. Two sets of 50,000 x 2048
float32 features and the work on them take 1.1 GB. All arithmetic is in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from bench.statistics import check_features

TILE = 2048  # rows of either set at a time
NEAR = 1e-6  # of |x|^2 + |y|^2: below it |x|^2 + |y|^2 - 2 x.y has lost too many digits

Tile = tuple[slice, slice, torch.Tensor]  # rows, columns and their distances


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
    """Precision and recall of features `[N, D]`, `[M, D]`: the shares of `manifold_membership`."""
    fakes_within, reals_within = manifold_membership(real, fake, neighbourhood, strict, rounding)
    return PrecisionRecall(float(fakes_within.double().mean()), float(reals_within.double().mean()))


def manifold_membership(
    real: torch.Tensor,
    fake: torch.Tensor,
    neighbourhood: int = 3,
    strict: bool = False,
    rounding: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which fakes `[M]` lie in the manifold of the reals, and which reals `[N]` in that of the fakes; booleans.

    A point lies in the manifold of a set if it is no farther from some member than the member's k-th other neighbour,
    `k = neighbourhood` (StyleGAN3, ADM, torch-fidelity: 3). `strict` asks for nearer (PRDC code, dgm-eval).
    `rounding` rounds distances to a dtype before they are compared: torch.float16, with features rounded to it
    beforehand, is what StyleGAN3 does.
    """
    _check_pair(real, fake)
    radii_real = neighbour_radii(real, neighbourhood, rounding)
    radii_fake = neighbour_radii(fake, neighbourhood, rounding)
    is_within = torch.lt if strict else torch.le
    fakes_within = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    reals_within = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, columns, distances in _tiles(real, fake, rounding):
        fakes_within[columns] |= is_within(distances, radii_real[rows, None]).any(dim=0)
        reals_within[rows] |= is_within(distances, radii_fake[columns]).any(dim=1)
    return fakes_within, reals_within


def density_coverage(real: torch.Tensor, fake: torch.Tensor, neighbourhood: int = 5) -> DensityCoverage:
    """Density and coverage of features `[N, D]`, `[M, D]`; neighbourhoods are open balls, as in the authors' code."""
    _check_pair(real, fake)
    radii = neighbour_radii(real, neighbourhood)
    pairs = 0
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, _, distances in _tiles(real, fake):
        within = distances < radii[rows, None]
        pairs += int(within.sum())
        covered[rows] |= within.any(dim=1)
    return DensityCoverage(pairs / (neighbourhood * len(fake)), float(covered.double().mean()))


def realism(real: torch.Tensor, fake: torch.Tensor, neighbourhood: int = 3) -> torch.Tensor:
    """Realism `[M]` of each fake: the largest ratio of a real point's radius to its distance (2019, eq. 3).

    As in the paper, the real points with radii above the median don't count. A fake upon a real point has infinity.
    """
    _check_pair(real, fake)
    radii = neighbour_radii(real, neighbourhood)
    compact = radii <= radii.median()
    real, radii = real[compact], radii[compact]
    largest = torch.zeros(len(fake), dtype=torch.float64, device=fake.device)
    for rows, columns, distances in _tiles(real, fake):
        ratios = (radii[rows, None] / distances).nan_to_num_(nan=torch.inf, posinf=torch.inf).amax(dim=0)
        largest[columns] = torch.maximum(largest[columns], ratios)
    return largest


def neighbour_radii(features: torch.Tensor, neighbourhood: int, rounding: torch.dtype | None = None) -> torch.Tensor:
    """Distance `[N]`, float64, of each row to its k-th nearest other row, k = `neighbourhood`.

    Code that counts a point as its own nearest neighbour takes the (k+1)-th smallest distance, which is the same.
    """
    if not 1 <= neighbourhood < len(features):
        raise ValueError(f"neighbourhood {neighbourhood} among {len(features)} features; allowed are 1 to N - 1")
    check_features(features)
    size = len(features), neighbourhood
    nearest = torch.full(size, torch.inf, dtype=torch.float64, device=features.device)
    for rows, columns, distances in _own_tiles(features, rounding):
        nearest[rows] = _smallest(nearest[rows], distances)
        if rows != columns:
            nearest[columns] = _smallest(nearest[columns], distances.T)
    return nearest[:, -1].clone()


def nearest_neighbours(points: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance `[N]`, float64, of each row of `points` `[N, D]` to its nearest row of `others`, and that row's number.

    Exact for near copies too, so it serves for finding training images among generated ones.
    """
    _check_pair(points, others)
    nearest = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    indices = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for rows, columns, distances in _tiles(points, others):
        smallest = distances.min(dim=1)
        closer = smallest.values < nearest[rows]
        indices[rows] = torch.where(closer, smallest.indices + columns.start, indices[rows])
        nearest[rows] = torch.minimum(smallest.values, nearest[rows])
    return nearest, indices


def _check_pair(a: torch.Tensor, b: torch.Tensor) -> None:
    check_features(a)
    check_features(b, a.shape[1])


def _smallest(known: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """The k smallest of each row, ascending, given the k smallest so far `[rows, k]` and new ones `[rows, columns]`."""
    k = known.shape[1]
    new = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values
    return torch.cat((known, new), dim=1).topk(k, dim=1, largest=False).values


def _cuts(n: int) -> list[slice]:
    return [slice(start, min(start + TILE, n)) for start in range(0, n, TILE)]


def _tiles(x: torch.Tensor, y: torch.Tensor, rounding: torch.dtype | None = None) -> Iterator[Tile]:
    """Distances of all rows of x to all of y, a tile at a time, by rows."""
    for rows in _cuts(len(x)):
        block = x[rows].double()
        for columns in _cuts(len(y)):
            yield rows, columns, _rounded(_distances(block, y[columns].double()), rounding)


def _own_tiles(x: torch.Tensor, rounding: torch.dtype | None = None) -> Iterator[Tile]:
    """Distances of the rows of x to each other, each pair once, and infinity from a row to itself."""
    cuts = _cuts(len(x))
    for index, rows in enumerate(cuts):
        block = x[rows].double()
        for columns in cuts[index:]:
            own = rows == columns
            distances = _distances(block, block if own else x[columns].double(), own=own)
            yield rows, columns, _rounded(distances, rounding)


def _rounded(distances: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return distances if dtype is None else distances.to(dtype).double()


def _distances(x: torch.Tensor, y: torch.Tensor, *, own: bool = False) -> torch.Tensor:
    """Euclidean distances by one matrix product, and directly (ten times slower) for rows with near-duplicates.

    `own` puts infinity on the diagonal, where a point would meet itself.
    """
    norms_x, norms_y = (torch.linalg.vector_norm(block, dim=1).square() for block in (x, y))
    norms = norms_x[:, None] + norms_y
    squared = torch.addmm(norms, x, y.T, alpha=-2)
    if own:
        squared.fill_diagonal_(torch.inf)
    doubtful = (squared < norms.mul_(NEAR)).any(dim=1)
    distances = squared.clamp_(min=0).sqrt_()
    if doubtful.any():
        distances[doubtful] = torch.cdist(x[doubtful], y, compute_mode="donot_use_mm_for_euclid_dist")
        if own:
            distances.fill_diagonal_(torch.inf)
    return distances
