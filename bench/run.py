"""Runs a plan: task by task, resumable anywhere, a failure is a row and the rest goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import features
from bench.environment import ROOT, environment_facts, machine_slug, provenance, source_sha256, utc_now
from bench.errors import StorageError, UserError
from bench.fetch import file_sha256
from bench.jobs import Bench, extraction_of, features_folder, score_task, subject_of
from bench.model_jobs import inversion_task, speed_task
from bench.plan import Plan, PlanOptions, Task
from bench.progress import Progress
from bench.protocols import PROTOCOLS
from bench.records import Measurement, Record, read_records, remove_parts, write_atomic, write_records
from bench.views import OpenedViews, open_perceptual, open_views

RUNS = ROOT / "results" / "runs"
LOCK = ".lock"
JOBS = {"score": score_task, "inversion": inversion_task, "speed": speed_task}


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of the feature shards that this process makes: `index` of `count`, counted from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/8"."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise UserError(f"--shard {text}: write it as I/N with 1 <= I <= N, for example --shard 2/8")
        return cls(int(index), int(count))

    def mine(self, shards: Sequence[int]) -> list[int]:
        """The shards of features that fall to this process."""
        return [shard for shard in shards if shard % self.count == self.index - 1]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Where a run goes, and whether it goes on from an earlier one."""

    output: Path | None = None
    fresh: bool = False
    shard: Shard | None = None
    command: str = ""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to."""

    folder: Path
    complete: bool
    num_failed: int


def fingerprint(plan: Plan, options: PlanOptions, views: OpenedViews, perceptual_sha256: str) -> str:
    """The hash of everything that a number of the run depends on; two runs with equal ones may share shards."""
    weights = {name: file_sha256(path) for name, path in options.model_weights.items()}
    facts = {
        "source": source_sha256(),
        "suite": [plan.suite.name, plan.suite.version, plan.suite.seed],
        "entries": [repr(stage.entry) for stage in plan.stages],
        "data": [stage.dataset.content_sha256() for stage in plan.stages],
        "views": {name: view.sha256 for name, view in views.views.items()},
        "perceptual": perceptual_sha256,
        "weights": weights,
        "machine": machine_slug(plan.device),
        "environment": {k: v for k, v in environment_facts(plan.device).items() if k != "gpu"},  # clocks move
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _run_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts


def choose_folder(print_of_plan: str, plan: Plan, options: RunOptions) -> Path:
    """The folder of this run: the one asked for, the newest unfinished run of the same plan, or a new one."""
    if options.output is not None:
        known = _run_facts(options.output).get("fingerprint")
        if known is not None and options.fresh:
            raise UserError(
                f"--fresh: {options.output} holds a run already. Remove it, or choose another --output DIR."
            )
        if known is not None and known != print_of_plan:
            raise UserError(
                f"{options.output} holds a run of another plan, or of another version of the program or its packages.\n"
                "Choose another folder with --output DIR, or remove this one."
            )
        if (
            known is None
            and options.output.is_dir()
            and any(not p.name.startswith(".") for p in options.output.iterdir())
        ):
            raise UserError(f"{options.output} is not empty and not a run. Choose another folder with --output DIR.")
        return options.output
    if not options.fresh:
        for folder in sorted(RUNS.glob("*"), reverse=True):
            facts = _run_facts(folder)
            if facts.get("fingerprint") == print_of_plan and not facts.get("complete"):
                return folder
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%fZ")
    return RUNS / f"{now}-{machine_slug(plan.device)}-{plan.suite.name}-{print_of_plan[:8]}"


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool) -> Iterator[None]:
    """Keep two processes from writing one run; several may make shards of features side by side."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(
            f"cannot write into {folder}: {error.strerror}. Choose another folder with --output DIR."
        ) from error
    with stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is at work in {folder}. Wait for it, or choose --output DIR.") from error
        yield


def _records_path(folder: Path, task: Task) -> Path:
    return folder / "tasks" / f"{task.title}.jsonl"


def _failed(task: Task, bench: Bench, message: str) -> Measurement:
    subject = subject_of(bench, task.stage, task.subject) if task.subject in task.stage.sources else None
    return Measurement(
        kind="speed" if task.kind == "speed" else "quality",
        subject=task.subject,
        weights=subject.weights if subject else "unknown",
        weights_sha256=None,
        case={"dataset": task.stage.entry.dataset, "resolution": task.stage.entry.resolution},
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


def _make_features(bench: Bench, task: Task, shard: Shard | None) -> None:
    """Make the missing shards of one source."""
    extraction = extraction_of(bench, task.stage, task.subject)
    folder = features_folder(bench, task.stage, task.subject)
    missing = features.missing_shards(extraction, folder)
    bench.progress.start_task(task.title, extraction.count)
    bench.progress.advance(extraction.count - sum(len(extraction.shard_ids(s)) for s in missing))
    features.extract(extraction, folder, (shard or Shard()).mine(missing), bench.progress.advance)


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
        if task.kind == "features":
            try:
                _make_features(bench, task, shard)
            except StorageError:
                raise
            except (UserError, ValueError, RuntimeError) as error:
                bench.failures[f"{task.stage.entry.title}/{task.subject}"] = _message(error)
            bench.progress.finish_task()
        elif shard is None:
            _record_task(bench, task)


def _collect(bench: Bench) -> list[Record]:
    """Put the records of all tasks together, in the order of the plan."""
    tasks = (task for task in bench.plan.tasks if task.kind != "features")
    records = [record for task in tasks for record in read_records(_records_path(bench.folder, task))]
    write_records(bench.folder / "records.jsonl", records)
    return records


def _write_facts(bench: Bench, options: RunOptions, print_of_plan: str, *, complete: bool) -> None:
    facts = {
        "run_id": bench.folder.name,
        "fingerprint": print_of_plan,
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
    """Run all tasks of a plan, or the shards of features that fall to this process."""
    views = _open_needed_views(plan, options)
    perceptual, why_not = open_perceptual(options.network_weights, plan.device)
    if why_not is not None:
        views.missing["vgg16-lpips"] = why_not
    print_of_plan = fingerprint(plan, options, views, perceptual.sha256)
    folder = choose_folder(print_of_plan, plan, how)
    with locked(folder, shared=how.shard is not None):
        if how.shard is None:
            remove_parts(folder)
        progress = Progress([task.estimate_s for task in plan.tasks])
        bench = Bench(folder, plan, views, perceptual, dict(options.model_weights), progress)
        if _run_facts(folder).get("complete"):
            return RunResult(folder, True, _num_failed(read_records(folder / "records.jsonl")))
        _check_model_weights(bench)
        _write_facts(bench, how, print_of_plan, complete=False)
        try:
            _run_tasks(bench, how.shard)
        finally:
            progress.close()
        if how.shard is not None:
            return RunResult(folder, False, len(bench.failures))
        records = _collect(bench)
        _write_facts(bench, how, print_of_plan, complete=True)
        write_atomic(RUNS.parent / "latest", f"{folder}\n")
        return RunResult(folder, True, _num_failed(records))


def _check_model_weights(bench: Bench) -> None:
    """Load all weights before the first hour is spent."""
    for stage in bench.plan.stages:
        for name in bench.model_weights.keys() & set(stage.entry.models):
            subject_of(bench, stage, name)


def _num_failed(records: list[Record]) -> int:
    return sum(record.measurement.status == "error" for record in records)
