from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from bench.memory import peak_memory_bytes
from bench.timing import Timing, TimingSpec, time_calls

CPU = torch.device("cpu")


def test_calls_are_warmed_up_and_counted() -> None:
    calls = []
    timing = time_calls(lambda: calls.append(0), TimingSpec(num_calls=7, budget_s=60, num_warmups=3), CPU)
    assert timing.num_calls == 7
    assert len(calls) == 10


def test_budget_ends_the_calls_but_not_before_the_least_number() -> None:
    timing = time_calls(lambda: time.sleep(0.01), TimingSpec(num_calls=1000, budget_s=0.0, min_calls=4), CPU)
    assert timing.num_calls == 4
    assert timing.quantile_ms(0.5) >= 10


def test_high_quantiles_need_enough_calls() -> None:
    assert not Timing((1.0,) * 63).supports(0.9)
    assert Timing((1.0,) * 64).supports(0.9)
    assert not Timing((1.0,) * 661).supports(0.99)


def test_median_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    draws = rng.exponential(size=(400, 41))
    covered = 0
    for draw in draws:
        low, high = Timing(tuple(draw)).median_interval_ms()
        covered += low <= np.log(2) <= high
    assert 0.93 <= covered / 400 <= 1.0


def test_peak_memory_sees_a_temporary() -> None:
    def work() -> None:
        torch.ones(64 * 2**20 // 4).sum().item()

    peak = peak_memory_bytes(work, CPU)
    if peak is None:
        pytest.skip("this system does not tell the peak of the resident set")
    assert 60 * 2**20 < peak < 90 * 2**20
