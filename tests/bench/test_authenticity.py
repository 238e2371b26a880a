from __future__ import annotations

import pytest
import torch

from bench.metrics.authenticity import authenticity


def test_authenticity_on_a_line() -> None:
    reals = torch.tensor([[0.0], [1.0], [10.0]])  # nearest others at 1, 1 and 9
    fakes = torch.tensor([[0.4], [-2.0], [15.0], [30.0]])  # 0.4 < 1, 2 > 1, 5 < 9 and 20 > 9 from their nearest
    assert authenticity(reals, fakes) == 50
    assert authenticity(reals, fakes[[1, 3]]) == 100
    assert authenticity(reals, torch.tensor([[2.0]])) == 0  # as far as the others: a copy


def test_copies_are_not_authentic() -> None:
    reals = torch.randn(80, 8, generator=torch.Generator().manual_seed(0))
    assert authenticity(reals, reals + 1e-4) == 0
    assert authenticity(reals, reals + 100) == 100


def test_authenticity_agrees_with_all_distances() -> None:
    reals, fakes = torch.randn(2, 150, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nearest = torch.cdist(fakes, reals).min(dim=1)
    own = torch.cdist(reals, reals).fill_diagonal_(torch.inf).min(dim=1).values
    want = 100 * float((own[nearest.indices] < nearest.values).double().mean())
    assert 10 < want < 90
    assert authenticity(reals, fakes) == pytest.approx(want)
