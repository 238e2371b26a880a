from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch
from torch import Tensor

from bench import scoring
from bench.errors import UserError
from bench.features import FeatureSet
from bench.metrics.inception_score import inception_score
from bench.metrics.kernel_distance import KernelDistance
from bench.protocols import PROTOCOLS, protocol_named
from bench.references import Origin, Reference
from bench.sampling import ImageBatch
from bench.scoring import METRICS, caveats, honest_name, score, score_runs
from bench.views import VIEWS


class FakeView:
    def __init__(self, name: str, *, official: bool) -> None:
        self.name, self.sha256, self.official = name, "00", official

    def __call__(self, batch: ImageBatch) -> dict[str, Tensor]:
        return {}


OFFICIAL = FakeView("inception-v3-2015-12-05", official=True)
USERS_OWN = FakeView("inception-3fa2b81c", official=False)
FID = PROTOCOLS["fid50k_full@sg3"]


@pytest.mark.parametrize(
    ("view", "n", "name", "num_caveats"),
    [
        (OFFICIAL, 50_000, "FID", 0),
        (OFFICIAL, 49_999, "FID [n=49999]", 1),
        (USERS_OWN, 50_000, "FD-inception-3fa2b81c", 1),
        (USERS_OWN, 64, "FD-inception-3fa2b81c [n=64]", 2),
    ],
)
def test_only_the_whole_protocol_is_called_fid(view: FakeView, n: int, name: str, num_caveats: int) -> None:
    assert honest_name(METRICS["frechet"][0], FID, view, n) == name
    assert len(caveats(FID, view, n)) == num_caveats


def test_protocols_of_one_network_keep_their_names_apart_where_it_is_not_the_official_one() -> None:
    names = [
        honest_name(METRICS["frechet"][0], PROTOCOLS[p], USERS_OWN, 50_000)
        for p in ("fid50k_full@sg3", "fid50k@adm", "sfid50k_full@sgxl", "sfid50k@adm")
    ]
    own = "inception-3fa2b81c"
    assert names == [f"FD-{own}", f"FD-{own}-ADM", f"sFD-{own}", f"sFD-{own}-ADM"]


def test_protocols_of_one_network_have_different_names() -> None:
    names = {
        honest_name(METRICS["frechet"][0], PROTOCOLS[p], OFFICIAL, 50_000) for p in ("fid50k_full@sg3", "fid@clean")
    }
    assert names == {"FID", "FID-clean"}


def test_every_protocol_has_a_view_and_a_standin_of_the_same_maths() -> None:
    for protocol in PROTOCOLS.values():
        assert protocol.view in VIEWS
        if protocol.standin is not None:
            assert PROTOCOLS[protocol.standin].maths == protocol.maths
            assert VIEWS[PROTOCOLS[protocol.standin].view].weights is None


