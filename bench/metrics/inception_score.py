"""Inception score: how sure a classifier is of each image, and how evenly the classes are spread.

Salimans et al., Improved Techniques for Training GANs (2016), section 4: `exp(E_x KL(p(y|x) || p(y)))`.
"""

from __future__ import annotations

import numpy as np
import torch


def inception_score(logits: torch.Tensor, splits: int = 10, shuffle_seed: int | None = None) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) of the score over splits of class logits `[N, classes]`; float64.

    The logarithm of probabilities serves as logits. Split i is rows `i*N//splits` to `(i+1)*N//splits` in the order
    given (StyleGAN3, ADM), or after numpy's `RandomState(shuffle_seed).permutation` (torch-fidelity: 2020). Images
    sorted by class must be shuffled: each split would see few classes and score far too low.

    ValueError for NaN, a row without any finite logit, or fewer images than splits.
    """
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(f"logits {list(logits.shape)} in {splits} splits; expected [N, classes], 1 to N splits")
    if shuffle_seed is not None:
        logits = logits[torch.from_numpy(np.random.RandomState(shuffle_seed).permutation(len(logits)))]
    probabilities = logits.double().softmax(dim=1)
    if not torch.isfinite(probabilities).all():
        raise ValueError("logits hold NaN or infinity, or a row of zero probabilities; look at the extractor's output")
    n = len(probabilities)
    scores = torch.stack([_score(probabilities[i * n // splits : (i + 1) * n // splits]) for i in range(splits)])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(probabilities: torch.Tensor) -> torch.Tensor:
    """`exp(H(mean p) - mean H(p))`, which is the exponential of the mean divergence from the mean."""
    marginal = torch.special.entr(probabilities.mean(dim=0)).sum()
    conditional = torch.special.entr(probabilities).sum(dim=1).mean()
    return torch.exp(marginal - conditional)
