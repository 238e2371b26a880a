from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch

from bench import statistics
from bench.statistics import FeatureStatistics


@pytest.fixture
def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(400, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 3


def statistics_of(*batches: torch.Tensor) -> FeatureStatistics:
    collected = FeatureStatistics.empty(batches[0].shape[1])
    for batch in batches:
        collected = collected.update(batch)
    return collected


@pytest.mark.parametrize("ddof", [0, 1])
def test_statistics_agree_with_numpy_in_float64(features: torch.Tensor, ddof: Literal[0, 1]) -> None:
    collected = statistics_of(*torch.split(features, 37))
    rows = features.double().numpy()
    assert collected.n == 400
    np.testing.assert_allclose(collected.mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(collected.cov(ddof), np.cov(rows, rowvar=False, ddof=ddof), rtol=1e-11, atol=1e-13)


def test_statistics_of_merged_shards_equal_those_of_the_whole(features: torch.Tensor) -> None:
    whole = statistics_of(features)
    first, second, third = (statistics_of(shard) for shard in torch.split(features, [1, 250, 149]))
    for merged in (first.merge(second).merge(third), third.merge(first.merge(second))):
        assert merged.n == whole.n
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-11, atol=1e-9)


def test_statistics_keep_a_small_spread_about_a_large_mean(features: torch.Tensor) -> None:
    far = features.double() + 1e8  # sums of squares of 1e16 would leave no digit of the covariance
    torch.testing.assert_close(
        statistics_of(*torch.split(far, 64)).cov(1), statistics_of(features).cov(1), rtol=1e-5, atol=1e-5
    )


def test_statistics_do_not_depend_on_the_block_size(features: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = statistics_of(features)
    monkeypatch.setattr(statistics, "BLOCK_ROWS", 7)
    torch.testing.assert_close(statistics_of(features).scatter, whole.scatter, rtol=1e-11, atol=1e-9)


def test_update_and_merge_leave_their_operands_as_they_were(features: torch.Tensor) -> None:
    before = statistics_of(features)
    mean, scatter = before.mean.clone(), before.scatter.clone()
    before.update(features[:10] + 1).merge(before)
    assert before.n == 400
    assert torch.equal(before.mean, mean)
    assert torch.equal(before.scatter, scatter)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_update_refuses_a_value_that_is_not_finite(features: torch.Tensor, poison: float) -> None:
    features[17, 3] = poison
    with pytest.raises(ValueError, match=r"1 of 400 .* NaN or infinity, the first is row 17"):
        statistics_of(features)


def test_statistics_refuse_another_width(features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="11 wide where 12"):
        statistics_of(features).update(features[:, 1:])
    with pytest.raises(ValueError, match="widths 12 and 11"):
        statistics_of(features).merge(FeatureStatistics.empty(11))
    with pytest.raises(ValueError, match=r"expected \[N, D\]"):
        statistics_of(features).update(features[0])


def test_cov_refuses_too_few_features(features: torch.Tensor) -> None:
    one = statistics_of(features[:1])
    assert not one.cov(0).any()
    with pytest.raises(ValueError, match="1 features with ddof 1"):
        one.cov(1)


def test_update_counted_is_update_with_the_rows_repeated(
    features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = torch.from_numpy(np.random.default_rng(0).multinomial(400, np.full(400, 1 / 400)))
    counts[50:100] = 0  # a whole block that was not drawn
    repeated = statistics_of(features.repeat_interleave(counts, dim=0))
    monkeypatch.setattr(statistics, "BLOCK_ROWS", 50)
    counted = FeatureStatistics.empty(12).update_counted(features, counts)
    assert counted.n == repeated.n == int(counts.sum())
    torch.testing.assert_close(counted.mean, repeated.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(counted.scatter, repeated.scatter, rtol=1e-11, atol=1e-9)
