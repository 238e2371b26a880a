"""What the tasks of a run share, and the task that scores features: subjects -> features -> measurements."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import features, scoring
from bench.errors import UserError
from bench.features import Extraction, FeatureSet
from bench.grids import image_grid
from bench.inversion import PerceptualLoss
from bench.plan import REAL, Plan, Stage, Task, model_classes, model_named, view_names
from bench.progress import Progress
from bench.protocols import PROTOCOLS, Protocol
from bench.records import Measurement, Status, write_atomic
from bench.sampling import GeneratedImages, ImageSource
from bench.scoring import Metric
from bench.views import OpenedViews
from models.checkpoints import CheckpointError, load_weights, weights_sha256
from models.layers import initialise
from models.registry import WEIGHTS_DIR, build
from models.spec import ImageGenerator


@dataclass(frozen=True, slots=True)
class Subject:
    """A generator with the weights that it runs with, or the real images (no generator)."""

    name: str
    weights: str
    weights_sha256: str | None
    generator: ImageGenerator | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """What every task of a run needs."""

    folder: Path
    plan: Plan
    views: OpenedViews
    perceptual: PerceptualLoss
    model_weights: dict[str, Path]
    progress: Progress
    failures: dict[str, str] = field(default_factory=dict)  # sources whose features can't be had, and why


def _load_checked(generator: nn.Module, path: Path) -> str:
    try:
        return load_weights(generator, path)
    except (CheckpointError, OSError) as error:
        raise UserError(f"weights can't be used: {error}") from error


@functools.lru_cache(maxsize=1)
def load_subject(name: str, num_classes: int, path: Path | None, seed: int, device: torch.device) -> Subject:
    """Build a generator with given weights, or with random ones of the run's seed; the last one is kept."""
    generator = build(name, num_classes=num_classes)
    if not isinstance(generator, nn.Module):
        raise TypeError(f"{name}: not a torch module")
    if path is None:
        initialise(generator, seed)
        weights, digest = f"random weights, seed {seed}", weights_sha256(generator)
    else:
        origin = "self-trained, shipped" if path.parent == WEIGHTS_DIR else f"file {path.name}"
        weights, digest = origin, _load_checked(generator, path)
    generator.requires_grad_(requires_grad=False).eval().to(device)
    return Subject(name, weights, digest, generator)


def subject_of(bench: Bench, stage: Stage, name: str) -> Subject:
    """The subject of a task."""
    if name in stage.sources:
        return Subject(name, "real images", None)
    path = bench.model_weights.get(name, model_named(name).shipped_weights)
    return load_subject(name, model_classes(name, stage), path, bench.plan.suite.seed, bench.plan.device)


def extraction_of(bench: Bench, stage: Stage, name: str) -> Extraction:
    """What is extracted of a source of real images or of a model."""
    source: ImageSource
    if name in stage.sources:
        source = stage.sources[name]
    else:
        generator = subject_of(bench, stage, name).generator
        assert generator is not None
        source = GeneratedImages(generator, stage.dataset, bench.plan.suite.seed, bench.plan.device)
    views = {v: bench.views.views[v] for v in view_names(stage.entry) if v in bench.views.views}
    return Extraction(source, stage.count(name), views, stage.entry.shard_size, stage.entry.batch_size)


def features_folder(bench: Bench, stage: Stage, name: str) -> Path:
    """Where the shards of a source are."""
    return bench.folder / "features" / stage.entry.title / name


def _features(bench: Bench, stage: Stage, name: str) -> FeatureSet:
    return features.load_features(extraction_of(bench, stage, name), features_folder(bench, stage, name))


def case_of(bench: Bench, stage: Stage, **more: Any) -> dict[str, Any]:
    """What makes two numbers comparable, as far as all rows of a stage share it."""
    return {
        "suite": f"{bench.plan.suite.name} v{bench.plan.suite.version}",
        "dataset": stage.entry.dataset,
        "resolution": stage.entry.resolution,
        "dataset_sha256": stage.dataset.content_sha256(),
        "device": bench.plan.device.type,
        "dtype": "float32" if bench.plan.device.type == "cpu" else "as published",
    } | more


