from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from bench.intervals import resampled_interval, standard_error
from bench.metrics import frechet
from bench.metrics.frechet import (
    Gaussian,
    frechet_contributions,
    frechet_distance,
    frechet_distance_from_features,
    resampled_frechet,
)
from bench.statistics import FeatureStatistics


def gaussian_features(n: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator) @ torch.randn(width, width, generator=generator) + seed / 10


def rotation(width: int) -> Tensor:
    turn: Tensor = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(9)).double()).Q
    return turn


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    statistics = FeatureStatistics.empty(features.shape[1]).update(features)
    return statistics.mean, statistics.cov(1)


@pytest.mark.parametrize("rotate", [False, True], ids=["diagonal", "rotated"])
def test_frechet_distance_of_commuting_gaussians_has_its_closed_form(rotate: bool) -> None:
    variances = torch.tensor([[4.0, 1.0, 0.25, 9.0], [1.0, 1.0, 16.0, 0.01]], dtype=torch.float64)
    means = torch.tensor([[1.0, 0.0, 2.0, -1.0], [0.0, 0.5, 2.0, 3.0]], dtype=torch.float64)
    turn = rotation(4) if rotate else torch.eye(4, dtype=torch.float64)
    first, second = (turn @ variance.diag() @ turn.T for variance in variances)
    expected = (means[0] - means[1]).square().sum() + (variances[0].sqrt() - variances[1].sqrt()).square().sum()
    assert frechet_distance(means[0], first, means[1], second) == pytest.approx(float(expected), rel=1e-13)


def test_frechet_distance_of_gaussians_on_orthogonal_subspaces_is_the_sum_of_their_traces() -> None:
    turn, zero = rotation(6), torch.zeros(6, dtype=torch.float64)
    first = turn @ torch.tensor([3.0, 2.0, 1.0, 0, 0, 0]).double().diag() @ turn.T
    second = turn @ torch.tensor([0, 0, 0, 5.0, 7.0, 0]).double().diag() @ turn.T
    assert frechet_distance(zero, first, zero, second) == pytest.approx(18, rel=1e-13)


def test_frechet_distance_of_points_is_that_of_their_means() -> None:
    zero, point = torch.zeros(3, 3), torch.tensor([3.0, 4.0, 0.0])
    assert frechet_distance(point, zero, torch.zeros(3), zero) == 25
    assert frechet_distance(point, zero, torch.zeros(3), torch.eye(3)) == 28
    assert frechet_distance(torch.zeros(3), torch.eye(3), point, zero) == 28


@pytest.mark.parametrize("n", [20, 300])
def test_frechet_distance_of_identical_sets_is_zero(n: int) -> None:
    features = gaussian_features(n, 40, seed=0)
    assert 0 <= frechet_distance_from_features(features, features.clone(), ddof=1) <= 1e-9
    assert 0 <= frechet_distance(*moments(features), *moments(features)) <= 1e-9


@pytest.mark.parametrize(("n", "m"), [(30, 20), (20, 300), (300, 20), (41, 300), (300, 300)])
def test_low_rank_route_agrees_with_the_moments(n: int, m: int) -> None:
    first, second = gaussian_features(n, 40, seed=1), gaussian_features(m, 40, seed=2)
    from_features = frechet_distance_from_features(first, second, ddof=1)
    assert from_features == pytest.approx(frechet_distance(*moments(first), *moments(second)), rel=1e-9)


def test_two_small_sets_need_no_root_of_a_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(frechet, "_root")
    assert frechet_distance_from_features(gaussian_features(40, 40, 1), gaussian_features(9, 40, 2), ddof=1) > 0


def test_both_sums_of_roots_agree_at_full_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = (*moments(gaussian_features(300, 40, seed=1)), *moments(gaussian_features(300, 40, seed=2)))
    by_eigenvalues = frechet_distance(*operands)
    monkeypatch.setattr(frechet, "_resolved", lambda _: False)
    assert frechet_distance(*operands) == pytest.approx(by_eigenvalues, rel=1e-12)


def test_frechet_distance_depends_neither_on_the_order_of_rows_nor_of_sets() -> None:
    first, second = gaussian_features(120, 16, seed=1), gaussian_features(150, 16, seed=2)
    expected = frechet_distance_from_features(first, second, ddof=0)
    assert frechet_distance_from_features(first.flip(0), second.flip(0), ddof=0) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance_from_features(second, first, ddof=0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [50, 500])
