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
from bench.datasets import DATASETS, ImageDataset
from bench.differences import write_values
from bench.errors import UserError
from bench.features import Extraction, FeatureSet, View
from bench.grids import image_grid
from bench.intervals import standard_error
from bench.inversion import PerceptualLoss
from bench.inversion_start import Classifier
from bench.model_weights import load_model
from bench.plan import REAL, Plan, Stage, Task, model_classes, protocols_of, view_names
from bench.progress import Progress
from bench.protocols import PROTOCOLS, Protocol
from bench.records import Measurement, Status, write_atomic
from bench.references import Origin, Reference, fitting
from bench.sampling import GeneratedImages, ImageSource, reads_prompts
from bench.scoring import Metric, Score
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
    classifier: Classifier | None = None  # for the start of inversion
    references: tuple[Reference, ...] = ()
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


def extraction_of(bench: Bench, stage: Stage, name: str, repeat: int = 0) -> Extraction:
    """What is extracted of a source of real images, or of a model with the seed of one of its sample sets."""
    source: ImageSource
    if name in stage.sources:
        source = stage.sources[name]
    else:
        generator = subject_of(bench, stage, name).generator
        assert generator is not None
        source = GeneratedImages(
            generator,
            stage.dataset,
            bench.plan.suite.seed + repeat,
            bench.plan.device,
            stage.prompts,
            stage.entry.labels == "uniform",
        )
    views = {v: bench.views.views[v] for v in view_names(stage.entry) if v in bench.views.views}
    entry, layers = stage.entry, frozenset(layer for p in protocols_of(stage.entry) for layer in p.layers)
    return Extraction(source, stage.count(name), views, entry.shard_size, entry.batch_size, layers)


def features_folder(bench: Bench, stage: Stage, name: str, repeat: int = 0) -> Path:
    """Where the shards of a source are."""
    return bench.folder / "features" / stage.entry.title / (f"{name}.{repeat}" if repeat else name)


def _features(bench: Bench, stage: Stage, name: str, repeat: int = 0) -> FeatureSet:
    folder = features_folder(bench, stage, name, repeat)
    loaded = features.load_features(extraction_of(bench, stage, name, repeat), folder)
    return dataclasses.replace(loaded, device=bench.plan.device)


