from __future__ import annotations

import math

import pytest
import torch

from bench.metrics.vendi import vendi_score


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(60, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("order", [0, 0.5, 1, 2, math.inf])
def test_vendi_score_counts_what_is_different(order: float) -> None:
    directions = torch.eye(7)[:5].repeat(4, 1) * torch.arange(1.0, 21)[:, None]  # lengths don't matter
    assert vendi_score(directions, order) == pytest.approx(5, rel=1e-12)
    assert vendi_score(directions[:1].expand(9, -1), order) == pytest.approx(1, rel=1e-12)


def test_vendi_score_of_uneven_shares_is_their_entropy() -> None:
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    rows = torch.eye(3).repeat_interleave(torch.tensor([5, 3, 2]), dim=0)
    assert vendi_score(rows) == pytest.approx(math.exp(-float((shares * shares.log()).sum())), rel=1e-12)
    assert vendi_score(rows, order=2) == pytest.approx(1 / float(shares.square().sum()), rel=1e-12)
    assert vendi_score(rows, order=math.inf) == pytest.approx(2, rel=1e-12)


def test_vendi_score_is_the_same_by_either_gram_matrix(features: torch.Tensor) -> None:
    wide = torch.cat((features, torch.zeros(60, 100)), dim=1)
    assert vendi_score(wide) == pytest.approx(vendi_score(features), rel=1e-12)


def test_vendi_score_falls_with_the_order_and_with_duplicates(features: torch.Tensor) -> None:
    scores = [vendi_score(features, order) for order in (0, 0.5, 1, 2, math.inf)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(12)  # the rank
    assert vendi_score(features.repeat(2, 1)) == pytest.approx(scores[2], rel=1e-12)


def test_polynomial_kernel_is_that_of_its_definition(features: torch.Tensor) -> None:
    rows = features / features.norm(dim=1, keepdim=True)
    shares = torch.linalg.eigvalsh((rows @ rows.T / 12 + 1) ** 3 / 60)
    want = math.exp(-float((shares * shares.log()).sum()))
    assert vendi_score(features, kernel="polynomial") == pytest.approx(want, rel=1e-12)


def test_vendi_score_refuses_zeros_and_odd_orders(features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="order -1"):
        vendi_score(features, order=-1)
    with pytest.raises(ValueError, match="all features are zero"):
        vendi_score(torch.zeros(3, 4))
    assert vendi_score(features / 7, normalize=False, order=math.inf) == pytest.approx(
        49 / float(torch.linalg.eigvalsh(features.T @ features / 60)[-1])
    )
