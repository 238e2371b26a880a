"""Authenticity: the share of generated images that are no near copies of training images.

Alaa et al., How Faithful is your Synthetic Data? Sample-level Metrics for Evaluating and Auditing Generative Models
(2022), section 4.3, in the form of AuthPct (Stein et al., Exposing Flaws of Generative Model Evaluation Metrics, 2023).
"""

from __future__ import annotations

import torch

from bench.metrics.precision_recall import nearest_neighbours, neighbour_radii


def authenticity(real: torch.Tensor, fake: torch.Tensor) -> float:
    """Percentage of fakes `[M, D]` farther from their nearest real `[N, D]` than that real from any other real.

    Give the training set as `real`. Distances are Euclidean, in float64 and in blocks, as for precision and recall.
    """
    distances, nearest = nearest_neighbours(fake, real)
    return 100 * float((neighbour_radii(real, 1)[nearest] < distances).double().mean())
