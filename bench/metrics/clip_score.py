"""CLIP score: how well an image fits its caption.

Hessel et al., CLIPScore (2021), eq. 1 without its weight 2.5 and its clipping at 0; papers print the mean as it is,
times 100 or times 2.5, so the protocol names model and scale.
"""

from __future__ import annotations

import torch

from bench.statistics import checked_features


def clip_score(image_embeddings: torch.Tensor, text_embeddings: torch.Tensor) -> torch.Tensor:
    """Cosine `[N]` in [-1, 1], float64, of each image embedding `[N, D]` with its own text embedding `[N, D]`."""
    images = checked_features(image_embeddings)
    texts = checked_features(text_embeddings, images.shape[1])
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} texts; expected one text an image, in the same order")
    norms = torch.linalg.vector_norm(images, dim=1) * torch.linalg.vector_norm(texts, dim=1)
    if (norms == 0).any():
        raise ValueError(f"embedding {int((norms == 0).nonzero()[0])} is zero and has no direction; check the encoder")
    return torch.div((images * texts).sum(dim=1), norms)
