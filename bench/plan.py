"""The plan of a run: which tasks, on what, how long, and what would be downloaded. Nothing is measured here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from bench import costs
from bench.datasets import ImageDataset, MissingDatasetError, find_datasets, open_dataset, prompt
from bench.errors import UserError
from bench.inversion_start import IMAGENET_CLASSES
from bench.model_weights import model_named
from bench.pivotal_tuning import planned_steps
from bench.probes import PERCEPTUAL, num_passes
from bench.prompts import PromptList, read_prompts
from bench.protocols import PROTOCOLS, Protocol
from bench.sampling import RealImages, disjoint_halves
from bench.suites import Entry, Suite, entry_for, load_suite, select_entries
from bench.views import VIEWS
from bench.weights import WeightsOptions, find_weights
from models.registry import MODELS, build

REAL = "real"
TaskKind = Literal["features", "score", "inversion", "probe-samples", "probe", "speed"]


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the user asked for."""

    suite: str = "auto"
    data_dir: Path | None = None
    models: tuple[str, ...] = ()  # instead of the suite's
    only: str | None = None
    limit: int | None = None
    seed: int | None = None
    batch_size: int | None = None
    model_weights: Mapping[str, Path] = field(default_factory=dict)
    references: tuple[Path, ...] = ()  # statistics of reference sets
    prompts: Path | None = None  # a list for text-conditional generators
    network_weights: WeightsOptions = field(default_factory=WeightsOptions)


@dataclass(frozen=True, slots=True)
class Stage:
    """An entry of the suite on an opened data set; `sources` are its sets of real images."""

    entry: Entry
    dataset: ImageDataset
    num_images: int  # of each subject
    sources: Mapping[str, RealImages]  # "real", "reference", and "floor-reference" where that is another set
    prompts: PromptList | None = None  # for text-conditional generators, instead of the data set's captions

    @property
    def floor_reference(self) -> str:
        """The source that the real-against-real row is measured against."""
        return "floor-reference" if "floor-reference" in self.sources else "reference"

    def repeats(self, source: str) -> int:
        """How many sample sets of different seeds a source gives; real images give one."""
        return 1 if source in self.sources else self.entry.repeats

    def count(self, source: str) -> int:
        """How many images a source gives; a model gives as many as the entry asks."""
        return len(self.sources[source].members) if source in self.sources else self.num_images


