"""Scores extrapolated to infinitely many images: FID-infinity and IS-infinity.

Chong and Forsyth, Effectively Unbiased FID and Inception Score and Where to Find Them (2020), section 4: the bias of
both is linear in 1/N, so a line through the scores of several N meets 1/N = 0 at the score without it. (The paper also
draws its latents from a Sobol sequence, which is no matter of the metric.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Extrapolation:
    """The subsets: `points` sizes evenly spaced from `smallest` to all images, each drawn anew without replacement."""

    smallest: int = 5000
    points: int = 15
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Extrapolated:
    """The score at 1/N = 0, the slope over 1/N, and the scores it comes from; `residual` is their rms off the line."""

    value: float
    slope: float
    residual: float
    sizes: tuple[int, ...]
    scores: tuple[float, ...]


DEFAULT = Extrapolation()


def extrapolate(score: Callable[[torch.Tensor], float], n: int, spec: Extrapolation = DEFAULT) -> Extrapolated:
    """Extrapolate `score`, a function of the row numbers (int64 `[size]`) of a subset of n images.

    FID-infinity: `extrapolate(lambda rows: reference.distance_of_features(features[rows], ddof), len(features))`.
    IS-infinity: `extrapolate(lambda rows: inception_score(logits[rows], splits=1)[0], len(logits))`.
    """
    if not 1 < spec.smallest < n or spec.points < 2:
        raise ValueError(f"{spec.points} sizes from {spec.smallest} to {n}; needs 2 or more and smallest < N")
    rng = np.random.default_rng(spec.seed)
    sizes = np.linspace(spec.smallest, n, spec.points).astype(np.int64)
    scores = np.array([score(torch.from_numpy(rng.permutation(n)[:size])) for size in sizes])
    slope, value = np.polyfit(1 / sizes, scores, deg=1)
    residual = np.sqrt(np.square(scores - (value + slope / sizes)).mean())
    return Extrapolated(float(value), float(slope), float(residual), tuple(sizes.tolist()), tuple(scores.tolist()))
