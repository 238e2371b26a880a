"""What the harness costs, and all metrics of a pair of image sets against other libraries, as files on disk.

Timed with `--benchmark-enable` only, in turn, on a GPU where there is one; `STYLEBENCH_BENCHMARK_IMAGES` sets how many
images the libraries score (2,000 unless told).
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from cleanfid import fid as cleanfid
from PIL import Image
from torch import Tensor

from bench import views
from bench.datasets import open_dataset
from bench.features import Extraction, FeatureSet, View, extract, load_features
from bench.networks.extractors import Extractor
from bench.networks.inception import inception_extractor
from bench.networks.standin import StandinExtractor
from bench.protocols import PROTOCOLS
from bench.sampling import GeneratedImages, RealImages
from bench.scoring import score
from bench.shapes import ShapesDataset
from bench.views import ImageView, open_views
from bench.weights import LocalWeights, WeightsOptions
from models.layers import initialise
from models.registry import build
from models.spec import ImageGenerator
from tests.bench.networks.random_networks import SHA256, clean_fid_network, random_inception

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMAGES = int(os.environ.get("STYLEBENCH_BENCHMARK_IMAGES", "2000"))
BATCH, RESOLUTION, WORKERS = 16, 256, 4
MAX_OVERHEAD, MIN_TIMES_FASTER = 0.05, 2.0


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor time, that of finished child processes included."""

    def spent() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    before, start = spent(), time.perf_counter()
    call()
    return time.perf_counter() - start, spent() - before


def time_in_turn(benchmark: Any, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> float:
    """Shortest wall time of theirs over that of ours; with benchmarks disabled each is called once."""
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    benchmark.pedantic(
        lambda: times["ours"].append(seconds(ours)),
        setup=lambda: times["theirs"].append(seconds(theirs)),
        rounds=rounds,
    )
    shortest = {name: tuple(map(min, zip(*pairs, strict=True))) for name, pairs in times.items()}
    benchmark.extra_info |= {f"{name}_wall_and_processor_s": pair for name, pair in shortest.items()}
    (wall, processor), (their_wall, their_processor) = shortest["ours"], shortest["theirs"]
    benchmark.extra_info |= {"wall_ratio": their_wall / wall, "processor_ratio": their_processor / processor}
    return float(their_wall / wall)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(random_inception(seed=1), path)
    return path


def without_harness(generator: ImageGenerator, extractor: Extractor) -> Tensor:
    """Generation and features alone: latents drawn at once, nothing kept but the features."""
    rng = torch.Generator(DEVICE).manual_seed(0)
    shapes = {name: one.shape for name, one in generator.draw(np.random.default_rng(0)).items()}
    latents = {n: torch.randn(BATCH, *shape, generator=rng, device=DEVICE) for n, shape in shapes.items()}
    pool = extractor(generator.sample(latents))["pool"]
    return pool.cpu()


def test_harness_adds_at_most_a_twentieth_to_generation_and_features(
    benchmark: Any, inception_file: Path, tmp_path: Path
) -> None:
    generator = build("stylegan2-f-64" if benchmark.enabled else "stylegan2-f-32", device=DEVICE.type)
    initialise(generator, seed=0)  # type: ignore[arg-type]
    weights = LocalWeights("inception", inception_file, SHA256, official=False)
    extractor = inception_extractor(weights, "tf1", DEVICE) if benchmark.enabled else StandinExtractor(DEVICE)
    samples = GeneratedImages(generator, ShapesDataset(generator.resolution), 0, DEVICE)
    work = Extraction(samples, BATCH, {"inception": ImageView(extractor)}, shard_size=BATCH, batch_size=BATCH)

    def with_harness() -> None:
        extract(work, tmp_path, range(work.num_shards), lambda _: None)

    ratio = time_in_turn(benchmark, with_harness, lambda: without_harness(generator, extractor), rounds=8)
    assert load_features(work, tmp_path).layer("inception", "pool").shape == without_harness(generator, extractor).shape
    if benchmark.enabled:
        assert 1 / ratio <= 1 + MAX_OVERHEAD


PROTOCOL_NAMES = ("fid50k@edm-min3", "kid50k_full@sg3", "is50k@shuffled", "pr50k3@adm-inception", "fid@clean")


def write_images(folder: Path, first: int, count: int) -> None:
    dataset = ShapesDataset(RESOLUTION, count=first + count)
    folder.mkdir()
    for index in range(first, first + count):
        Image.fromarray(dataset.image(index).permute(1, 2, 0).numpy()).save(folder / f"{index:05d}.png")


def features_of(folder: Path, opened: dict[str, View], output: Path) -> FeatureSet:
    dataset = open_dataset(str(folder), RESOLUTION)
    work = Extraction(RealImages(dataset, range(len(dataset))), len(dataset), opened, shard_size=500, batch_size=BATCH)
    extract(work, output / folder.name, range(work.num_shards), lambda _: None)
    return load_features(work, output / folder.name)


def score_with_us(folder: Path, weights: Path, output: Path) -> dict[str, float]:
    views._inception.cache_clear()  # the others make their networks anew too
    protocols = [PROTOCOLS[name] for name in PROTOCOL_NAMES]
    opened = open_views((p.view for p in protocols), WeightsOptions({"inception": weights}, output), DEVICE).views
    fake, real = (features_of(folder / name, opened, output) for name in ("fake", "real"))
    scores = {p.name: [one.value for _, one in score(p, fake, real)] for p in protocols}
    return {f"{name} {place}": value for name, values in scores.items() for place, value in enumerate(values)}


def score_with_libraries(folder: Path, weights: Path) -> dict[str, float]:
    fake, real = str(folder / "fake"), str(folder / "real")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both use what their own dependencies have deprecated
        fidelity = torch_fidelity.calculate_metrics(
            input1=fake,
            input2=real,
            isc=True,
            fid=True,
            kid=True,
            prc=True,
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(weights),
            kid_subset_size=min(1000, IMAGES // 2),
            cuda=DEVICE.type == "cuda",
            cache=False,
            verbose=False,
        )
        network = clean_fid_network(torch.load(weights, weights_only=True), "clean")
        assert isinstance(network, torch.nn.Module)
        network.to(DEVICE)
        clean = cleanfid.compute_fid(
            fake, real, custom_feat_extractor=network, num_workers=WORKERS, device=DEVICE, verbose=False
        )
    return {
        "fid50k@edm-min3 0": fidelity["frechet_inception_distance"],
        "is50k@shuffled 0": fidelity["inception_score_mean"],
        "pr50k3@adm-inception 0": fidelity["precision"],
        "pr50k3@adm-inception 1": fidelity["recall"],
        "fid@clean 0": clean,
    }


def test_all_metrics_against_torch_fidelity_and_then_clean_fid(
    benchmark: Any, inception_file: Path, tmp_path: Path
) -> None:
    if not benchmark.enabled:
        pytest.skip("a square root of 2048 x 2048 and hundreds of passes of Inception; run with --benchmark-enable")
    for name, first in (("fake", 0), ("real", IMAGES // 2)):
        write_images(tmp_path / name, first, IMAGES // 2)
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    ratio = time_in_turn(
        benchmark,
        lambda: ours.update(score_with_us(tmp_path, inception_file, tmp_path)),
        lambda: theirs.update(score_with_libraries(tmp_path, inception_file)),
        rounds=1,
    )
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-3), name  # they take the root of a singular product
    assert ratio >= MIN_TIMES_FASTER
