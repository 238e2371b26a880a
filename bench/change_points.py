"""Where a series of measurements changed for good.

E-divisive (Matteson and James 2014, "A Nonparametric Approach for Multiple Change Point Analysis of Multivariate
Data"), which finds performance changes in MongoDB's builds (Daly et al. 2020). A split is scored by the energy
distance of its two sides, and kept if few random orders of the same values have as good a split. So where nothing
changed, noise of any distribution that is independent from run to run makes a change in at most `LEVEL` of all series.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.005
PERMUTATIONS = 999
MIN_SEGMENT = 3  # fewer values could as well be outliers

Array = NDArray[np.float64]


def change_points(values: ArrayLike, seed: int = 0) -> list[int]:
    """Indices at which a new level begins, in order; series of fewer than six values have none."""
    series = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    found: list[int] = []
    segments = [(0, len(series))]
    while segments:
        start, end = segments.pop()
        split = _significant_split(series[start:end], rng)
        if split is not None:
            found.append(start + split)
            segments += [(start, start + split), (start + split, end)]
    return sorted(found)


def _significant_split(series: Array, rng: np.random.Generator) -> int | None:
    if len(series) < 2 * MIN_SEGMENT:
        return None
    distances = np.abs(series[:, None] - series[None, :])
    scores = _split_scores(distances)
    best, as_good = float(scores.max()), 1
    if best <= 0:
        return None
    for _ in range(PERMUTATIONS):
        order = rng.permutation(len(series))
        as_good += bool(_split_scores(distances[np.ix_(order, order)]).max() >= best * (1 - 1e-9))
        if as_good > LEVEL * (PERMUTATIONS + 1):  # it can't become significant any more
            return None
    return MIN_SEGMENT + int(scores.argmax())


def _split_scores(distances: Array) -> Array:
    """The paper's statistic Q, the scaled energy distance with exponent 1, of every split into two segments."""
    n = len(distances)
    sums = np.zeros((n + 1, n + 1))
    sums[1:, 1:] = distances.cumsum(0).cumsum(1)  # sums[i, j]: of the first i rows and j columns
    m = np.arange(MIN_SEGMENT, n - MIN_SEGMENT + 1)
    left, across = sums[m, m], sums[m, n] - sums[m, m]
    right = sums[n, n] - left - 2 * across
    k = n - m
    between = 2 * across / (m * k) - left / (m * (m - 1)) - right / (k * (k - 1))
    scores: Array = between * m * k / n
    return scores
