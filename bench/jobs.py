"""What the tasks of a run share, and the task that scores features: subjects -> features -> measurements."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import features, scoring
from bench.features import Extraction, FeatureSet
from bench.grids import image_grid
from bench.inversion import PerceptualLoss
from bench.model_weights import load_model
from bench.plan import REAL, Plan, Stage, Task, model_classes, view_names
from bench.progress import Progress
from bench.protocols import PROTOCOLS, Protocol
from bench.records import Measurement, Status, write_atomic
from bench.sampling import GeneratedImages, ImageSource, reads_prompts
from bench.scoring import Metric
from bench.views import OpenedViews
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


@functools.lru_cache(maxsize=1)
def load_subject(name: str, num_classes: int, path: Path | None, seed: int, device: torch.device) -> Subject:
    """Build a generator with given weights, or with random ones of the run's seed; the last one is kept."""
    model = load_model(name, path, num_classes, seed, device)
    return Subject(name, model.weights, model.weights_sha256, model.generator)


def subject_of(bench: Bench, stage: Stage, name: str) -> Subject:
    """The subject of a task."""
    if name in stage.sources:
        return Subject(name, "real images", None)
    path = bench.model_weights.get(name)
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
    """Add to the caveats that the weights are random, and that the texts are not read, where that is so."""
    generator = subject.generator
    if generator is not None and generator.conditioning == "text" and not reads_prompts(generator):
        caveats = (*caveats, "no text encoder: random features of each prompt's hash")
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
