from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from bench import statistics
from bench.metrics import precision_recall as module
from bench.metrics.precision_recall import (
    density_coverage,
    manifold_membership,
    nearest_neighbours,
    neighbour_radii,
    precision_recall,
    realism,
)


@pytest.fixture
def real() -> Tensor:
    return torch.randn(300, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def fake() -> Tensor:
    return torch.randn(200, 16, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1


def line(*points: float) -> Tensor:
    return torch.tensor(points)[:, None]


def test_neighbour_radii_count_other_points_only() -> None:
    assert neighbour_radii(line(0, 1, 3, 7), 1).tolist() == [1, 1, 2, 4]
    assert neighbour_radii(line(0, 1, 3, 7), 3).tolist() == [7, 6, 4, 7]
    assert neighbour_radii(line(5, 5, 5, 8), 2).tolist() == [0, 0, 0, 3]


def test_precision_recall_on_a_line() -> None:
    reals, fakes = line(0, 1, 3), line(-1, 5.5, 2, 20)  # radii 1, 1, 2 and 3, 3.5, 3, 14.5
    assert precision_recall(reals, fakes, 1) == (0.5, 1.0)
    assert precision_recall(reals, fakes, 1, strict=True) == (0.25, 1.0)  # -1 is on an edge, 2 is inside 3 +- 2
    assert precision_recall(fakes, reals, 1) == (1.0, 0.5)


def test_density_coverage_on_a_line() -> None:
    reals, fakes = line(0, 2, 4, 10), line(1, 3, 3.5)  # radii 2, 2, 2, 6
    # real 0 holds 1; real 2 holds 1, 3 and 3.5; real 4 holds 3 and 3.5; real 10 holds none
    assert density_coverage(reals, fakes, 1) == (6 / 3, 3 / 4)


def test_realism_leaves_out_radii_above_the_median() -> None:
    reals = line(0, 1, 100, 102)  # radii 1, 1, 2, 2
    assert realism(reals, line(3, 0, 101), 1).tolist() == [1 / 2, torch.inf, 1 / 100]
    assert realism(line(0, 0, 10, 12), line(0, 5), 1).tolist() == [torch.inf, 0]


def test_collapsed_fakes_have_precision_but_no_recall(real: Tensor) -> None:
    noise = torch.randn(300, 16, generator=torch.Generator().manual_seed(2))
    precision, recall = precision_recall(real, real[:1] + 1e-3 * noise)
    assert precision == 1
    assert recall <= 1 / 300
    assert precision_recall(real, real[:1].expand(50, -1)) == (1.0, 1 / 300)


def test_identical_sets_have_everything(real: Tensor) -> None:
    assert precision_recall(real, real.clone()) == (1.0, 1.0)
    assert density_coverage(real, real.clone()).coverage == 1


def test_far_sets_have_nothing(real: Tensor) -> None:
    assert precision_recall(real, real + 100) == (0.0, 0.0)
    assert density_coverage(real, real + 100) == (0.0, 0.0)


@pytest.mark.parametrize("save_cpu_ram", [False, True])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_precision_recall_agrees_with_torch_fidelity(real: Tensor, fake: Tensor, k: int, save_cpu_ram: bool) -> None:
    # torch-fidelity's first input is the generated one
    theirs = prc_features_to_metric(
        fake.double(), real.double(), prc_neighborhood=k, prc_batch_size=64, save_cpu_ram=save_cpu_ram, verbose=False
    )
    precision, recall = precision_recall(real, fake, k)
    assert 0.01 < recall < precision
    assert precision == pytest.approx(theirs[KEY_METRIC_PRECISION], rel=1e-6)  # means of float32
    assert recall == pytest.approx(theirs[KEY_METRIC_RECALL], rel=1e-6)


def test_precision_recall_depends_neither_on_order_nor_on_blocks(
    real: Tensor, fake: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = precision_recall(real, fake), density_coverage(real, fake)
    assert (precision_recall(real.flip(0), fake.flip(0)), density_coverage(real.flip(0), fake.flip(0))) == expected
    ratios = realism(real, fake)
    monkeypatch.setattr(module, "TILE", 37)
    assert (precision_recall(real, fake), density_coverage(real, fake)) == expected
    torch.testing.assert_close(realism(real, fake), ratios, rtol=1e-12, atol=0)


class PeakBytes(TorchDispatchMode):
    """The most bytes that results of torch's operations have held at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                storage = leaf.untyped_storage()
                self._held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return result


def bound(tile: int, width: int, images: int) -> int:
    """What the module says that it needs beyond the features, with 100 bytes an image."""
    return 16 * tile * width + 32 * tile**2 + 100 * images


@pytest.mark.parametrize("metric", [precision_recall, density_coverage, realism, nearest_neighbours])
def test_memory_stays_within_the_stated_bound(
    metric: Callable[[Tensor, Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    reals, fakes = torch.randn(2, 1500, 256, generator=torch.Generator().manual_seed(7))
    fakes[:3] = reals[:3]  # the exact route for near copies as well
    monkeypatch.setattr(module, "TILE", 128)
    monkeypatch.setattr(statistics, "BLOCK_ROWS", 128)
    with PeakBytes() as counted:
        metric(reals, fakes)
    assert 8 * 2 * 128 * 256 < counted.peak <= bound(128, 256, 2 * 1500) + 1500 * 256 * 2  # realism: half the reals
    assert counted.peak < 1500 * 1500 * 8 / 5  # a whole matrix of distances


def test_fifty_thousand_images_twice_fit_into_two_gigabytes() -> None:
    features = 2 * 50_000 * 2048 * 4
    assert features + bound(module.TILE, 2048, 100_000) < 1.2e9


def test_membership_says_which_images_count() -> None:
    reals, fakes = line(0, 1, 3), line(-1, 5.5, 2, 20)
    fakes_within, reals_within = manifold_membership(reals, fakes, 1)
    assert fakes_within.tolist() == [True, False, True, False]
    assert reals_within.tolist() == [True, True, True]


def test_nearest_neighbours_are_found_across_tiles(real: Tensor, fake: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = torch.cdist(fake.double(), real.double(), compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    monkeypatch.setattr(module, "TILE", 37)
    distances, indices = nearest_neighbours(fake, real)
    torch.testing.assert_close(distances, direct.values, rtol=1e-12, atol=0)
    assert torch.equal(indices, direct.indices)


def test_own_distances_are_taken_once(real: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = neighbour_radii(real, 5)
    counted = Mock(side_effect=torch.addmm)
    monkeypatch.setattr(module, "TILE", 60)
    monkeypatch.setattr(torch, "addmm", counted)
    torch.testing.assert_close(neighbour_radii(real, 5), expected, rtol=1e-12, atol=0)
    assert counted.call_count == 5 * 6 / 2


def test_ordinary_features_take_the_fast_route(real: Tensor, fake: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = precision_recall(real, fake)
    monkeypatch.delattr(torch, "cdist")
    assert precision_recall(real, fake) == expected


def test_radii_of_near_duplicates_far_from_the_origin_are_exact() -> None:
    offsets = torch.rand(20, 64, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    near = 1e6 + 1e-4 * offsets  # by |x|^2 + |y|^2 - 2 x.y, squares of 1e14 would leave no digit of 1e-8
    clouds = torch.cat((near, near + 1000))
    radii = neighbour_radii(clouds, 3)
    direct = torch.cdist(near, near, compute_mode="donot_use_mm_for_euclid_dist").kthvalue(4, dim=1).values
    torch.testing.assert_close(radii[:20], direct, rtol=1e-12, atol=0)
    torch.testing.assert_close(radii[20:], direct, rtol=1e-5, atol=0)  # the offsets themselves are rounded anew


def test_rounding_compares_distances_of_that_precision() -> None:
    reals, fakes = line(0, 1, 1000), line(1999.2, 4000, 5000)  # 999.2 from 1000, whose radius is 999
    assert precision_recall(reals, fakes, 1).precision == 0
    assert precision_recall(reals, fakes, 1, rounding=torch.float16).precision == pytest.approx(1 / 3)


def test_precision_recall_refuses_too_large_a_neighbourhood_and_unlike_widths(real: Tensor, fake: Tensor) -> None:
    with pytest.raises(ValueError, match="neighbourhood 3 among 3 features; allowed are 1 to N - 1"):
        precision_recall(real, fake[:3])
    with pytest.raises(ValueError, match="15 wide where 16"):
        precision_recall(real, fake[:, 1:])
