"""Vendi score: how many different images a set holds, counted by the entropy of their similarities.

Friedman and Dieng, The Vendi Score: A Diversity Evaluation Metric for Machine Learning (2023), definition 3.1; orders
other than 1 are those of Pasarkar and Dieng, Cousins of the Vendi Score (2024). No reference set is involved.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F

from bench.statistics import checked_features

Kernel = Literal["linear", "polynomial"]
ROUNDING = torch.finfo(torch.float64).eps


def vendi_score(features: torch.Tensor, order: float = 1.0, kernel: Kernel = "linear", normalize: bool = True) -> float:
    """Effective number of different rows of features `[N, D]`: the exponential of the Renyi entropy of `K / N`.

    Rows are scaled to length 1 unless `normalize` is false. The kernel is `x.y`, or `(x.y / D + 1)^3`; the latter is
    not divided by its diagonal, as in dgm-eval, so that its score is no count. `order` is that of the entropy, 1 for
    Shannon's, `math.inf` for the largest eigenvalue. Needs 8 min(N, D)^2 bytes, the polynomial kernel 8 N^2.
    """
    if order < 0 or math.isnan(order):
        raise ValueError(f"order {order} of the entropy; allowed are 0 to infinity")
    rows = checked_features(features)
    if normalize:
        rows = F.normalize(rows, dim=1)
    return math.exp(_entropy(_spectrum(rows, kernel), order))


def _spectrum(rows: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """Positive eigenvalues of `K / N`; those within rounding of zero are zero."""
    n, width = rows.shape
    if kernel == "polynomial":
        similarities = (rows @ rows.T).div_(width).add_(1).pow_(3)
    else:  # the eigenvalues of X X^T are those of X^T X and zeros
        similarities = rows @ rows.T if n <= width else rows.T @ rows
    eigenvalues: torch.Tensor = torch.linalg.eigvalsh(similarities.div_(n))
    return eigenvalues[eigenvalues > n * ROUNDING * eigenvalues[-1]]


def _entropy(shares: torch.Tensor, order: float) -> float:
    if len(shares) == 0:
        raise ValueError("all features are zero; a similarity of nothing has no entropy")
    if order == 1:
        return float(torch.special.entr(shares).sum())
    if order == math.inf:
        return -math.log(float(shares[-1]))
    return math.log(float(shares.pow(order).sum())) / (1 - order)