@dataclass(frozen=True, slots=True)
class Task:
    """One step of a run. Tasks of kind "features" and "probe-samples" make shards, the others make records."""

    kind: TaskKind
    stage: Stage
    subject: str
    units: int
    estimate_s: float
    repeat: int = 0  # which sample set, for features

    @property
    def title(self) -> str:
        """The name in progress lines and folders."""
        return f"{self.stage.entry.title}/{self.subject}/{self.kind}" + (f".{self.repeat}" if self.repeat else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """All tasks in order, what was left out and why, and which weights of networks there are."""

    suite: Suite
    reason: str  # why this suite
    stages: tuple[Stage, ...]
    tasks: tuple[Task, ...]
    skipped: tuple[str, ...]
    device: torch.device

    @property
    def estimate_s(self) -> float:
        """The expected duration of the whole plan."""
        return sum(task.estimate_s for task in self.tasks)


def _auto_suite(options: PlanOptions, device: torch.device) -> tuple[Suite, str]:
    where = "a GPU" if device.type == "cuda" else "no GPU"
    if options.data_dir is None:
        name = "shapes-gpu" if device.type == "cuda" else "smoke"
        return load_suite(name), f"{where} and no --data DIR: the embedded data set `shapes`"
    suite = load_suite("data-gpu" if device.type == "cuda" else "data-cpu")
    listed = {(entry.dataset, entry.resolution): entry for entry in suite.entries}
    found = find_datasets(options.data_dir)
    entries = tuple(listed.get(one) or entry_for(suite, *one, default_models(*one)) for one in found)
    names = ", ".join(entry.title for entry in entries)
    return dataclasses.replace(
        suite, entries=entries
    ), f"{where}, and {options.data_dir} holds {names or 'nothing known'}"


def default_models(dataset: str, resolution: int) -> list[str]:
    """The model for a data set that the suite does not list: its published StyleGAN2, else a plain one of its size."""
    wanted = ("StyleGAN2", dataset, resolution)
    published = [s.name for s in MODELS.values() if (s.family, s.dataset, s.resolution) == wanted]
    generic = f"stylegan2-half-{resolution}"
    return published[:1] or ([generic] if generic in MODELS else [])


def _entries_of(models: tuple[str, ...], suite: Suite, options: PlanOptions) -> tuple[Entry, ...]:
    """One entry a data set for the models that the user names: on their own data if it is there, else on `shapes`."""
    found = [] if options.data_dir is None else find_datasets(options.data_dir)
    chosen: dict[tuple[str, int], list[str]] = {}
    for name in models:
        spec = model_named(name)
        fitting = [d for d, resolution in found if resolution == spec.resolution and spec.dataset in (d, "any")]
        chosen.setdefault((fitting[0] if fitting else "shapes", spec.resolution), []).append(name)
    listed = {(entry.dataset, entry.resolution): entry for entry in suite.entries}
    return tuple(
        dataclasses.replace(listed[place], models=tuple(names)) if place in listed else entry_for(suite, *place, names)
        for place, names in chosen.items()
    )


def _adapt(suite: Suite, options: PlanOptions) -> Suite:
    """Apply what the command line overrides."""
    if options.only is not None:
        suite = select_entries(suite, options.only)
    entries = tuple(
        dataclasses.replace(
            entry,
            num_images=options.limit or entry.num_images,
            probe_samples=min(options.limit or entry.probe_samples, entry.probe_samples),
            batch_size=options.batch_size or entry.batch_size,
        )
        for entry in suite.entries
    )
    return dataclasses.replace(suite, entries=entries, seed=suite.seed if options.seed is None else options.seed)


def _stage(entry: Entry, seed: int, data_dir: Path | None, prompts: PromptList | None) -> Stage:
    dataset = open_dataset(entry.dataset, entry.resolution, data_dir)
    first, second = disjoint_halves(len(dataset), seed)
    if len(first) < 2:
        raise UserError(f"{entry.title}: {len(dataset)} images; two disjoint halves need 4 or more")
    if entry.reference == "full":
        num_images = entry.num_images
        sources = {REAL: first[:num_images], "reference": range(len(dataset)), "floor-reference": second}
    else:
        num_images = min(entry.num_images, len(first))
        sources = {REAL: first[:num_images], "reference": second[:num_images]}
    return Stage(entry, dataset, num_images, {name: RealImages(dataset, ids) for name, ids in sources.items()}, prompts)


def _check_models(stage: Stage) -> None:
    """Refuse what could not run: another resolution, or classes or texts that the data set does not have."""
    for name in stage.entry.models:
        spec, classes = model_named(name), stage.dataset.num_classes
        if spec.resolution != stage.entry.resolution:
            raise UserError(
                f"{stage.entry.title}: {name} makes {spec.resolution} px images; choose a model of that size"
            )
        fits_any = spec.dataset == "any" and classes > 0
        if spec.num_classes not in (0, classes) and not fits_any:
            raise UserError(
                f"{stage.entry.title}: {name} has {spec.num_classes} classes, the data set {classes}; "
                "choose another model (`python -m bench ls models`) or give the images labels"
            )
        if spec.conditioning == "text" and stage.prompts is None and prompt(stage.dataset, 0) is None:
            raise UserError(
                f"{stage.entry.title}: {name} draws what a text says, and the data set has neither captions nor "
                "class names; choose another model (`python -m bench ls models`), or give texts with --prompts"
            )


def protocols_of(entry: Entry) -> list[Protocol]:
    """The entry's protocols, and those that stand in for them."""
    protocols = [PROTOCOLS[name] for name in entry.protocols]
    return [*protocols, *(PROTOCOLS[p.standin] for p in protocols if p.standin is not None)]


def view_names(entry: Entry) -> list[str]:
    """The views that the entry's protocols look through, stand-ins included."""
    return list(dict.fromkeys(protocol.view for protocol in protocols_of(entry)))


def _available_views(stage: Stage, options: PlanOptions) -> list[str]:
    names = view_names(stage.entry)
    return [v for v in names if (w := VIEWS[v].weights) is None or find_weights(w, options.network_weights)]


def _tasks(stage: Stage, options: PlanOptions, device: torch.device) -> Iterator[Task]:
    entry = stage.entry
    views_s = costs.seconds(sum(VIEWS[v].gflop_per_image for v in _available_views(stage, options)), device)
    pixels = entry.resolution**2
    for source in (name for name in stage.sources if name != REAL):
        count = stage.count(source)
        yield Task("features", stage, source, count, count * (views_s + costs.DECODE_IMAGE_S))
    for subject in (REAL, *entry.models):
        count, image_s = stage.count(subject), costs.DECODE_IMAGE_S
        if subject != REAL:
            image_s = costs.seconds(costs.gflop_per_image(subject, model_classes(subject, stage)), device)
        image_with_noise_s = image_s + (0.0 if subject == REAL else pixels * costs.LATENTS_PER_PIXEL_S)
        for repeat in range(stage.repeats(subject)):
            yield Task("features", stage, subject, count, count * (views_s + image_with_noise_s), repeat)
        yield Task("score", stage, subject, 1, 1.0)
        if subject == REAL:
            continue
        if entry.inversion_images:
            yield _inversion(stage, subject, image_s)
        if entry.probes:
            yield _probe_samples(stage, subject, image_with_noise_s)
            yield Task("probe", stage, subject, 1, 1.0)
        speed_s = len(entry.speed_conditions) * min(3 * entry.latency_budget_s, 100 * image_s)
        yield Task("speed", stage, subject, 1, speed_s)


def _inversion(stage: Stage, subject: str, image_s: float) -> Task:
    entry = stage.entry
    latent_steps, weight_steps = planned_steps(entry.inversion_tracks, entry.inversion_steps)
    images = min(entry.inversion_images, stage.count(REAL))
    # a step runs forth and back, of which back is twice the work; one on weights does so twice, and once forth
    estimate_s = images * (3 * latent_steps + 7 * weight_steps) * image_s
    return Task("inversion", stage, subject, images * (latent_steps + weight_steps), estimate_s)


def _probe_samples(stage: Stage, subject: str, image_s: float) -> Task:
    generator = build(subject, num_classes=model_classes(subject, stage), device="meta")
    count, passes = stage.entry.probe_samples, num_passes(generator, stage.entry.probes)
    return Task("probe-samples", stage, subject, count, count * passes * image_s)


def model_classes(model: str, stage: Stage) -> int:
    """How many classes a model is built with: its own, or those of the data set if it fits any."""
    spec = model_named(model)
    fits_any = spec.dataset == "any" and spec.conditioning != "text"
    return stage.dataset.num_classes if fits_any else spec.num_classes


def make_plan(options: PlanOptions, device: torch.device) -> Plan:
    """Resolve what the user asked for against what is there."""
    if options.suite == "auto":
        suite, reason = _auto_suite(options, device)
    else:
        suite, reason = load_suite(options.suite), "as asked"
    if options.models:
        suite = dataclasses.replace(suite, entries=_entries_of(options.models, suite, options))
    suite = _adapt(suite, options) if suite.entries else suite
    prompts = None if options.prompts is None else read_prompts(options.prompts)
    stages, skipped = [], []
    for entry in suite.entries:
        for model in entry.models:
            model_named(model)
        try:
            stages.append(_stage(entry, suite.seed, options.data_dir, prompts))
        except MissingDatasetError as error:
            skipped.append(f"{entry.title}: {error}")
        else:
            _check_models(stages[-1])
    if not stages:
        raise UserError(
            f"suite {suite.name}: none of its data sets is there.\n  " + "\n  ".join(skipped or [reason]) + "\n"
            "Give --data DIR with zips named like cifar10-32x32.zip, or leave --data out to run on `shapes`."
        )
    tasks = tuple(task for stage in stages for task in _tasks(stage, options, device))
    return Plan(suite, reason, tuple(stages), tasks, tuple(skipped), device)


def needed_weights(plan: Plan) -> list[str]:
    """The weight files that the official numbers of this plan need, keys of `WEIGHTS`."""
    names = {w for s in plan.stages for v in view_names(s.entry) if (w := VIEWS[v].weights)}
    inverted = [(task.stage, task.subject) for task in plan.tasks if task.kind == "inversion"]
    walked = not set(PERCEPTUAL).isdisjoint(name for stage in plan.stages for name in stage.entry.probes)
    names |= {"vgg16", "vgg16-lpips"} if inverted or walked else set()
    imagenet = any(model_classes(subject, stage) == IMAGENET_CLASSES for stage, subject in inverted)
    return sorted(names | ({"deit"} if imagenet else set()))
