"""The tasks that need the generator itself: inversion of real images, and speed and size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor

from bench import costs
from bench.datasets import ImageDataset, prompt
from bench.grids import triptych
from bench.inversion import PUBLISHED_STEPS, InversionSpec, PerceptualLoss, invert
from bench.jobs import Bench, Subject, case_of, subject_of, with_weights_caveat, without_value
from bench.metrics.psnr import psnr
from bench.metrics.ssim import ssim
from bench.plan import REAL, Task, model_classes
from bench.records import Measurement, write_atomic
from bench.sampling import reads_prompts, standin_text_features
from bench.statistics import bootstrap_interval
from bench.throughput import SpeedReport, measure_speed
from bench.timing import CALLS_FOR_QUANTILE, TimingSpec
from models.layers import one_hot

MAX_PSNR_DB = 100.0  # identical images have no finite PSNR; records hold finite numbers


def _inverted(bench: Bench, task: Task, subject: Subject, index: int) -> tuple[Tensor, Tensor]:
    """The target and its inversion, uint8; read back if an earlier, cut run made it."""
    stage, steps = task.stage, task.stage.entry.inversion_steps
    path = bench.folder / "inversion" / stage.entry.title / task.subject / f"target-{index:03d}.safetensors"
    if path.exists():
        pair = safetensors.torch.load_file(path)
        bench.progress.advance(steps)
        return pair["target"], pair["inverted"]
    member = stage.sources[REAL].members[index]
    target, device = stage.dataset.image(member), bench.plan.device
    generator: Any = subject.generator
    c = _condition(generator, stage.dataset, member, device)
    spec = InversionSpec(num_steps=steps)
    inverted = invert(generator, target.to(device), c, bench.perceptual, spec, bench.progress.advance).cpu()
    write_atomic(path, safetensors.torch.save({"target": target.contiguous(), "inverted": inverted.contiguous()}))
    return target, inverted


def _condition(generator: Any, dataset: ImageDataset, member: int, device: torch.device) -> Tensor | None:
    """What conditions the inversion of an image: its class, one-hot `[1, C]`, or features of its text `[1, D]`."""
    if generator.conditioning == "class":
        label = torch.tensor([dataset.label(member)], device=device)
        return one_hot(label, generator.num_classes, like=torch.empty(0, device=device))
    if generator.conditioning == "none":
        return None
    text = prompt(dataset, member) or ""
    if reads_prompts(generator):
        with torch.no_grad():
            return cast("Tensor", generator.text_features([text]))
    return standin_text_features(generator, [text], device)


def _inversion_caveats(subject: Subject, perceptual: PerceptualLoss, steps: int, n: int) -> tuple[str, ...]:
    reasons = [f"{n} targets"]
    if steps < PUBLISHED_STEPS:
        reasons.append(f"{steps} steps of optimisation instead of {PUBLISHED_STEPS}")
    if not perceptual.official:
        reasons.append(f"optimised for {perceptual.name} instead of LPIPS")
    return with_weights_caveat(subject, tuple(reasons))


def inversion_task(bench: Bench, task: Task) -> Iterator[Measurement]:
    """Invert some real images and measure PSNR, SSIM and the perceptual distance that is left."""
    stage, entry = task.stage, task.stage.entry
    subject = subject_of(bench, stage, task.subject)
    n = min(entry.inversion_images, stage.count(REAL))
    pairs = [_inverted(bench, task, subject, index) for index in range(n)]
    targets, inverted = (torch.stack(images) for images in zip(*pairs, strict=True))
    write_atomic(bench.folder / "samples" / f"{entry.title}-{task.subject}-inversion.png", triptych(targets, inverted))
    device, perceptual = bench.plan.device, bench.perceptual
    distances = perceptual.distance(targets.to(device), inverted.to(device)).cpu()
    name = "LPIPS" if perceptual.official else perceptual.name
    suffix = f" [n={n}, steps={entry.inversion_steps}]"
    rows: list[tuple[str, str, bool, Tensor]] = [
        ("PSNR", "dB", True, psnr(inverted, targets).clamp(max=MAX_PSNR_DB)),
        ("SSIM", "", True, ssim(inverted, targets)),
        (name, "", False, distances),
    ]
    frame = Measurement(
        kind="quality",
        subject=subject.name,
        weights=subject.weights,
        weights_sha256=subject.weights_sha256,
        case=case_of(bench, stage, extractor=perceptual.name, extractor_sha256=perceptual.sha256, n_reference=None),
        protocol="inversion@sg2-w",
        metric="",
        unit="",
        higher_is_better=None,
        value=0.0,
        n=n,
        seed=bench.plan.suite.seed,
        caveats=_inversion_caveats(subject, perceptual, entry.inversion_steps, n),
    )
    if not perceptual.official:
        missing = dataclasses.replace(frame, metric="LPIPS" + suffix, higher_is_better=False)
        yield without_value(missing, "missing", bench.views.missing["vgg16-lpips"])
    for metric, unit, higher_is_better, values in rows:
        interval = bootstrap_interval(values, seed=0) if n > 1 else None
        named = dataclasses.replace(frame, metric=metric + suffix, unit=unit, higher_is_better=higher_is_better)
        yield dataclasses.replace(named, value=float(values.double().mean()), interval=interval)


def _speed_rows(report: SpeedReport, gflop: float) -> Iterator[dict[str, Any]]:
    """What is told of a generator's speed and size, as fields of a measurement."""
    latency = {"protocol": "latency", "unit": "ms", "higher_is_better": False, "n": report.latency.num_calls}
    for q in (q for q in CALLS_FOR_QUANTILE if report.latency.supports(q)):
        interval = report.latency.median_interval_ms() if q == 0.5 else None
        value = report.latency.quantile_ms(q)
        yield latency | {
            "kind": "speed",
            "metric": f"Latency p{q * 100:.0f}",
            "value": value,
            "interval": interval,
            "batch_size": 1,
        }
    best = report.best
    yield {
        "kind": "speed",
        "protocol": "offline",
        "metric": "Throughput",
        "unit": "images/s",
        "higher_is_better": True,
        "value": best.images_per_s,
        "n": best.timing.num_calls,
        "batch_size": best.batch_size,
    }
    size = {"kind": "size", "higher_is_better": False, "protocol": "size"}
    yield size | {"metric": "Parameters", "unit": "M", "value": report.num_parameters / 1e6}
    yield size | {"metric": "Operations", "unit": "GFLOP/image", "value": gflop}
    if report.peak_memory_bytes is not None:
        memory = {"metric": "Peak memory", "unit": "MiB", "value": report.peak_memory_bytes / 2**20}
        yield size | memory | {"protocol": "offline", "batch_size": best.batch_size}


def speed_task(bench: Bench, task: Task) -> Iterator[Measurement]:
    """Verify, then time a generator on the run's device."""
    stage, entry = task.stage, task.stage.entry
    subject = subject_of(bench, stage, task.subject)
    assert subject.generator is not None
    timing = TimingSpec(num_calls=entry.latency_calls, budget_s=entry.latency_budget_s)
    report = measure_speed(subject.generator, timing, entry.max_batch_size, bench.plan.device)
    gflop = costs.gflop_per_image(task.subject, model_classes(task.subject, stage))
    checked = {"verified_max_grey_levels": report.verification.max_grey_levels}
    for row in _speed_rows(report, gflop):
        batch_size = row.pop("batch_size", None)
        yield Measurement(
            subject=subject.name,
            weights=subject.weights,
            weights_sha256=subject.weights_sha256,
            case=case_of(bench, stage, batch_size=batch_size, nfe=subject.generator.nfe, **checked),
            **row,
        )
