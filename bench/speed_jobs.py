"""The task that measures the speed and size of a generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from bench import costs
from bench.jobs import Bench, Subject, case_of, subject_of, without_value
from bench.plan import Task, model_classes
from bench.records import Measurement
from bench.speed_conditions import TimedSampler, UnfitConditionError, prepare
from bench.throughput import SpeedReport, measure_speed, num_parameters
from bench.timing import CALLS_FOR_QUANTILE, TimingSpec
from bench.verify import verify_generator

Row = dict[str, Any]  # fields of a measurement


def _latency_rows(report: SpeedReport) -> Iterator[Row]:
    for q in (q for q in CALLS_FOR_QUANTILE if report.latency.supports(q)):
        yield {
            "kind": "speed",
            "protocol": "latency",
            "metric": f"Latency p{q * 100:.0f}",
            "unit": "ms",
            "higher_is_better": False,
            "value": report.latency.quantile_ms(q),
            "interval": report.latency.quantile_interval_ms(q),
            "n": report.latency.num_calls,
            "batch_size": 1,
        }


def _offline_rows(report: SpeedReport, *, on_gpu: bool) -> Iterator[Row]:
    best = report.best
    at_best = {"protocol": "offline", "n": best.timing.num_calls, "batch_size": best.batch_size}
    throughput = {"metric": "Throughput", "unit": "images/s", "value": best.images_per_s}
    yield at_best | {"kind": "speed", "higher_is_better": True} | throughput
    less = {"kind": "size", "higher_is_better": False}
    if report.peak_memory_bytes is not None:
        yield at_best | less | {"metric": "Peak memory", "unit": "MiB", "value": report.peak_memory_bytes / 2**20}
    if on_gpu:
        joules = report.joules_per_image
        status = {"status": "missing", "error": report.no_energy} if joules is None else {"status": "ok"}
        yield at_best | less | {"metric": "Energy", "unit": "J/image", "value": joules} | status


def _size_rows(parameters: int, gflop: float, nfe: int) -> Iterator[Row]:
    size = {"kind": "size", "higher_is_better": False, "protocol": "size"}
    yield size | {"metric": "Parameters", "unit": "M", "value": parameters / 1e6}
    yield size | {"metric": "Operations", "unit": "GFLOP/image", "value": gflop}
    yield size | {"metric": "NFE", "unit": "", "value": float(nfe)}


def speed_task(bench: Bench, task: Task) -> Iterator[Measurement]:
    """Verify a generator, then time it on the run's device under every condition of the entry."""
    stage = task.stage
    subject = subject_of(bench, stage, task.subject)
    assert subject.generator is not None
    verified = verify_generator(subject.generator, bench.plan.device)
    facts = {"nfe": subject.generator.nfe, "verified_max_grey_levels": verified.max_grey_levels}
    gflop = costs.gflop_per_image(task.subject, model_classes(task.subject, stage))
    for row in _size_rows(num_parameters(subject.generator), gflop, subject.generator.nfe):
        yield _measurement(bench, task, subject, row, facts)
    for condition in stage.entry.speed_conditions:
        if condition == "text" and subject.generator.conditioning != "text":
            continue
        try:
            sampler = prepare(subject.generator, condition, bench.plan.device)
        except UnfitConditionError as error:
            row = {"kind": "speed", "protocol": "offline", "metric": f"Throughput ({condition})", "value": None}
            row |= {"unit": "images/s", "higher_is_better": True}
            yield without_value(_measurement(bench, task, subject, row, facts), "skipped", str(error))
            continue
        yield from _timed(bench, task, sampler, facts)


def _timed(bench: Bench, task: Task, sampler: TimedSampler, facts: dict[str, Any]) -> Iterator[Measurement]:
    subject, entry = subject_of(bench, task.stage, task.subject), task.stage.entry
    timing = TimingSpec(num_calls=entry.latency_calls, budget_s=entry.latency_budget_s)
    report = measure_speed(sampler, timing, entry.max_batch_size, bench.plan.device)
    for row in (*_latency_rows(report), *_offline_rows(report, on_gpu=bench.plan.device.type == "cuda")):
        measured = _measurement(bench, task, subject, row, facts | sampler.facts() | {"setup_s": sampler.setup_s})
        yield dataclasses.replace(measured, metric=measured.metric + sampler.label)


def _measurement(bench: Bench, task: Task, subject: Subject, row: Row, facts: dict[str, Any]) -> Measurement:
    fields = {name: value for name, value in row.items() if name != "batch_size"}
    return Measurement(
        subject=subject.name,
        weights=subject.weights,
        weights_sha256=subject.weights_sha256,
        case=case_of(bench, task.stage, batch_size=row.get("batch_size"), **facts),
        **fields,
    )
