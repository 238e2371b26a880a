"""Inception score: how sure a classifier is of each image, and how evenly the classes are spread.

Salimans et al., Improved Techniques for Training GANs (2016), section 4: `exp(E_x KL(p(y|x) || p(y)))`.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch


def inception_score(
    logits: torch.Tensor, splits: int = 10, shuffle_seed: int | None = None, split_size: int | None = None
) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) of the score over splits of class logits `[N, classes]`; float64.

    The logarithm of probabilities serves as logits. Split i is rows `i*N//splits` to `(i+1)*N//splits` in the order
    given (StyleGAN3), or after numpy's `RandomState(shuffle_seed).permutation` (torch-fidelity: 2020). With
    `split_size` the splits are that many rows each, the last one what is left, however many it makes (ADM: 5000).
    Images sorted by class must be shuffled: each split would see few classes and score far too low.

    ValueError for NaN, a row without any finite logit, or fewer images than splits.
    """
    n = len(logits)
    if logits.ndim != 2 or not 1 <= splits <= n or (split_size is not None and split_size < 1):
        raise ValueError(f"logits {list(logits.shape)} in {splits} splits; give [N, classes] of as many images or more")
    if shuffle_seed is not None:
        logits = logits[torch.from_numpy(np.random.RandomState(shuffle_seed).permutation(n))]
    bounds = [*range(0, n, split_size), n] if split_size else [i * n // splits for i in range(splits + 1)]
    scores = torch.stack([_score(logits[first:last]) for first, last in itertools.pairwise(bounds)])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(logits: torch.Tensor) -> torch.Tensor:
    """`exp(H(mean p) - mean H(p))`, which is the exponential of the mean divergence from the mean."""
    probabilities = logits.double().softmax(dim=1)
    if not torch.isfinite(probabilities).all():
        raise ValueError("logits hold NaN or infinity, or a row of zero probabilities; look at the extractor's output")
    marginal = torch.special.entr(probabilities.mean(dim=0)).sum()
    conditional = torch.special.entr(probabilities).sum(dim=1).mean()
    return torch.exp(marginal - conditional)