def case_of(bench: Bench, stage: Stage, **more: Any) -> dict[str, Any]:
    """What makes two numbers comparable, as far as all rows of a stage share it."""
    return {
        "suite": f"{bench.plan.suite.name} v{bench.plan.suite.version}",
        "dataset": stage.dataset.name,
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


def count_reference(stage: Stage, protocol: Protocol, reference: str) -> int | None:
    """How many real images of a source a protocol looks at; None for a protocol that has no reference."""
    if protocol.maths in scoring.REFERENCE_FREE:
        return None
    return min(stage.count(reference), protocol.num_reference or stage.count(reference))


def reference_caveats(dataset: ImageDataset, protocol: Protocol, n_reference: int | None) -> tuple[str, ...]:
    """That a generator is held against fewer real images than its protocol asks, where that is so."""
    known = DATASETS.get(dataset.name)
    whole = max(len(dataset), known.num_images if known else 0)
    wanted = min(whole, protocol.num_reference or whole)
    if n_reference is None or n_reference >= wanted:
        return ()
    return (f"{n_reference:,} real images instead of {wanted:,} as reference: compare only inside this column",)


def _quality(bench: Bench, stage: Stage, subject: Subject, protocol: Protocol, metric: Metric) -> Measurement:
    """The frame of a quality row, still without a value."""
    view = bench.views.views.get(protocol.view)
    n, runs = min(stage.count(subject.name), protocol.num_images), stage.entry.repeats
    reference = stage.floor_reference if subject.name == REAL else "reference"
    case = case_of(
        bench,
        stage,
        n_reference=count_reference(stage, protocol, reference),
        reference=reference,
        extractor=protocol.view if view is None else view.name,
        extractor_sha256=None if view is None else view.sha256,
        batch_size=stage.entry.batch_size,
        repeats=runs,
        **({} if stage.entry.labels == "dataset" else {"labels": stage.entry.labels}),
    )
    name = scoring.metric_name(metric, protocol)
    return Measurement(
        kind="quality",
        subject=subject.name,
        weights=subject.weights,
        weights_sha256=subject.weights_sha256,
        case=case,
        protocol=protocol.name,
        metric=name if view is None else scoring.honest_name(metric, protocol, view, n, runs),
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        value=None,
        n=n,
        seed=bench.plan.suite.seed,
        status="missing",
        caveats=() if view is None else with_weights_caveat(subject, scoring.caveats(protocol, view, n, runs)),
    )


def _reason_to_skip(protocol: Protocol, dataset: str, fake: FeatureSet) -> str | None:
    """Why a protocol has no number here although its network can be had."""
    if protocol.datasets and dataset not in protocol.datasets:
        return f"defined on {', '.join(protocol.datasets)} only"
    if protocol.maths == "clip_score" and not fake.has(protocol.view, "text"):
        return "no text: the generator takes no class or prompt, or the data set has neither captions nor class names"
    return None


def origin_of(dataset: ImageDataset, protocol: Protocol, view: View) -> Origin:
    """What statistics must be made of to serve a protocol on a data set."""
    convention, digest = protocol.name.partition("@")[2], dataset.content_sha256()
    return Origin(dataset.name, dataset.resolution, digest, view.name, view.sha256, convention)


def check_references(bench: Bench) -> None:
    """Raise `UserError`, with what differs, for a reference of the user's that no protocol of the plan takes."""
    wanted = [
        origin_of(stage.dataset, protocol, bench.views.views[protocol.view])
        for stage in bench.plan.stages
        for protocol in protocols_of(stage.entry)
        if protocol.maths in scoring.TAKES_STATISTICS and protocol.view in bench.views.views
    ]
    for origin in (reference.origin for reference in bench.references):
        if not any(origin.is_for(one) for one in wanted):
            nearest = min((origin.differing(one) for one in wanted), key=len, default={})
            raise UserError(
                f"the reference of {origin.dataset} at {origin.resolution} px ({origin.source}) serves no number of "
                f"this run: {'; '.join(nearest.values()) or 'no protocol here takes statistics'}. Leave it out, or "
                "build one with `python -m bench reference build`."
            )


def _with_reference(bench: Bench, stage: Stage, protocol: Protocol, real: FeatureSet) -> FeatureSet:
    """The real images with the user's reference statistics, where there are some for this data set and network."""
    view = bench.views.views.get(protocol.view)
    if view is None or protocol.maths not in scoring.TAKES_STATISTICS:
        return real
    found = fitting(bench.references, origin_of(stage.dataset, protocol, view))
    return real if found is None else dataclasses.replace(real, references=((protocol.view, found),))


def _facts_of_reference(protocol: Protocol, real: FeatureSet) -> dict[str, Any]:
    known = real.reference(protocol.view, protocol.layer)
    if known is None:
        return {"reference_pixels_sha256": real.pixels_sha256}
    counted = known.layers[protocol.layer].n
    return {"n_reference": counted, "reference": known.origin.source, "reference_sha256": known.sha256}


def _score_protocol(
    bench: Bench, stage: Stage, subject: Subject, protocol: Protocol, sets: tuple[list[FeatureSet], FeatureSet]
) -> Iterator[Measurement]:
    frames = [_quality(bench, stage, subject, protocol, metric) for metric in scoring.METRICS[protocol.maths]]
    fakes, real = sets
    if protocol.view in bench.views.missing:
        yield from (without_value(f, "missing", bench.views.missing[protocol.view]) for f in frames)
        if protocol.standin is not None:
            yield from _score_protocol(bench, stage, subject, PROTOCOLS[protocol.standin], sets)
        return
    if reason := _reason_to_skip(protocol, stage.dataset.name, fakes[0]):
        yield from (without_value(frame, "skipped", reason) for frame in frames)
        return
    try:
        if subject.name != REAL:
            real = _with_reference(bench, stage, protocol, real)
        scores = scoring.score_runs(protocol, fakes, real)
    except (UserError, ValueError, ArithmeticError) as error:
        yield from (without_value(frame, "error", str(error)) for frame in frames)
        return
    hashes = {"pixels_sha256": fakes[0].pixels_sha256, "prompts_sha256": fakes[0].prompts_sha256}
    case = {**frames[0].case, **hashes, **_facts_of_reference(protocol, real)}
    caveats = frames[0].caveats
    if subject.name != REAL and bench.views.views[protocol.view].official:
        caveats += reference_caveats(stage.dataset, protocol, case["n_reference"])
    frames = [dataclasses.replace(frame, case=case, caveats=caveats) for frame in frames]
    rows = [_scored(frame, one) for frame, one in zip(frames, scores, strict=True)]
    write_values(bench.folder, [(row, one.values) for row, one in zip(rows, scores, strict=True)])
    yield from rows


def _scored(frame: Measurement, score: Score) -> Measurement:
    values = score.values
    details = {} if values is None or len(values) < 2 else {"standard_error": standard_error(values)}
    kind = {} if score.interval_kind is None else {"interval_kind": score.interval_kind}
    return dataclasses.replace(
        frame, case={**frame.case, **kind}, value=score.value, interval=score.interval, details=details, status="ok"
    )


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
    fakes = [_features(bench, stage, task.subject, repeat) for repeat in range(stage.repeats(task.subject))]
    sets = (fakes, _features(bench, stage, reference_name))
    write_atomic(bench.folder / "samples" / f"{stage.entry.title}-{task.subject}.png", image_grid(fakes[0].thumbnails))
    scored: set[str] = set()
    for name in stage.entry.protocols:
        for measurement in _score_protocol(bench, stage, subject, PROTOCOLS[name], sets):
            key = f"{measurement.protocol} {measurement.metric}"
            if key not in scored:  # two protocols may share one stand-in
                scored.add(key)
                yield measurement
