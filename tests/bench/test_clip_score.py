from __future__ import annotations

import math

import pytest
import torch

from bench.metrics.clip_score import clip_score


def test_clip_score_is_the_unscaled_cosine_of_each_pair() -> None:
    images = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0], [-1.0, -1.0]])
    texts = torch.tensor([[5.0, 0.0], [1.0, 0.0], [1.0, 0.0], [10.0, 10.0]])
    got = clip_score(images, texts)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx([1, math.sqrt(0.5), 0, -1], abs=1e-14)


def test_clip_score_does_not_depend_on_the_lengths_of_embeddings() -> None:
    images, texts = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(clip_score(images * 20, texts * 0.1), clip_score(images, texts), rtol=1e-5, atol=1e-7)


def test_clip_score_refuses_what_is_no_list_of_pairs() -> None:
    ones = torch.ones(3, 4)
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        clip_score(ones, ones[:2])
    with pytest.raises(ValueError, match="5 wide where 4"):
        clip_score(ones, torch.ones(3, 5))
    with pytest.raises(ValueError, match="embedding 0 is zero"):
        clip_score(ones, 0 * ones)
    with pytest.raises(ValueError, match="NaN or infinity"):
        clip_score(ones * torch.nan, ones)