def with_weights_caveat(subject: Subject, caveats: tuple[str, ...]) -> tuple[str, ...]:
    """Add to the caveats that the weights are random, if they are."""
    return (*caveats, "random weights: untrained") if subject.weights.startswith("random") else caveats


def without_value(measurement: Measurement, status: Status, error: str) -> Measurement:
    """The row of a number that is not there, and why."""
    return dataclasses.replace(measurement, value=None, interval=None, status=status, error=error, caveats=())


def _quality(bench: Bench, stage: Stage, subject: Subject, protocol: Protocol, metric: Metric) -> Measurement:
    """The frame of a quality row, still without a value."""
    view = bench.views.views.get(protocol.view)
    n = stage.count(subject.name)
    reference = stage.floor_reference if subject.name == REAL else "reference"
    case = case_of(
        bench,
        stage,
        n_reference=None if protocol.maths in scoring.REFERENCE_FREE else stage.count(reference),
        reference=reference,
        extractor=protocol.view if view is None else view.name,
        extractor_sha256=None if view is None else view.sha256,
        batch_size=stage.entry.batch_size,
    )
    name = metric.label + protocol.suffix if view is None else scoring.honest_name(metric, protocol, view, n)
    return Measurement(
        kind="quality",
        subject=subject.name,
        weights=subject.weights,
        weights_sha256=subject.weights_sha256,
        case=case,
        protocol=protocol.name,
        metric=name,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        value=None,
        n=n,
        seed=bench.plan.suite.seed,
        status="missing",
        caveats=() if view is None else with_weights_caveat(subject, scoring.caveats(protocol, view, n)),
    )


def _score_protocol(
    bench: Bench, stage: Stage, subject: Subject, protocol: Protocol, pair: tuple[FeatureSet, FeatureSet]
) -> Iterator[Measurement]:
    frames = [_quality(bench, stage, subject, protocol, metric) for metric in scoring.METRICS[protocol.maths]]
    if protocol.view in bench.views.missing:
        yield from (without_value(f, "missing", bench.views.missing[protocol.view]) for f in frames)
        if protocol.standin is not None:
            yield from _score_protocol(bench, stage, subject, PROTOCOLS[protocol.standin], pair)
        return
    if protocol.maths == "clip_score" and f"{protocol.view}.text" not in pair[0].tensors:
        reason = "no text: the generator takes no class or prompt, or the data set has neither captions nor class names"
        yield from (without_value(frame, "skipped", reason) for frame in frames)
        return
    try:
        scores = [score for _, score in scoring.score(protocol, *pair)]
    except (ValueError, ArithmeticError) as error:
        yield from (without_value(frame, "error", str(error)) for frame in frames)
        return
    for frame, score in zip(frames, scores, strict=True):
        case = {**frame.case, "pixels_sha256": pair[0].pixels_sha256, "reference_pixels_sha256": pair[1].pixels_sha256}
        yield dataclasses.replace(frame, case=case, value=score.value, interval=score.interval, status="ok")


def score_task(bench: Bench, task: Task) -> Iterator[Measurement]:
    """Score one subject under every protocol of its entry, and write its grid of samples."""
    stage = task.stage
    reference_name = stage.floor_reference if task.subject == REAL else "reference"
    subject = subject_of(bench, stage, task.subject)
    broken = [
        bench.failures[key]
        for n in (task.subject, reference_name)
        if (key := f"{stage.entry.title}/{n}") in bench.failures
    ]
    if broken:
        for protocol in (PROTOCOLS[name] for name in stage.entry.protocols):
            for metric in scoring.METRICS[protocol.maths]:
                yield without_value(_quality(bench, stage, subject, protocol, metric), "error", broken[0])
        return
    fake = _features(bench, stage, task.subject)
    pair = (fake, _features(bench, stage, reference_name))
    write_atomic(bench.folder / "samples" / f"{stage.entry.title}-{task.subject}.png", image_grid(fake.thumbnails))
    scored: set[str] = set()
    for name in stage.entry.protocols:
        for measurement in _score_protocol(bench, stage, subject, PROTOCOLS[name], pair):
            key = f"{measurement.protocol} {measurement.metric}"
            if key not in scored:  # two protocols may share one stand-in
                scored.add(key)
                yield measurement
