from __future__ import annotations

import numpy as np
import pytest

from bench.change_points import LEVEL, MIN_SEGMENT, _split_scores, change_points


def noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Log-times of one machine: 1.5 % of noise, and now and then a run beside other work."""
    outliers = (rng.random(count) < 0.05) * np.abs(rng.normal(size=count)) * 0.15
    return np.asarray(0.015 * rng.normal(size=count) + outliers)


@pytest.mark.parametrize("count", [12, 40])
def test_series_without_change_has_no_change_points(count: int) -> None:
    rng = np.random.default_rng(0)
    found = sum(bool(change_points(noise(count, rng), seed)) for seed in range(200))
    assert found <= 200 * LEVEL + 3 * np.sqrt(200 * LEVEL)


def test_step_of_a_twentieth_is_found_where_it_is() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(20):
        series = noise(60, rng) + 0.05 * (np.arange(60) >= 35)
        found = change_points(series, seed)
        hits += any(abs(point - 35) <= 2 for point in found)
    assert hits >= 18


def test_several_steps_are_found_in_order() -> None:
    levels = np.repeat([1.0, 1.2, 0.9], [15, 12, 20])
    series = levels + 0.01 * np.random.default_rng(2).normal(size=len(levels))
    assert change_points(series) == [15, 27]


def test_outliers_are_no_level() -> None:
    series = noise(40, np.random.default_rng(3))
    series[[20, 39]] += 1.0
    assert change_points(series) == []


@pytest.mark.parametrize("series", [[], [1.0], [1.0] * 5, [1.0, 1.0, 1.0, 9.0, 9.0], [2.0] * 50])
def test_short_and_constant_series_have_none(series: list[float]) -> None:
    assert change_points(series) == []


def test_scores_are_the_energy_distance_of_the_two_sides() -> None:
    series = np.random.default_rng(4).normal(size=11)
    scores = _split_scores(np.abs(series[:, None] - series[None, :]))
    for split, score in enumerate(scores, start=MIN_SEGMENT):
        left, right = series[:split], series[split:]

        def mean_distance(a: np.ndarray, b: np.ndarray, pairs: int) -> float:
            return float(sum(abs(x - y) for x in a for y in b)) / pairs

        m, n = len(left), len(right)
        energy = 2 * mean_distance(left, right, m * n)
        energy -= mean_distance(left, left, m * (m - 1)) + mean_distance(right, right, n * (n - 1))
        assert score == pytest.approx(energy * m * n / (m + n))
