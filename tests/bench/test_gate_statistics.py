"""The gate's statistics on simulated timings: drift, bursts of load, heavy tails."""

from __future__ import annotations

import numpy as np
import pytest

from bench.gate_statistics import (
    ALARM_RATE,
    LARGEST,
    MAX_ROUNDS,
    MIN_ROUNDS,
    SMALLEST,
    Array,
    Comparison,
    compare,
    exceedance_p_value,
    median_interval,
    rounds_needed,
    verdicts,
)

NOISES = ["normal", "heavy tails", "bursts", "drift"]


def noise(kind: str, calls: int, rng: np.random.Generator) -> Array:
    """What a machine adds to the logarithm of a duration, call after call."""
    small = 0.02 * rng.normal(size=calls)
    if kind == "heavy tails":
        return np.minimum(0.05 * np.abs(rng.standard_t(1.2, size=calls)), 5.0)
    if kind == "bursts":
        return small + (np.cumsum(rng.random(calls) < 0.03) % 2) * rng.exponential(1.0, size=calls)
    if kind == "drift":
        return small + np.linspace(0, 1, calls) + 0.01 * np.cumsum(rng.normal(size=calls))
    return small


def simulate(kind: str, slow_down: float, rounds: int, rng: np.random.Generator) -> list[Array]:
    """Durations of head, base and control, measured as the gate measures: random order, then its mirror image."""
    machine = np.exp(noise(kind, 6 * rounds, rng)).reshape(rounds, 6)
    orders = [np.concatenate([order, order[::-1]]) for order in (rng.permutation(3) for _ in range(rounds))]
    durations = machine * np.array([1 + slow_down, 1.0, 1 + slow_down])[np.array(orders)]
    return [np.stack([durations[i, orders[i] == version] for i in range(rounds)]) for version in range(3)]


def gate(kind: str, slow_down: float, rng: np.random.Generator) -> tuple[Comparison, str]:
    pilot = simulate(kind, slow_down, 20, rng)
    rounds = min(rounds_needed(pilot[0], pilot[1]), 600)
    comparison = compare(*simulate(kind, slow_down, rounds, rng))
    return comparison, verdicts([comparison])[0]


@pytest.mark.parametrize("kind", NOISES)
def test_equal_code_raises_no_alarm(kind: str) -> None:
    rng = np.random.default_rng(0)
    found = [gate(kind, 0.0, rng)[1] for _ in range(40)]
    assert "regressed" not in found
    assert found.count("ok") >= 38


@pytest.mark.parametrize("kind", NOISES)
def test_slow_down_of_a_tenth_is_found(kind: str) -> None:
    rng = np.random.default_rng(1)
    found = [gate(kind, 0.1, rng)[1] for _ in range(20)]
    assert "ok" not in found
    assert found.count("regressed") >= 16


@pytest.mark.parametrize("kind", ["normal", "drift"])
def test_slow_down_of_a_twentieth_is_found(kind: str) -> None:
    rng = np.random.default_rng(2)
    found = [gate(kind, 0.05, rng)[1] for _ in range(20)]
    assert "ok" not in found
    assert found.count("regressed") >= 18


@pytest.mark.parametrize("kind", NOISES)
def test_p_value_is_honest_for_equal_code_at_any_threshold(kind: str) -> None:
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(400):
        head, base, _ = simulate(kind, 0.0, 50, rng)
        p_values.append(exceedance_p_value(np.log(head.min(1) / base.min(1)), 0.0))
    for level in (0.01, 0.05, 0.2):  # three standard errors of the count above what the level allows
        assert np.mean(np.array(p_values) <= level) <= level + 3 * np.sqrt(level / 400)


def test_p_value_is_the_tail_of_a_binomial() -> None:
    assert exceedance_p_value(np.array([1.0] * 10), 0.02) == pytest.approx(2**-10)
    assert exceedance_p_value(np.array([1.0] * 9 + [0.0]), 0.02) == pytest.approx(11 * 2**-10)
    assert exceedance_p_value(np.zeros(10), 0.0) == 1.0  # ties do not count as slower


def test_interval_covers_the_median_of_dependent_values() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        shocks = rng.normal(size=203)
        low, high = median_interval(0.01 * (shocks[3:] + shocks[2:-1] + shocks[1:-2] + shocks[:-3]))
        covered += low <= 0 <= high
    assert covered >= 190  # a bootstrap that took the values for independent covers 0 in about 160 of 200


def test_threshold_grows_with_the_control() -> None:
    rng = np.random.default_rng(5)
    quiet = compare(*simulate("normal", 0.0, 400, rng))
    loud = [np.exp(0.4 * rng.normal(size=(100, 2))) for _ in range(3)]
    assert quiet.threshold == SMALLEST
    assert compare(*loud).threshold > 0.1


def test_noise_that_hides_a_twentieth_is_inconclusive() -> None:
    rng = np.random.default_rng(6)
    loud = compare(*(np.exp(0.4 * rng.normal(size=(60, 2))) for _ in range(3)))
    assert verdicts([loud]) == ["inconclusive"]


def test_verdicts_by_interval() -> None:
    def with_interval(low: float, high: float, p_value: float) -> Comparison:
        return Comparison((low + high) / 2, (low, high), (-0.001, 0.001), SMALLEST, p_value, 100)

    assert verdicts([with_interval(0.03, 0.04, 1e-9)]) == ["regressed"]
    assert verdicts([with_interval(0.03, 0.04, 0.2)]) == ["ok"]  # below LARGEST, and not significant
    assert verdicts([with_interval(0.03, 2 * LARGEST, 0.2)]) == ["inconclusive"]
    assert verdicts([with_interval(-0.05, -0.03, 1.0)]) == ["improved"]
    assert verdicts([with_interval(-0.01, 0.01, 1.0)]) == ["ok"]
    assert verdicts([]) == []


def test_many_kernels_share_one_rate_of_false_alarms() -> None:
    one = Comparison(0.04, (0.03, 0.045), (0.0, 0.001), SMALLEST, ALARM_RATE / 10, 100)
    good = Comparison(0.0, (-0.01, 0.01), (0.0, 0.001), SMALLEST, 1.0, 100)
    assert verdicts([one, *[good] * 9])[0] == "regressed"
    assert verdicts([one, *[good] * 10])[0] == "ok"


def test_rounds_follow_the_noise_of_the_pilot() -> None:
    rng = np.random.default_rng(7)
    pilots = [[np.exp(scale * rng.normal(size=(20, 2))) for _ in range(2)] for scale in (1e-4, 0.02, 2.0)]
    few, some, many = (rounds_needed(head, base) for head, base in pilots)
    assert few == MIN_ROUNDS < some < many == MAX_ROUNDS
