from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from bench.intervals import (
    bootstrap_interval,
    detectable_difference,
    paired_bootstrap,
    paired_t,
    resampled_interval,
    standard_error,
    t_interval,
)
from bench.metrics.frechet import Gaussian, frechet_contributions


def normal(n: int, seed: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return mean + std * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bootstrap_interval_agrees_with_the_normal_one() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 4 + 7
    low, high = bootstrap_interval(values, seed=0)
    half_width = 1.96 * float(values.std()) / math.sqrt(2000)
    assert low == pytest.approx(float(values.mean()) - half_width, abs=0.15 * half_width)
    assert high == pytest.approx(float(values.mean()) + half_width, abs=0.15 * half_width)
    inner = bootstrap_interval(values, seed=0, level=0.5)
    assert low < inner[0] < inner[1] < high


def test_bootstrap_interval_depends_on_its_own_seed_only() -> None:
    values = torch.arange(30.0)
    state = repr(np.random.get_state())
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert repr(np.random.get_state()) == state


def test_bootstrap_interval_refuses_infinite_values_and_odd_levels() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        bootstrap_interval(torch.tensor([30.0, math.inf]), seed=0)
    with pytest.raises(ValueError, match="level 95"):
        bootstrap_interval(torch.tensor([30.0, 31.0]), seed=0, level=95)


def test_resampled_interval_of_a_mean_is_that_of_the_bootstrap() -> None:
    values = normal(500, seed=2, mean=3)

    def mean(counts: torch.Tensor) -> float:
        assert counts.dtype == torch.int64
        assert int(counts.sum()) == 500
        return float(counts.double() @ values) / 500

    got, want = resampled_interval(mean, 500, seed=0, resamples=1000), bootstrap_interval(values, seed=1)
    half_width = (want[1] - want[0]) / 2
    assert got == pytest.approx(want, abs=0.15 * half_width)
    assert got == resampled_interval(mean, 500, seed=0, resamples=1000)


def test_resampled_interval_lies_around_the_value_though_resamples_are_biased() -> None:
    values = normal(300, seed=3)

    def num_different(counts: torch.Tensor) -> float:  # a resample has 63 % of the images
        return float((counts > 0).sum()) + float(counts.double() @ values)

    value = 300 + float(values.sum())
    low, high = resampled_interval(num_different, 300, seed=0)
    assert low < value < high


def test_t_interval_agrees_with_scipy() -> None:
    values = normal(5, seed=4, mean=2.5, std=0.1)
    want = stats.t.interval(0.95, 4, loc=float(values.mean()), scale=float(stats.sem(values.numpy())))
    assert t_interval(values) == pytest.approx(want, rel=1e-12)
    with pytest.raises(ValueError, match="1 value has no spread"):
        t_interval(values[:1])


def test_paired_t_agrees_with_scipy() -> None:
    a, b = normal(6, seed=5, mean=1), normal(6, seed=6)
    want = stats.ttest_rel(a.numpy(), b.numpy())
    got = paired_t(a, b)
    assert got.p_value == pytest.approx(want.pvalue, rel=1e-12)
    assert got.interval == pytest.approx(tuple(want.confidence_interval(0.95)), rel=1e-12)
    assert paired_t(a, a).p_value == 1
    assert paired_t(a + 1, a + 0.0).p_value < 1e-9


def test_paired_bootstrap_finds_a_shift_that_unpaired_values_hide() -> None:
    shared = normal(400, seed=7, std=10)
    shifted = shared + 0.2 + normal(400, seed=8)
    got = paired_bootstrap(shifted, shared, seed=0)
    half_width = 1.96 * standard_error(shifted - shared)
    assert got.interval == pytest.approx((got.value - half_width, got.value + half_width), abs=0.2 * half_width)
    assert got.interval[0] > 0
    assert got.p_value < 0.01
    assert got == paired_bootstrap(shifted, shared, seed=0)
    assert detectable_difference(math.hypot(*(standard_error(v) for v in (shifted, shared)))) > 1  # unpaired: 1.9


def test_two_models_are_compared_on_one_reference_by_their_contributions() -> None:
    generator = torch.Generator().manual_seed(9)
    reference = Gaussian(torch.zeros(6), torch.eye(6))
    better = torch.randn(1500, 6, generator=generator)
    worse = better + 0.2 + 0.05 * torch.randn(1500, 6, generator=generator)  # from the same latents
    shares = [frechet_contributions(features, reference, ddof=1) for features in (worse, better)]
    got = paired_bootstrap(shares[0], shares[1], seed=0)
    distances = [reference.distance_of_features(features, ddof=1) for features in (worse, better)]
    assert got.value == pytest.approx(distances[0] - distances[1], rel=1e-9)
    assert got.interval[0] < 6 * 0.2**2 < got.interval[1]
    unpaired = math.hypot(*(standard_error(values) for values in shares))
    assert standard_error(shares[0] - shares[1]) <= unpaired
    assert got.value > detectable_difference(unpaired)


def test_paired_bootstrap_alarms_as_often_as_its_level_says() -> None:
    alarms = [paired_bootstrap(normal(60, 2 * i), normal(60, 2 * i + 1), seed=i).p_value < 0.05 for i in range(100)]
    assert sum(alarms) <= 12  # 5 expected; 13 or more come once in a thousand times


def test_paired_values_must_match() -> None:
    with pytest.raises(ValueError, match=r"\[3\] and \[2\] values can't be paired"):
        paired_t(torch.zeros(3), torch.zeros(2))


def test_detectable_difference_is_found_as_often_as_its_power_says() -> None:
    error = 1 / math.sqrt(50)
    difference = detectable_difference(error)
    assert difference == pytest.approx((1.959964 + 0.841621) * error, rel=1e-6)
    rng = np.random.default_rng(0)
    found = [abs(rng.normal(difference, 1, size=50).mean()) > 1.959964 * error for _ in range(2000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_detectable_difference_of_few_seeds_is_larger() -> None:
    assert detectable_difference(1, num_seeds=3) == pytest.approx(stats.t(2).ppf(0.975) + stats.t(2).ppf(0.8))
    assert detectable_difference(1, num_seeds=3) > detectable_difference(1) > detectable_difference(1, power=0.5)
    with pytest.raises(ValueError, match="power 80"):
        detectable_difference(1, power=80)
