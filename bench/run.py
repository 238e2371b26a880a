"""Runs a plan: task by task, resumable anywhere, a failure is a row and the rest goes on."""

from __future__ import annotations

import dataclasses
import json
import traceback
from dataclasses import dataclass
from pathlib import Path

from bench import features, run_folder
from bench.distributed import Shard, World
from bench.environment import environment_facts, machine_slug, provenance, utc_now
from bench.errors import StorageError, UserError
from bench.inversion_jobs import inversion_task
from bench.jobs import Bench, check_references, extraction_of, features_folder, score_task, subject_of
from bench.merge import check_parts, copy_parts
from bench.networks.classifier import open_classifier
from bench.plan import Plan, PlanOptions, Task, needed_weights
from bench.probe_jobs import probe_task, probes_folder, probes_key, probing_of
from bench.progress import Progress
from bench.protocols import PROTOCOLS
from bench.records import Measurement, Record, read_records, remove_parts, write_atomic, write_records
from bench.references import load_reference
from bench.run_folder import Identity, choose_folder, identify, locked, run_facts
from bench.speed_jobs import speed_task
from bench.views import OpenedViews, open_perceptual, open_views

SHARDED = {"features", "probe-samples"}  # kinds of task that make shards; the others make records
JOBS = {"score": score_task, "inversion": inversion_task, "probe": probe_task, "speed": speed_task}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Where a run goes, and whether it goes on from an earlier one."""

    output: Path | None = None
    fresh: bool = False
    shard: Shard | None = None
    world: World | None = None  # the processes of torchrun
    parts: tuple[Path, ...] = ()  # folders in which other machines made shards of this run
    command: str = ""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to."""

    folder: Path
    complete: bool
    num_failed: int


def _records_path(folder: Path, task: Task) -> Path:
    return folder / "tasks" / f"{task.title}.jsonl"


def _failed(task: Task, bench: Bench, message: str) -> Measurement:
    subject = subject_of(bench, task.stage, task.subject) if task.subject in task.stage.sources else None
    return Measurement(
        kind="speed" if task.kind == "speed" else "quality",
        subject=task.subject,
        weights=subject.weights if subject else "unknown",
        weights_sha256=None,
        case={"dataset": task.stage.dataset.name, "resolution": task.stage.entry.resolution},
        protocol=task.kind,
        metric=task.kind,
        unit="",
        higher_is_better=None,
        value=None,
        status="error",
        error=message,
    )


