"""The tasks that probe a generator: shards of what each sample gives, then a row for each protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from bench import features
from bench.intervals import resampled_interval
from bench.inversion import PerceptualLoss
from bench.jobs import Bench, Subject, case_of, extraction_of, subject_of, with_weights_caveat, without_value
from bench.plan import Stage, Task
from bench.probes import (
    PERCEPTUAL,
    VIEW,
    ProbeProtocol,
    Probing,
    probe_protocol_named,
    probe_score,
    reason_to_skip,
)
from bench.records import Measurement
from bench.sampling import GeneratedImages

INTERVAL_KIND = "95 % bootstrap over samples"
LPIPS = "vgg16-lpips"  # under which weights and views know it


def probing_of(bench: Bench, stage: Stage, name: str) -> Probing:
    """What is probed of a generator: all that it can be probed for."""
    samples = extraction_of(bench, stage, name).source  # the same as features are of
    assert isinstance(samples, GeneratedImages)
    wanted = map(probe_protocol_named, stage.entry.probes)
    able = tuple(protocol.name for protocol in wanted if reason_to_skip(samples.generator, protocol) is None)
    count = stage.entry.probe_samples if able else 0
    return Probing(samples, able, bench.perceptual, count, stage.entry.shard_size, stage.entry.batch_size)


def probes_folder(bench: Bench, stage: Stage, name: str) -> Path:
    """Where the shards of a generator's probes are."""
    return bench.folder / "probes" / stage.entry.title / name


def probe_task(bench: Bench, task: Task) -> Iterator[Measurement]:
    """Score what the shards of a generator's probes hold."""
    stage = task.stage
    subject = subject_of(bench, stage, task.subject)
    probing, folder = probing_of(bench, stage, task.subject), probes_folder(bench, stage, task.subject)
    failure = bench.failures.get(probes_key(task))
    for protocol in map(probe_protocol_named, stage.entry.probes):
        frame = _frame(bench, stage, subject, protocol)
        if reason := reason_to_skip(subject.generator, protocol):
            yield without_value(frame, "skipped", reason)
        elif failure is not None:
            yield without_value(frame, "error", failure)
        else:
            values = features.load_features(probing, folder).layer(VIEW, protocol.name)
            yield from _rows(bench, protocol, frame, values)


def probes_key(task: Task) -> str:
    """Under which a failure to probe is kept."""
    return f"{task.stage.entry.title}/{task.subject}/probes"


def _frame(bench: Bench, stage: Stage, subject: Subject, protocol: ProbeProtocol) -> Measurement:
    """A row of a protocol, still without a value."""
    n = stage.entry.probe_samples
    fewer = n < protocol.num_samples
    reason = f"{n:,} samples instead of {protocol.num_samples:,}: compare only inside this column"
    case = case_of(
        bench,
        stage,
        n_reference=None,
        batch_size=stage.entry.batch_size,
        synthesis_dtype="float32",  # on a GPU too, where features are of images as published
    )
    if protocol.name in PERCEPTUAL:
        is_missing = LPIPS in bench.views.missing
        case |= {"extractor": LPIPS} if is_missing else _extractor(bench.perceptual)
    return Measurement(
        kind="quality",
        subject=subject.name,
        weights=subject.weights,
        weights_sha256=subject.weights_sha256,
        case=case,
        protocol=protocol.name,
        metric=protocol.label + (f" [n={n}]" if fewer else ""),
        unit=protocol.unit,
        higher_is_better=protocol.higher_is_better,
        value=None,
        n=n,
        seed=bench.plan.suite.seed,
        status="missing",
        caveats=with_weights_caveat(subject, (reason,) if fewer else ()),
    )


def _extractor(perceptual: PerceptualLoss) -> dict[str, str]:
    return {"extractor": perceptual.name, "extractor_sha256": perceptual.sha256}


def _under_own_name(perceptual: PerceptualLoss, protocol: ProbeProtocol, frame: Measurement) -> Measurement:
    """The row of a network that isn't LPIPS, which has a name and a protocol of its own."""
    caveat = f"{perceptual.name} is not the network of the papers: comparable with nothing published"
    return dataclasses.replace(
        frame,
        case={**frame.case, **_extractor(perceptual)},
        protocol=f"{protocol.name.partition('@')[0]}@{perceptual.name}",
        metric=frame.metric.replace(protocol.label, f"{protocol.label}-{perceptual.name}"),
        caveats=(*frame.caveats, caveat),
    )


def _rows(bench: Bench, protocol: ProbeProtocol, frame: Measurement, values: Tensor) -> Iterator[Measurement]:
    """The number; where LPIPS can't be had, a row that says so and a number of the stand-in under its own name."""
    if protocol.name in PERCEPTUAL:
        if LPIPS in bench.views.missing:
            yield without_value(frame, "missing", bench.views.missing[LPIPS])
        frame = frame if bench.perceptual.official else _under_own_name(bench.perceptual, protocol, frame)
    try:
        value = probe_score(protocol, values)
    except (ValueError, ArithmeticError) as error:
        yield without_value(frame, "error", str(error))
        return
    if len(values) > 1:
        interval = resampled_interval(
            lambda counts: probe_score(protocol, values.repeat_interleave(counts, dim=0)), len(values), seed=0
        )
        frame = dataclasses.replace(frame, interval=interval, case={**frame.case, "interval_kind": INTERVAL_KIND})
    yield dataclasses.replace(frame, value=value, status="ok")