def test_frechet_distance_agrees_with_torch_fidelity(n: int) -> None:
    # in float64, since torch-fidelity takes the mean in the dtype of the features
    first, second = gaussian_features(n, 64, seed=1).double(), gaussian_features(n, 64, seed=2).double()
    theirs = fid_statistics_to_metric(fid_features_to_statistics(first), fid_features_to_statistics(second), False)
    ours = frechet_distance_from_features(first, second, ddof=1)
    assert ours == pytest.approx(theirs[KEY_METRIC_FID], rel=1e-10 if n > 64 else 1e-7)


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
@pytest.mark.parametrize("n", [50, 500])
def test_frechet_distance_agrees_with_clean_fid(n: int) -> None:
    first, second = gaussian_features(n, 64, seed=1), gaussian_features(n, 64, seed=2)
    statistics = [
        statistic
        for features in (first.double().numpy(), second.double().numpy())
        for statistic in (features.mean(axis=0), np.cov(features, rowvar=False))
    ]
    ours = frechet_distance_from_features(first, second, ddof=1)
    assert ours == pytest.approx(cleanfid.frechet_distance(*statistics), rel=1e-10 if n > 64 else 1e-7)


@pytest.mark.parametrize("n", [20, 40, 41, 300])
@pytest.mark.parametrize("n_reference", [30, 300])
def test_gaussian_reference_agrees_with_the_features(n: int, n_reference: int) -> None:
    features, real = gaussian_features(n, 40, seed=1), gaussian_features(n_reference, 40, seed=2)
    reference = Gaussian(*moments(real))
    expected = frechet_distance_from_features(real, features, ddof=1)
    assert reference.distance_of_features(features, ddof=1) == pytest.approx(expected, rel=1e-9)


def test_reference_is_factorised_once_and_models_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Gaussian(*moments(gaussian_features(300, 40, seed=2)))
    models = [Gaussian(*moments(gaussian_features(300, 40, seed=seed))) for seed in (3, 4)]
    factorise = Mock(side_effect=torch.linalg.cholesky_ex)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", factorise)
    monkeypatch.delattr(frechet, "_root")
    distances = [reference.distance(model) for model in models]
    assert factorise.call_count == 1
    assert distances == pytest.approx([model.distance(reference) for model in models], rel=1e-11)


def test_contributions_have_the_distance_as_mean_and_its_derivative_as_spread() -> None:
    features, real = gaussian_features(300, 8, seed=1).double(), gaussian_features(200, 8, seed=2)
    reference = Gaussian(*moments(real))
    contributions = frechet_contributions(features, reference, ddof=0)
    distance = reference.distance_of_features(features, ddof=0)
    assert float(contributions.mean()) == pytest.approx(distance, rel=1e-12)
    for row in (0, 17):  # more weight for one image moves the distance by what the image adds beyond the mean
        more, less = torch.full((2, 300), 100_000)
        more[row] += 30_000
        less[row] -= 30_000
        moved = [resampled_frechet(features, reference, ddof=0)(counts) for counts in (more, less)]
        slope = (moved[0] - moved[1]) / 2e-3
        assert slope == pytest.approx(float(contributions[row]) - distance, rel=1e-3)


def test_contributions_spread_as_resampled_distances_do() -> None:
    features, reference = gaussian_features(1000, 6, seed=1), Gaussian(*moments(gaussian_features(1000, 6, seed=2)))
    low, high = resampled_interval(resampled_frechet(features, reference, ddof=1), 1000, seed=0, resamples=400)
    error = standard_error(frechet_contributions(features, reference, ddof=1))
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.12)


def test_contributions_of_a_flat_reference_stay_finite() -> None:
    reference = Gaussian(*moments(gaussian_features(10, 12, seed=2)))
    contributions = frechet_contributions(gaussian_features(200, 12, seed=1), reference, ddof=1)
    assert torch.isfinite(contributions).all()


def test_frechet_distance_refuses_what_is_no_pair_of_gaussians() -> None:
    mean, cov = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match=r"expected \[D\] and \[D, D\]"):
        frechet_distance(mean, cov, mean, torch.eye(3))
    with pytest.raises(ValueError, match=r"eigenvalue -1 beside 1"):
        frechet_distance(mean, torch.tensor([[1.0, 0.0], [0.0, -1.0]]), mean, cov)
    with pytest.raises(ValueError, match="NaN or infinity"):
        frechet_distance(mean, cov * torch.nan, mean, cov)
    with pytest.raises(ValueError, match="1 features with ddof 1"):
        frechet_distance_from_features(torch.zeros(1, 2), torch.zeros(5, 2), ddof=1)
    with pytest.raises(ValueError, match="3 wide where 2"):
        frechet_distance_from_features(torch.zeros(5, 2), torch.zeros(5, 3), ddof=1)