def _message(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {error} ({traceback.extract_tb(error.__traceback__)[-1].name})"


def _sharded(bench: Bench, task: Task) -> tuple[features.Sharded, Path]:
    """What a task makes in shards, and where."""
    if task.kind == "probe-samples":
        return probing_of(bench, task.stage, task.subject), probes_folder(bench, task.stage, task.subject)
    extraction = extraction_of(bench, task.stage, task.subject, task.repeat)
    return extraction, features_folder(bench, task.stage, task.subject, task.repeat)


def _make_shards(bench: Bench, task: Task, shard: Shard | None) -> None:
    """Make the missing shards of one source."""
    sharded, folder = _sharded(bench, task)
    missing = features.missing_shards(sharded, folder)
    bench.progress.start_task(task.title, sharded.count)
    bench.progress.advance(sharded.count - sum(len(sharded.shard_ids(s)) for s in missing))
    features.extract(sharded, folder, (shard or Shard()).mine(missing), bench.progress.advance)


def _record_task(bench: Bench, task: Task) -> None:
    """Run one task and write its records; a file that is there already was written whole."""
    path = _records_path(bench.folder, task)
    if path.exists():
        bench.progress.finish_task(was_done_before=True)
        return
    bench.progress.start_task(task.title, task.units)
    try:
        measurements = list(JOBS[task.kind](bench, task))
    except StorageError:
        raise
    except (UserError, ValueError, RuntimeError, ArithmeticError) as error:
        measurements = [_failed(task, bench, _message(error))]
    origin, now = provenance(bench.folder.name, bench.plan.device), utc_now()
    write_records(path, (Record(m, origin, now, task.title) for m in measurements))
    bench.progress.finish_task()


def _run_tasks(bench: Bench, shard: Shard | None) -> None:
    for task in bench.plan.tasks:
        if task.kind in SHARDED:
            try:
                _make_shards(bench, task, shard)
            except StorageError:
                raise
            except (UserError, ValueError, RuntimeError) as error:
                key = f"{task.stage.entry.title}/{task.subject}"
                bench.failures[key if task.kind == "features" else probes_key(task)] = _message(error)
            bench.progress.finish_task()
        elif shard is None:
            _record_task(bench, task)


def _collect(bench: Bench) -> list[Record]:
    """Put the records of all tasks together, in the order of the plan."""
    tasks = (task for task in bench.plan.tasks if task.kind not in SHARDED)
    records = [record for task in tasks for record in read_records(_records_path(bench.folder, task))]
    write_records(bench.folder / "records.jsonl", records)
    return records


def _write_facts(bench: Bench, options: RunOptions, identity: Identity, *, complete: bool) -> None:
    facts = {
        "run_id": bench.folder.name,
        "identity": identity,
        "complete": complete,
        "suite": bench.plan.suite.name,
        "reason": bench.plan.reason,
        "command": options.command,
        "settings": {stage.entry.title: dataclasses.asdict(stage.entry) for stage in bench.plan.stages},
        "left_out": list(bench.plan.skipped),
        "machine": machine_slug(bench.plan.device),
        "environment": environment_facts(bench.plan.device),
    }
    write_atomic(bench.folder / "run.json", json.dumps(facts, indent=1) + "\n")


def _open_needed_views(plan: Plan, options: PlanOptions) -> OpenedViews:
    """The views of all protocols, and stand-ins for those that can't be had."""
    protocols = [PROTOCOLS[name] for stage in plan.stages for name in stage.entry.protocols]
    opened = open_views((p.view for p in protocols), options.network_weights, plan.device)
    names = [PROTOCOLS[p.standin].view for p in protocols if p.standin is not None and p.view in opened.missing]
    standins = open_views(names, options.network_weights, plan.device)
    return OpenedViews(opened.views | standins.views, opened.missing)


def execute(plan: Plan, options: PlanOptions, how: RunOptions) -> RunResult:
    """Run all tasks of a plan, or the shards of features that fall to this process.

    Under torchrun (`how.world`), each process makes its part of the features, and rank 0 the rest.
    """
    views = _open_needed_views(plan, options)
    perceptual, why_not = open_perceptual(options.network_weights, plan.device)
    if why_not is not None:
        views.missing["vgg16-lpips"] = why_not
    classifier = open_classifier(options.network_weights, plan.device) if "deit" in needed_weights(plan) else None
    networks = {name: view.sha256 for name, view in views.views.items()} | {"perceptual": perceptual.sha256}
    networks |= {} if classifier is None else {"deit": classifier.sha256}
    identity = identify(plan, options, networks)
    folder = choose_folder(identity, plan, how.output, fresh=how.fresh)
    progress = Progress([task.estimate_s for task in plan.tasks])
    references = tuple(load_reference(path) for path in options.references)
    bench = Bench(folder, plan, views, perceptual, dict(options.model_weights), progress, classifier, references)
    check_references(bench)
    try:
        if how.world is None:
            return _execute_alone(bench, how, identity)
        with how.world.joined():
            return _execute_together(bench, how, identity, how.world)
    finally:
        progress.close()


def _execute_together(bench: Bench, how: RunOptions, identity: Identity, world: World) -> RunResult:
    """Make features side by side in the folder that rank 0 chose; then rank 0 goes on alone."""
    if world.rank:
        bench.progress.mute()
    bench = dataclasses.replace(bench, folder=Path(world.agree(str(bench.folder))))
    part = _execute_alone(bench, dataclasses.replace(how, shard=world.shard), identity)
    world.wait()
    if world.rank:
        return part
    bench.progress.restart()
    return _execute_alone(bench, how, identity)


def _execute_alone(bench: Bench, how: RunOptions, identity: Identity) -> RunResult:
    with locked(bench.folder, shared=how.shard is not None):
        if run_facts(bench.folder).get("complete"):
            return RunResult(bench.folder, True, _num_failed(read_records(bench.folder / "records.jsonl")))
        if how.shard is None:
            remove_parts(bench.folder)
        _check_model_weights(bench)
        check_parts(how.parts, identity)
        _write_facts(bench, how, identity, complete=False)
        copy_parts(how.parts, bench.folder)
        _run_tasks(bench, how.shard)
        if how.shard is not None:
            return RunResult(bench.folder, False, len(bench.failures))
        records = _collect(bench)
        _write_facts(bench, how, identity, complete=True)
        write_atomic(run_folder.RUNS.parent / "latest", f"{bench.folder}\n")
        return RunResult(bench.folder, True, _num_failed(records))


def _check_model_weights(bench: Bench) -> None:
    """Load all weights before the first hour is spent."""
    for stage in bench.plan.stages:
        for name in bench.model_weights.keys() & set(stage.entry.models):
            subject_of(bench, stage, name)


def _num_failed(records: list[Record]) -> int:
    return sum(record.measurement.status == "error" for record in records)
