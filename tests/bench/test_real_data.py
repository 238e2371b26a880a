"""Real images through every protocol that needs no download: their own halves are close, other sets are far."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bench import run_folder
from bench.datasets import class_prompt, open_dataset
from bench.features import Extraction, FeatureSet, extract, load_features
from bench.metrics.kernel_distance import KernelDistance, kernel_distance
from bench.networks.standin import StandinTextImage
from bench.plan import REAL, PlanOptions, make_plan
from bench.protocols import FRECHET, OTHERS, PROTOCOLS, STANDINS
from bench.records import Measurement, read_records
from bench.run import RunOptions, execute
from bench.sampling import RealImages, disjoint_halves
from bench.scoring import score
from bench.views import VIEWS, open_views
from bench.weights import WeightsOptions
from tests.bench.networks.random_networks import CPU, random_inception

pytestmark = pytest.mark.slow  # Inception looks 108 times at an image

SIZES = {"cifar10": 32, "ffhq": 256, "imagenet": 256, "pokemon": 256, "coco": 256}
UNLIKE = [("ffhq", "pokemon"), ("pokemon", "imagenet"), ("cifar10", "pokemon")]  # photographs, and artwork on white
COCO, CLIP = "fid30k@coco-sgt", "clip@standin-clip"
INCEPTION = [p.name for p in (*FRECHET, *OTHERS) if VIEWS[p.view].weights in {"inception", "inception-random"}]


@dataclass(frozen=True, slots=True)
class RealRun:
    """A run without models: of each data set one half against the other."""

    folder: Path
    rows: tuple[Measurement, ...]

    def row(self, dataset: str, protocol: str, metric: str = "") -> Measurement:
        found = (r for r in self.rows if r.case["dataset"] == dataset and r.protocol == protocol)
        return next(row for row in found if row.metric.startswith(metric))

    def value(self, dataset: str, protocol: str, metric: str = "") -> float:
        value = self.row(dataset, protocol, metric).value
        assert value is not None
        return value

    def half(self, dataset: str, source: str = REAL) -> FeatureSet:
        shards = sorted((self.folder / "features" / f"{dataset}-{SIZES[dataset]}" / source).iterdir())
        count = next(row.n for row in self.rows if row.case["dataset"] == dataset)
        return FeatureSet(tuple(shards), count or 0)

    def between(self, a: str, b: str, protocol: str) -> list[float]:
        """The scores of one half of `a` against one half of `b`."""
        return [one.value for _, one in score(PROTOCOLS[protocol], self.half(a), self.half(b, "reference"))]


def run_on_real_images(folder: Path, entries: str, shared: Path, weights: WeightsOptions) -> RealRun:
    header = 'schema = 1\nname = "real"\n[defaults]\nreference = "half"\nshard_size = 250\nbatch_size = 25\n'
    (folder / "real.toml").write_text(header + entries, encoding="utf-8")
    options = PlanOptions(suite=str(folder / "real.toml"), data_dir=shared / "data", network_weights=weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "RUNS", folder / "results" / "runs")
        result = execute(make_plan(options, CPU), options, RunOptions(folder / "run"))
    records = read_records(result.folder / "records.jsonl")
    return RealRun(result.folder, tuple(record.measurement for record in records))


def entry(dataset: str, protocols: list[str], num_images: int) -> str:
    quoted = ", ".join(f'"{name}"' for name in protocols)
    return (
        f'[[entry]]\ndataset = "{dataset}"\nresolution = {SIZES[dataset]}\n'
        f"protocols = [{quoted}]\nnum_images = {num_images}\n"
    )


@pytest.fixture(scope="module")
def standins(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RealRun:
    names = [protocol.name for protocol in STANDINS]
    entries = [entry(name, names, 400 if name == "cifar10" else 150) for name in SIZES]
    folder = tmp_path_factory.mktemp("standins")
    return run_on_real_images(folder, "".join(entries), shared_dir, WeightsOptions(cache=folder / "cache"))


@pytest.fixture(scope="module")
def inception(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRun]:
    folder = tmp_path_factory.mktemp("inception")
    torch.save(random_inception(seed=0), folder / "inception.pth")
    files = dict.fromkeys(("inception", "inception-random"), folder / "inception.pth")
    entries = entry("pokemon", INCEPTION, 10) + entry("ffhq", [COCO], 10) + entry("coco", [COCO], 4)
    yield run_on_real_images(folder, entries, shared_dir, WeightsOptions(files, folder / "cache"))
    (folder / "inception.pth").unlink()


def test_every_standin_scores_every_data_set(standins: RealRun) -> None:
    for row in standins.rows:
        without_text = row.protocol == CLIP and row.case["dataset"] in {"ffhq", "coco"}
        assert row.status == ("skipped" if without_text else "ok"), row
        assert (row.error or "").startswith("no text") == without_text
    assert {(row.case["dataset"], row.protocol) for row in standins.rows} == set(
        itertools.product(SIZES, [protocol.name for protocol in STANDINS])
    )


@pytest.mark.parametrize(("a", "b", "times"), [(*pair, 20) for pair in UNLIKE] + [("ffhq", "imagenet", 2)])
def test_halves_of_one_set_are_far_closer_than_two_sets(standins: RealRun, a: str, b: str, times: int) -> None:
    floor = max(standins.value(name, "fd@standin") for name in (a, b))
    assert standins.between(a, b, "fd@standin")[0] > times * floor
    assert standins.between(b, a, "fd@standin")[0] > times * floor
    assert standins.between(a, a, "fd@standin")[0] == pytest.approx(standins.value(a, "fd@standin"), rel=1e-9)


@pytest.mark.parametrize(("a", "b"), UNLIKE)
def test_halves_of_one_set_lie_within_each_other_and_two_sets_do_not(standins: RealRun, a: str, b: str) -> None:
    for name in (a, b):
        for protocol, metric in (("pr@standin", "Prec"), ("pr@standin", "Rec"), ("dc@standin", "Cov")):
            assert standins.value(name, protocol, metric) > 0.8, (name, metric)
        assert standins.value(name, "dc@standin", "Density") == pytest.approx(1, abs=0.2)
    precision, recall = standins.between(a, b, "pr@standin")
    density, coverage = standins.between(a, b, "dc@standin")
    assert min(precision, recall) < 0.1
    assert min(density, coverage) < 0.3


@pytest.mark.parametrize("name", SIZES)
def test_kernel_distance_of_two_halves_is_zero_within_its_spread(standins: RealRun, name: str) -> None:
    subsets = KernelDistance(num_subsets=50, subset_size=20)
    real, other, pokemon = (
        half.layer("standin", "pool")
        for half in (standins.half(name), standins.half(name, "reference"), standins.half("pokemon", "reference"))
    )
    mean, std = kernel_distance(other, real, subsets)
    assert abs(mean) < 2 * std
    if name != "pokemon":
        mean, std = kernel_distance(pokemon, real, subsets)
        assert mean > 4 * std


@pytest.mark.parametrize("name", SIZES)
def test_inception_score_lies_between_one_and_the_number_of_classes(standins: RealRun, name: str) -> None:
    assert 1 < standins.value(name, "is@standin") < 16
    if name != "pokemon":
        assert standins.value("pokemon", "is@standin") < standins.value(name, "is@standin"), "artwork on white"


def test_collapsed_set_is_recognised(standins: RealRun, shared_dir: Path, tmp_path: Path) -> None:
    dataset = open_dataset("ffhq", 256, shared_dir / "data")
    views = open_views(["standin"], WeightsOptions(cache=tmp_path), CPU).views
    work = Extraction(RealImages(dataset, [7] * 60), 60, views, shard_size=60, batch_size=60)
    extract(work, tmp_path, range(work.num_shards), lambda _: None)
    collapsed, reference = load_features(work, tmp_path), standins.half("ffhq", "reference")

    def values(protocol: str) -> list[float]:
        return [one.value for _, one in score(PROTOCOLS[protocol], collapsed, reference)]

    precision, recall = values("pr@standin")
    assert precision == 1
    assert recall < 0.05
    assert values("dc@standin")[1] < 0.1
    assert values("is@standin") == pytest.approx([1])
    assert values("fd@standin")[0] > 3 * standins.value("ffhq", "fd@standin")


def test_captions_of_pokemon_and_names_of_classes_are_what_clip_is_asked(standins: RealRun, shared_dir: Path) -> None:
    dataset = open_dataset("pokemon", 256, shared_dir / "data")
    members, _ = disjoint_halves(len(dataset), seed=0)
    captions = [caption for i in members[:150] if (caption := dataset.caption(i)) is not None]
    assert len(captions) == 150
    digests = b"".join(hashlib.sha256(caption.encode()).digest() for caption in captions)
    assert standins.row("pokemon", CLIP).case["prompts_sha256"] == hashlib.sha256(digests).hexdigest()
    embedded = StandinTextImage(CPU).texts(captions)
    assert torch.equal(standins.half("pokemon").layer("standin-clip", "text"), embedded)
    for name in ("cifar10", "imagenet"):
        words = class_prompt(open_dataset(name, SIZES[name], shared_dir / "data").class_names[0])
        assert words.startswith("a photo of a ")
        assert standins.row(name, CLIP).case["prompts_sha256"] is not None


def test_every_inception_protocol_scores_real_images_with_one_random_file(inception: RealRun) -> None:
    rows = [row for row in inception.rows if row.case["dataset"] == "pokemon" and row.protocol != COCO]
    assert {row.protocol for row in rows} == set(INCEPTION) - {COCO}
    assert all(row.status == "ok" and "inception" in row.metric for row in rows), "no stand-in and no failure"
    assert not any(row.metric.startswith(("FID", "KID")) for row in rows), "these are not the official weights"
    assert all((row.value or 0) >= 1 for row in rows if row.protocol.startswith("is50k"))
    assert inception.value("pokemon", "fid50k@adm") == inception.value("pokemon", "fid50k@edm-min3"), (
        "pixels of files are integers: no quantiser changes them"
    )


def test_inception_puts_halves_close_and_other_sets_far(inception: RealRun) -> None:
    floor = inception.value("pokemon", "fid50k_full@sg3")
    assert 0 < floor < 0.1 * inception.between("pokemon", "ffhq", "fid50k_full@sg3")[0]


def test_zero_shot_protocol_runs_on_coco_only(inception: RealRun) -> None:
    assert inception.value("coco", COCO) > 0
    for name in ("pokemon", "ffhq"):
        row = inception.row(name, COCO)
        assert (row.status, row.error) == ("skipped", "defined on coco only")
