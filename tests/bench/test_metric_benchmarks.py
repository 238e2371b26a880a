"""Metrics against the formulations of other libraries: right in every test run, timed with `--benchmark-enable`.

The two formulations take turns, so that the load of the machine falls on both; their ratio is in `extra_info`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from bench.metrics.frechet import Gaussian, frechet_distance
from bench.metrics.precision_recall import precision_recall
from bench.statistics import FeatureStatistics

ROUNDS = 5


def assert_times_faster(
    benchmark: Any, ours: Callable[[], object], theirs: Callable[[], object], at_least: float
) -> None:
    """Time both in turn; with benchmarks disabled each is called once."""
    seconds: list[float] = []

    def run_theirs() -> None:
        start = time.perf_counter()
        theirs()
        seconds.append(time.perf_counter() - start)

    benchmark.pedantic(ours, setup=run_theirs, rounds=ROUNDS)
    if benchmark.enabled:
        ratio = statistics.median(seconds) / benchmark.stats.stats.median
        benchmark.extra_info["times_faster"] = ratio
        assert ratio >= at_least


def moments(n: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, width, generator=generator) * torch.linspace(0.1, 1, width)
    collected = FeatureStatistics.empty(width).update((features + 0.3 * features.roll(1, dims=1)).relu())
    return collected.mean, collected.cov(1)


def sqrtm_distance(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor) -> float:
    """The distance as clean-fid, StyleGAN3, EDM and pytorch-fid have it."""
    root = np.real(scipy.linalg.sqrtm(cov1.numpy() @ cov2.numpy()))
    return float((mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * np.trace(root))


@pytest.mark.parametrize("cached", [False, True], ids=["whole", "reference-cached"])
def test_frechet_distance_against_the_square_root(benchmark: Any, cached: bool) -> None:
    width = 2048 if benchmark.enabled else 64
    fake, real = moments(2 * width, width, seed=1), moments(2 * width, width, seed=2)
    reference, model = Gaussian(*real), Gaussian(*fake)
    expected = sqrtm_distance(*fake, *real)
    assert reference.distance(model) == pytest.approx(expected, rel=1e-8)
    benchmark.group = "frechet"
    whole = (lambda: reference.distance(model)) if cached else (lambda: frechet_distance(*fake, *real))
    assert_times_faster(benchmark, whole, lambda: sqrtm_distance(*fake, *real), at_least=4)


def test_precision_recall_against_whole_matrices(benchmark: Any) -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    n, width = (6000, 2048) if benchmark.enabled else (300, 32)
    fake, real = (
        torch.randn(2, n, width, generator=torch.Generator().manual_seed(3)) * torch.tensor([0.9, 1.0])[:, None, None]
    )

    def theirs() -> Any:
        return prc_features_to_metric(fake.double(), real.double(), verbose=False)

    found = theirs()
    assert precision_recall(real, fake) == pytest.approx((found["precision"], found["recall"]), rel=1e-6)
    benchmark.group = "precision_recall"
    assert_times_faster(benchmark, lambda: precision_recall(real, fake), theirs, at_least=1)
