from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from bench.metrics.inception_score import inception_score


def certain_logits(classes: torch.Tensor) -> torch.Tensor:
    """Logits of a classifier that is sure of these classes out of ten."""
    return torch.nn.functional.one_hot(classes, 10).float().log()


def test_inception_score_of_undecided_logits_is_one() -> None:
    assert inception_score(torch.full((40, 10), 3.0), splits=4) == pytest.approx((1, 0))


def test_inception_score_of_certain_even_classes_is_their_number() -> None:
    assert inception_score(certain_logits(torch.arange(200) % 10), splits=10) == pytest.approx((10, 0))


def test_inception_score_of_class_sorted_images_falls_to_one_unless_shuffled() -> None:
    by_class = certain_logits(torch.arange(1000) // 100)
    assert inception_score(by_class, splits=10)[0] == pytest.approx(1)
    assert inception_score(by_class, splits=10, shuffle_seed=2020)[0] > 9
    assert inception_score(by_class, splits=1)[0] == pytest.approx(10)


def test_inception_score_std_is_that_over_the_splits() -> None:
    one_class, two_classes = torch.zeros(30, dtype=torch.int64), torch.arange(30) % 2
    assert inception_score(certain_logits(torch.cat((one_class, two_classes))), splits=2) == pytest.approx((1.5, 0.5))


def test_inception_score_of_one_split_does_not_depend_on_the_order() -> None:
    logits = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    assert inception_score(logits.flip(0), splits=1)[0] == pytest.approx(
        inception_score(logits, splits=1)[0], rel=1e-13
    )


@pytest.mark.parametrize(("splits", "shuffle"), [(10, True), (7, False), (1, False)])
def test_inception_score_agrees_with_torch_fidelity(splits: int, shuffle: bool) -> None:
    logits = 3 * torch.randn(205, 30, generator=torch.Generator().manual_seed(0))
    theirs = isc_features_to_metric(logits, splits, shuffle, rng_seed=2020)
    mean, std = inception_score(logits, splits, shuffle_seed=2020 if shuffle else None)
    assert mean == pytest.approx(theirs[KEY_METRIC_ISC_MEAN], rel=1e-13)
    assert std == pytest.approx(theirs[KEY_METRIC_ISC_STD], rel=1e-10, abs=1e-14)


def test_inception_score_of_a_split_size_takes_what_is_left_as_a_split() -> None:
    logits = torch.randn(250, 10, generator=torch.Generator().manual_seed(0))
    parts = [inception_score(part, splits=1)[0] for part in torch.split(logits, 100)]
    assert inception_score(logits, split_size=100) == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-12)
    assert inception_score(logits, split_size=5000)[0] == inception_score(logits, splits=1)[0]


def test_inception_score_leaves_the_global_generator_alone() -> None:
    state = repr(np.random.get_state())
    inception_score(torch.zeros(20, 5), splits=2, shuffle_seed=1)
    assert repr(np.random.get_state()) == state


def test_inception_score_refuses_broken_logits_and_too_many_splits() -> None:
    logits = torch.zeros(20, 5)
    with pytest.raises(ValueError, match="in 21 splits"):
        inception_score(logits, splits=21)
    logits[3] = -math.inf
    with pytest.raises(ValueError, match="zero probabilities"):
        inception_score(logits)
