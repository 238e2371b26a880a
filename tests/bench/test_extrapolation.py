from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.metrics.extrapolation import Extrapolation, extrapolate
from bench.metrics.frechet import Gaussian
from bench.metrics.inception_score import inception_score
from bench.statistics import FeatureStatistics


def test_extrapolate_meets_the_axis_of_a_line() -> None:
    seen = []

    def score(rows: torch.Tensor) -> float:
        seen.append(rows)
        return 3 + 50 / len(rows)

    got = extrapolate(score, 200, Extrapolation(smallest=20, points=4))
    assert (got.value, got.slope, got.residual) == pytest.approx((3, 50, 0), abs=1e-9)
    assert got.sizes == (20, 80, 140, 200)
    assert got.scores == tuple(3 + 50 / size for size in got.sizes)
    assert [len(set(rows.tolist())) for rows in seen] == list(got.sizes)
    assert not torch.equal(seen[0], seen[1][:20])  # each subset is drawn anew


def test_fid_infinity_comes_nearer_to_the_truth_than_fid() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = Gaussian(torch.zeros(16), torch.eye(16))
    features = torch.randn(2000, 16, generator=generator)  # true distance 0
    got = extrapolate(
        lambda rows: reference.distance_of_features(features[rows], ddof=1), 2000, Extrapolation(smallest=200)
    )
    assert len(got.sizes) == 15
    assert abs(got.value) < 0.2 * got.scores[-1]
    assert got.slope > 0


def test_is_infinity_comes_nearer_to_the_truth_than_is() -> None:
    draw = np.random.default_rng(0)
    probabilities = torch.from_numpy(draw.dirichlet(np.full(20, 0.5), size=3000))
    many = torch.from_numpy(draw.dirichlet(np.full(20, 0.5), size=300_000))
    truth = inception_score(many.log().clamp_min(-700), splits=1)[0]
    logits = probabilities.log().clamp_min(-700)
    got = extrapolate(lambda rows: inception_score(logits[rows], splits=1)[0], 3000, Extrapolation(smallest=100))
    assert got.slope < 0
    assert abs(got.value - truth) < 0.02 * truth


def test_extrapolation_is_a_function_of_its_seed() -> None:
    statistics = FeatureStatistics.empty(4).update(torch.randn(50, 4, generator=torch.Generator().manual_seed(1)))
    reference, features = (
        Gaussian.of(statistics, ddof=1),
        torch.rand(100, 4, generator=torch.Generator().manual_seed(2)),
    )

    def fid_infinity(seed: int) -> float:
        spec = Extrapolation(smallest=20, points=5, seed=seed)
        return extrapolate(lambda rows: reference.distance_of_features(features[rows], ddof=1), 100, spec).value

    assert fid_infinity(0) == fid_infinity(0) != fid_infinity(1)
    with pytest.raises(ValueError, match="sizes from 5000 to 100"):
        extrapolate(lambda rows: 0.0, 100)
