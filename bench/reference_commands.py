"""`python -m bench reference`: build, show, import and export the statistics of reference sets."""

from __future__ import annotations

import argparse
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.commands import weights_options
from bench.datasets import ImageDataset, open_dataset
from bench.distributed import Shard
from bench.environment import choose_device, source_sha256
from bench.errors import UserError
from bench.features import Extraction, FeatureSet, View, extract, load_features, missing_shards
from bench.fetch import cache_dir
from bench.progress import Progress
from bench.protocols import PROTOCOLS, protocol_named
from bench.references import (
    LAYERS_OF_NPZ,
    UNKNOWN,
    Origin,
    Reference,
    export_npz,
    import_npz,
    load_reference,
    save_reference,
)
from bench.sampling import RealImages
from bench.scoring import TAKES_STATISTICS
from bench.views import open_views
from bench.weights import WeightsOptions

SHARD_SIZE = 500
OFFICIAL_INCEPTION = "inception-v3-2015-12-05"


@dataclass(frozen=True, slots=True)
class ReferenceJob:
    """Which images, through which network, and where the statistics go."""

    dataset: ImageDataset
    view: str
    num_images: int
    batch_size: int
    device: torch.device


def build_reference(job: ReferenceJob, weights: WeightsOptions, cache: Path) -> Reference:
    """Extract the features of all images, and sum them up.

    A cut leaves shards behind in a folder of `cache`, from which the same job goes on.
    """
    opened = open_views([job.view], weights, job.device)
    if job.view in opened.missing:
        raise UserError(opened.missing[job.view])
    view = opened.views[job.view]
    dataset = job.dataset
    origin = Origin(dataset.name, dataset.resolution, dataset.content_sha256(), view.name, view.sha256)
    # all that the shards depend on: those of other weights, or of fewer images, are no part of this job
    made_of = f"{origin} {job.num_images} {job.batch_size} {source_sha256()}"
    folder = cache / hashlib.sha256(made_of.encode()).hexdigest()
    features = _features(job, view, folder)
    layers = [layer for layer in LAYERS_OF_NPZ if features.has(job.view, layer)]
    reference = Reference(origin, {layer: features.statistics(job.view, layer) for layer in layers})
    shutil.rmtree(folder, ignore_errors=True)
    return reference


def _features(job: ReferenceJob, view: View, folder: Path) -> FeatureSet:
    images = RealImages(job.dataset, range(job.num_images))
    work = Extraction(images, job.num_images, {job.view: view}, SHARD_SIZE, job.batch_size)
    missing = missing_shards(work, folder)
    progress = Progress([1.0])
    progress.start_task(f"{job.dataset.name}-{job.dataset.resolution} {job.view}", work.count)
    progress.advance(work.count - sum(len(work.shard_ids(shard)) for shard in missing))
    try:
        extract(work, folder, Shard().mine(missing), progress.advance)
    finally:
        progress.close()
    return load_features(work, folder)


def reference(arguments: argparse.Namespace) -> int:
    """Do what is asked for with statistics of a reference set."""
    if arguments.action == "build":
        return _build(arguments, weights_options(arguments, may_fetch=True))
    if arguments.action == "import":
        return _import(arguments)
    if arguments.action == "export":
        export_npz(load_reference(arguments.source), arguments.destination)
        print(f"statistics {arguments.destination}")
        return 0
    return _show(arguments.source)


def _build(arguments: argparse.Namespace, weights: WeightsOptions) -> int:
    protocol = protocol_named(arguments.protocol)
    if protocol.maths not in TAKES_STATISTICS:
        takers = ", ".join(p.name for p in PROTOCOLS.values() if p.maths in TAKES_STATISTICS)
        raise UserError(f"--protocol {protocol.name}: it takes no statistics of a reference. These do: {takers}.")
    dataset = open_dataset(arguments.dataset, arguments.resolution, arguments.data)
    device = choose_device(arguments.device)
    count = min(len(dataset), arguments.limit or len(dataset))
    job = ReferenceJob(dataset, protocol.view, count, arguments.batch_size, device)
    name = f"{dataset.name}-{arguments.resolution}-{protocol.view}-{dataset.content_sha256()[:8]}"
    output = arguments.output or Path(f"{name}.safetensors")
    save_reference(build_reference(job, weights, cache_dir() / "references"), output)
    return _show(output)


def _import(arguments: argparse.Namespace) -> int:
    conventions = {p.name.partition("@")[2] for p in PROTOCOLS.values() if p.maths in TAKES_STATISTICS}
    if arguments.convention not in conventions:
        allowed = ", ".join(sorted(conventions))
        raise UserError(f"--convention {arguments.convention}: no protocol ends in that. Allowed: {allowed}.")
    origin = Origin(arguments.dataset, arguments.resolution, UNKNOWN, OFFICIAL_INCEPTION, UNKNOWN, arguments.convention)
    save_reference(import_npz(arguments.source, origin, arguments.count), arguments.output)
    return _show(arguments.output)


def _show(path: Path) -> int:
    reference = load_reference(path)
    print(f"reference  {path}, sha256 {reference.sha256}")
    for layer, statistics in reference.layers.items():
        print(f"  {layer:<8} {statistics.n:,} images, {len(statistics.mean)} features")
    origin = reference.origin
    whom = "every protocol" if origin.convention == UNKNOWN else f"protocols that end in @{origin.convention}"
    print(f"  data set {origin.dataset} at {origin.resolution} px, sha256 {origin.dataset_sha256}")
    print(f"  network  {origin.extractor}, sha256 {origin.extractor_sha256}")
    print(f"  made of  {origin.source}; for {whom}")
    return 0
