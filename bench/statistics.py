"""Streaming moments of features in float64, which merge across shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

BLOCK_ROWS = 8192  # rows turned to float64 at a time: 128 MiB at 2048 features


def checked_features(features: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """Return finite features `[N, D]`, N >= 1, as float64 on their own device; anything else is a ValueError."""
    check_features(features, width)
    return features.double()


def check_features(features: torch.Tensor, width: int | None = None) -> None:
    """Raise ValueError unless the features are finite, `[N, D]`, N >= 1; makes no copy of them."""
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features have the shape {list(features.shape)}; expected [N, D] with one row an image")
    if width is not None and features.shape[1] != width:
        raise ValueError(
            f"features are {features.shape[1]} wide where {width} is expected; "
            "take both sets from the same layer of the same extractor"
        )
    bad_rows = torch.cat([(~block.isfinite()).any(dim=1) for block in torch.split(features, BLOCK_ROWS)])
    if bad_rows.any():
        raise ValueError(
            f"{int(bad_rows.sum())} of {len(features)} feature rows hold NaN or infinity, the first is row "
            f"{int(bad_rows.nonzero()[0])}; look at those images or at the precision of the extractor"
        )


@dataclass(frozen=True, slots=True, eq=False)
class FeatureStatistics:
    """Count, mean `[D]` and scatter `[D, D]` (sum of centred outer products) of a set of features, in float64."""

    n: int
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def empty(cls, width: int) -> FeatureStatistics:
        """Statistics of no features of the given width."""
        zeros = torch.zeros(width, dtype=torch.float64)
        return cls(0, zeros, torch.zeros(width, width, dtype=torch.float64))

    def update(self, features: torch.Tensor) -> FeatureStatistics:
        """Return the statistics with the rows of `features` `[N, D]` added.

        The result lies on the device of the first features. ValueError for NaN, infinity or another width.
        """
        merged = self
        for block in torch.split(features, BLOCK_ROWS):
            rows = checked_features(block, len(self.mean))
            mean = rows.mean(dim=0)
            centred = rows - mean
            merged = merged.merge(FeatureStatistics(len(rows), mean, centred.T @ centred))
        return merged

    def update_counted(self, features: torch.Tensor, counts: torch.Tensor) -> FeatureStatistics:
        """Return the statistics with row i of `features` `[N, D]` added `counts[i]` times, whole numbers `[N]`.

        What a resample with replacement needs: no row is copied, and those that were not drawn cost nothing.
        """
        merged = self
        for block, times in zip(torch.split(features, BLOCK_ROWS), torch.split(counts, BLOCK_ROWS), strict=True):
            drawn = times > 0
            if not drawn.any():
                continue
            rows = checked_features(block[drawn.to(block.device)], len(self.mean))
            weights = times[drawn].to(rows)
            n = int(times.sum())
            mean = weights @ rows / n
            centred = (rows - mean).mul_(weights.sqrt()[:, None])
            merged = merged.merge(FeatureStatistics(n, mean, centred.T @ centred))
        return merged

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Return the statistics of both sets together (Chan, Golub and LeVeque 1983, eq. 1.5, for matrices)."""
        if len(self.mean) != len(other.mean):
            raise ValueError(f"statistics of widths {len(self.mean)} and {len(other.mean)} can't be merged")
        if self.n == 0:
            return other
        n = self.n + other.n
        step = other.mean.to(self.mean.device) - self.mean
        scatter = self.scatter + other.scatter.to(self.scatter.device)
        scatter.addr_(step, step, alpha=self.n * other.n / n)
        return FeatureStatistics(n, self.mean + step * (other.n / n), scatter)

    def cov(self, ddof: Literal[0, 1]) -> torch.Tensor:
        """Covariance `[D, D]`: the scatter over `n - ddof`. StyleGAN2 and 3 take 0, numpy.cov and most others 1."""
        return self.scatter / self.degrees_of_freedom(ddof)

    def degrees_of_freedom(self, ddof: Literal[0, 1]) -> int:
        """The divisor `n - ddof` of the covariance; ValueError unless it is positive."""
        if self.n <= ddof:
            raise ValueError(f"the covariance of {self.n} features with ddof {ddof} isn't defined; needs {ddof + 1}")
        return self.n - ddof
