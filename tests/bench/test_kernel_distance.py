from __future__ import annotations

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from bench.metrics import kernel_distance as module
from bench.metrics.kernel_distance import (
    KernelDistance,
    kernel_contributions,
    kernel_distance,
    mmd2,
    polynomial_mmd2,
    subset_distances,
    subset_draws,
)


@pytest.fixture
def real() -> Tensor:
    return torch.randn(150, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def fake() -> Tensor:
    return torch.randn(130, 32, generator=torch.Generator().manual_seed(1)) * 1.3 + 0.4


def test_polynomial_mmd2_agrees_with_a_sum_over_pairs() -> None:
    x, y = [[1.0, 2.0], [0.0, 1.0], [-1.0, 3.0]], [[2.0, 2.0], [1.0, 0.0]]

    def mean_kernel(pairs: list[tuple[list[float], list[float]]]) -> float:
        return float(np.mean([(np.dot(a, b) / 2 + 1) ** 3 for a, b in pairs]))

    within_x, within_y = ([(a, b) for a in rows for b in rows if a is not b] for rows in (x, y))
    across = mean_kernel([(a, b) for a in x for b in y])
    got = polynomial_mmd2(torch.tensor(x), torch.tensor(y))
    assert float(got) == pytest.approx(mean_kernel(within_x) + mean_kernel(within_y) - 2 * across, rel=1e-14)


def test_unbiased_estimate_of_one_distribution_is_zero_on_average() -> None:
    generator = torch.Generator().manual_seed(3)
    values = [float(polynomial_mmd2(*torch.randn(2, 20, 8, generator=generator))) for _ in range(100)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 10
    assert min(values) < 0


def test_kernel_distance_draws_as_its_own_seed_says(real: Tensor, fake: Tensor) -> None:
    state = repr(np.random.get_state())
    spec = KernelDistance(num_subsets=5, subset_size=40, seed=1)
    assert kernel_distance(real, fake, spec) == kernel_distance(real, fake, spec)
    assert kernel_distance(real, fake, spec) != kernel_distance(real, fake, KernelDistance(5, 40, seed=2))
    assert repr(np.random.get_state()) == state


def test_subset_draws_hold_no_row_twice() -> None:
    draws = list(subset_draws(150, 130, KernelDistance(num_subsets=3, subset_size=120)))
    assert len(draws) == 3
    for rows_real, rows_fake in draws:
        assert len(set(rows_real)) == len(set(rows_fake)) == 120
        assert rows_real.max() >= 130 > rows_fake.max()


def test_subset_larger_than_a_set_is_the_smaller_set(real: Tensor, fake: Tensor) -> None:
    mean, std = kernel_distance(real[:130], fake)
    assert mean == pytest.approx(float(polynomial_mmd2(real[:130], fake)), rel=1e-12)
    assert std == 0, "all subsets are both sets whole: one is computed"
    sizes = {len(rows) for draw in subset_draws(150, 130, KernelDistance(num_subsets=1)) for rows in draw}
    assert sizes == {130}


def test_kernel_distance_is_the_mean_over_its_subsets(real: Tensor, fake: Tensor) -> None:
    spec = KernelDistance(num_subsets=7, subset_size=50, degree=2, gamma=0.1, coef0=0.5)
    values = subset_distances(real, fake, subset_draws(150, 130, spec), spec).numpy()
    assert kernel_distance(real, fake, spec) == pytest.approx((values.mean(), values.std()), rel=1e-12)


def test_kernel_distance_agrees_with_torch_fidelity(real: Tensor, fake: Tensor) -> None:
    kernel = {"kid_kernel_poly_degree": 2, "kid_kernel_poly_gamma": 0.1, "kid_kernel_poly_coef0": 0.5}
    theirs = kid_features_to_metric(
        fake.double(), real.double(), kid_subsets=4, kid_subset_size=60, rng_seed=8, verbose=False, **kernel
    )
    rng = np.random.RandomState(8)
    draws = [(rng.choice(130, 60, replace=False), rng.choice(150, 60, replace=False)) for _ in range(4)]
    spec = KernelDistance(degree=2, gamma=0.1, coef0=0.5)
    values = subset_distances(real, fake, [(rows_real, rows_fake) for rows_fake, rows_real in draws], spec)
    assert float(values.mean()) == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-12)
    assert float(values.std(correction=0)) == pytest.approx(theirs[KEY_METRIC_KID_STD], rel=1e-12)


def test_kernel_distance_agrees_with_clean_fid(real: Tensor, fake: Tensor) -> None:
    # subsets as large as the sets leave its unseeded draw nothing to choose
    theirs = cleanfid.kernel_distance(real[:130].double().numpy(), fake.double().numpy(), num_subsets=2)
    assert kernel_distance(real[:130], fake)[0] == pytest.approx(theirs, rel=1e-12)


def test_polynomial_mmd2_does_not_depend_on_the_order_of_rows_or_sets(real: Tensor, fake: Tensor) -> None:
    expected = polynomial_mmd2(real, fake)
    torch.testing.assert_close(polynomial_mmd2(real.flip(0), fake.flip(0)), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(polynomial_mmd2(fake, real), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("tile", [2048, 37])
def test_contributions_have_the_mmd2_of_all_images_as_mean(
    real: Tensor, fake: Tensor, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE", tile)
    spec = KernelDistance(degree=2, gamma=0.1, coef0=0.5)
    whole = polynomial_mmd2(real, fake, degree=2, gamma=0.1, coef0=0.5)
    torch.testing.assert_close(kernel_contributions(real, fake, spec).mean(), whole, rtol=1e-11, atol=0)
    torch.testing.assert_close(kernel_contributions(real, fake).mean(), polynomial_mmd2(real, fake), rtol=1e-11, atol=0)


def test_contributions_spread_as_the_estimate_does(real: Tensor) -> None:
    generator = torch.Generator().manual_seed(5)
    sets = [torch.randn(100, 32, generator=generator) * 1.3 + 0.4 for _ in range(200)]
    spread = torch.stack([polynomial_mmd2(real, fakes) for fakes in sets]).std()
    told = torch.stack([kernel_contributions(real, fakes).std() / 10 for fakes in sets[:20]]).mean()
    torch.testing.assert_close(told, spread, rtol=0.2, atol=0)


def test_mmd2_refuses_sets_without_pairs(real: Tensor, fake: Tensor) -> None:
    with pytest.raises(ValueError, match="no mean off its diagonal"):
        polynomial_mmd2(real[:1], fake)
    with pytest.raises(ValueError, match=r"kernel matrix \[4, 5\]"):
        mmd2(torch.ones(4, 4), torch.ones(5, 5), torch.ones(4, 5), "u-statistic")
    with pytest.raises(ValueError, match="31 wide where 32"):
        polynomial_mmd2(real, fake[:, 1:])