def drawn(folder: Path, seed: int, count: int = 40) -> FeatureSet:
    """Random features of every layer that a protocol names, in two shards."""
    generator = torch.Generator().manual_seed(seed)
    layers = {f"{p.view}.{p.layer}": 8 for p in PROTOCOLS.values()}
    layers |= {f"{p.view}.{layer}": 8 for p in PROTOCOLS.values() for layer in ("image", "text")}
    tensors = {name: torch.randn(count, width, generator=generator) for name, width in layers.items()}
    paths = [folder / f"{seed}-{half}.safetensors" for half in (0, 1)]
    for path, rows in zip(paths, (slice(0, count // 2), slice(count // 2, count)), strict=True):
        safetensors.torch.save_file({name: tensor[rows].clone() for name, tensor in tensors.items()}, path)
    return FeatureSet(tuple(paths), count)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_scores_features(name: str, tmp_path: Path) -> None:
    fake, real = drawn(tmp_path, 0), drawn(tmp_path, 1)
    for metric, result in score(PROTOCOLS[name], fake, real):
        assert math.isfinite(result.value)
        assert result.interval is None or result.interval[0] <= result.value <= result.interval[1], metric
    if PROTOCOLS[name].maths == "frechet":
        assert score(PROTOCOLS[name], fake, fake)[0][1].value == pytest.approx(0, abs=1e-9)


def test_protocol_takes_no_more_images_than_it_says(tmp_path: Path) -> None:
    fake, real = drawn(tmp_path, 0), drawn(tmp_path, 1)
    few = dataclasses.replace(FID, num_images=30)
    assert score(few, fake, real) == score(FID, fake.first(30), real) != score(FID, fake, real)


def test_neighbours_are_sought_among_a_random_part_of_the_reference(tmp_path: Path) -> None:
    fake, real = drawn(tmp_path, 0), drawn(tmp_path, 1)
    protocol = dataclasses.replace(PROTOCOLS["pr50k3@adm-inception"], num_reference=20)
    some, first = score(protocol, fake, real), score(protocol, fake, real.first(20))
    assert [one.value for _, one in some] != [one.value for _, one in first]
    assert some == score(protocol, fake, real)


def test_neighbours_are_sought_on_the_device_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seek = Mock(return_value=(torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)))
    monkeypatch.setattr(scoring, "manifold_membership", seek)
    fake = dataclasses.replace(drawn(tmp_path, 0), device=torch.device("meta"))
    scores = score(PROTOCOLS["pr50k3@adm-inception"], fake, drawn(tmp_path, 1))
    assert [features.device.type for features in seek.call_args.args[:2]] == ["meta", "meta"]
    assert [one.value for _, one in scores] == [1, 0]


def test_sample_sets_are_averaged_or_the_lowest_is_taken(tmp_path: Path) -> None:
    real, fakes = drawn(tmp_path, 9), [drawn(tmp_path, seed) for seed in range(4)]
    values = [score(FID, fake, real)[0][1].value for fake in fakes]
    (mean,) = score_runs(FID, fakes, real)
    assert mean.value == pytest.approx(sum(values) / 4)
    assert mean.interval is not None
    assert mean.interval[0] < mean.value < mean.interval[1]
    lowest = dataclasses.replace(FID, aggregate="min", runs=3)
    (best,) = score_runs(lowest, fakes, real)
    assert best.value == min(values[:3])
    assert best.interval is None


def test_references_are_factorised_once_for_all_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factorise = Mock(wraps=torch.linalg.cholesky_ex)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", factorise)
    real, names = drawn(tmp_path, 9), ("fid50k_full@sg3", "fid50k@adm", "fid@clean", "sfid50k@adm")
    for model in range(3):
        fake = drawn(tmp_path, model)
        for name in names:
            score(PROTOCOLS[name], fake, real)
    assert factorise.call_count == len(names)


def test_inception_score_of_adm_takes_so_many_rows_a_split(tmp_path: Path) -> None:
    fake, real = drawn(tmp_path, 0, count=50), drawn(tmp_path, 1)
    protocol = PROTOCOLS["is50k@adm"]
    assert protocol.split_size == 5000
    logits = fake.layer(protocol.view, "logits")
    (few,) = score_runs(dataclasses.replace(protocol, split_size=20), [fake], real)
    parts = [inception_score(part, splits=1)[0] for part in torch.split(logits, 20)]
    assert few.value == pytest.approx(sum(parts) / 3)
    assert few.interval is not None
    (whole,) = score_runs(protocol, [fake], real)
    assert whole.value == pytest.approx(inception_score(logits, splits=1)[0])
    assert whole.interval is None, "one split has no spread"


def test_one_sample_set_of_three_says_so() -> None:
    protocol = PROTOCOLS["fid50k@edm-min3"]
    assert honest_name(METRICS["frechet"][0], protocol, OFFICIAL, 50_000, 3) == "FID-min3"
    assert honest_name(METRICS["frechet"][0], protocol, OFFICIAL, 50_000, 1) == "FID-min3 [runs=1]"
    assert "repeats = 3" in caveats(protocol, OFFICIAL, 50_000, 1)[0]


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'fid@clean'"):
        protocol_named("fid@cleen")


KINDS = {
    "frechet": "95 % bootstrap over images",
    "frechet_infinity": None,
    "kernel_distance": "95 % bootstrap over images",  # of so few images all subsets are the same
    "inception_score": "standard deviation over splits",
    "precision_recall": "95 % binomial over images, neighbourhoods as given",
    "clip_score": "95 % bootstrap over images",
}


@pytest.mark.parametrize("name", [p.name for p in PROTOCOLS.values() if p.maths in KINDS and p.split_size is None])
def test_score_says_what_its_interval_is_and_what_each_image_adds(name: str, tmp_path: Path) -> None:
    fake, real = drawn(tmp_path, 0), drawn(tmp_path, 1)
    for _, result in score(PROTOCOLS[name], fake, real):
        assert result.interval_kind == KINDS[PROTOCOLS[name].maths]
        assert (result.interval is None) == (result.interval_kind is None)
        if "over images" in str(result.interval_kind):
            assert result.values is not None
            assert float(result.values.mean()) == pytest.approx(result.value)


def test_density_has_no_interval_and_coverage_one_inside_its_range(tmp_path: Path) -> None:
    density, coverage = score(PROTOCOLS["dc10k5@inception"], drawn(tmp_path, 0), drawn(tmp_path, 1))
    assert density[1].interval is None
    assert coverage[1].interval is not None
    assert 0 <= coverage[1].interval[0] < coverage[1].interval[1] <= 1


def test_share_of_all_images_is_not_taken_for_certain(tmp_path: Path) -> None:
    fake = drawn(tmp_path, 0)
    precision, _ = score(PROTOCOLS["pr50k3@adm-inception"], fake, fake)
    assert precision[1].value == 1
    assert precision[1].interval == pytest.approx((40 / (40 + 1.96**2), 1), abs=1e-3)  # Wilson's for 40 of 40


def test_frechet_interval_is_as_wide_as_fresh_samples_spread(tmp_path: Path) -> None:
    real = drawn(tmp_path, 1, count=2000)
    results = [score(FID, drawn(tmp_path, seed, count=400), real)[0][1] for seed in range(2, 22)]
    spread = torch.tensor([one.value for one in results]).std().item()
    halves = [(one.interval[1] - one.interval[0]) / 2 for one in results if one.interval is not None]
    assert 1.96 * spread == pytest.approx(sum(halves) / len(halves), rel=0.5)


def test_kernel_distance_of_many_images_has_the_spread_of_its_subsets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "KernelDistance", lambda: KernelDistance(num_subsets=5, subset_size=100))
    protocol = PROTOCOLS["kid50k_full@sg3"]
    ((_, result),) = score(protocol, drawn(tmp_path, 0, count=120), drawn(tmp_path, 1, count=120))
    assert result.interval_kind == "standard deviation over subsets"
    assert result.values is not None
    assert len(result.values) == 120
    assert float(result.values.mean()) == pytest.approx(result.value)


def test_several_sample_sets_have_students_interval_over_them(tmp_path: Path) -> None:
    real, fakes = drawn(tmp_path, 9), [drawn(tmp_path, seed) for seed in range(3)]
    (mean,) = score_runs(FID, fakes, real)
    assert mean.interval_kind == "95 % Student over sample sets"
    assert mean.values is not None
    assert mean.values.tolist() == [score(FID, fake, real)[0][1].value for fake in fakes]


def test_statistics_alone_of_a_reference_give_the_same_interval(tmp_path: Path) -> None:
    fake, real = drawn(tmp_path, 0), drawn(tmp_path, 1)
    origin = Origin("ffhq", 256, "0" * 64, "inception", "0" * 64, "sg3")
    known = Reference(origin, {"pool": real.statistics("inception", "pool")}, "0" * 64)
    alone = FeatureSet((), 0, (("inception", known),))
    ((_, want),), ((_, got),) = score(FID, fake, real), score(FID, fake, alone)
    assert (got.value, got.interval) == (want.value, want.interval)
