"""The commands that run things: doctor -> plan -> run -> report, alone or one after the other."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from bench.canary import format_answers, sing
from bench.delta import delta_plan
from bench.differences import contenders, difference_tables
from bench.distributed import Shard, device_name, world_of_torchrun
from bench.doctor import examine, format_findings
from bench.environment import choose_device
from bench.errors import UserError
from bench.model_weights import model_file
from bench.offline import forbid_network, network_available
from bench.plan import Plan, PlanOptions, make_plan
from bench.plan_description import describe
from bench.publish import publish
from bench.records import Record, read_records
from bench.report import run_tables, write_report
from bench.run import RunOptions, RunResult, execute
from bench.run_folder import RUNS
from bench.tables import to_text
from bench.weights import WEIGHTS, WeightsOptions

MAX_TRAINING_IMAGES = 10**9  # the minutes end a training


def weights_options(arguments: argparse.Namespace, *, may_fetch: bool) -> WeightsOptions:
    """Where weights of networks come from; `--offline` shuts the network for the whole process."""
    if arguments.offline:
        forbid_network()
    given = {name: getattr(arguments, f"{name}-weights".replace("-", "_")) for name in WEIGHTS}
    overrides = {name: path for name, path in given.items() if path is not None}
    offline = arguments.offline or not may_fetch or not network_available()
    return WeightsOptions(overrides, offline=offline)


def _model_weights(given: list[tuple[str, Path]], plan: Plan) -> dict[str, Path]:
    """The weights that are here: the user's, a file without a model's name for the only model; fetched; shipped."""
    models = sorted({model for stage in plan.stages for model in stage.entry.models})
    named = {model: path for model in models if (path := model_file(model))}
    for name, path in given:
        if not path.is_file():
            raise UserError(f"--weights {path}: no such file")
        if not name and len(models) != 1:
            raise UserError(f"--weights {path}: for which model? Write MODEL={path}, with one of {', '.join(models)}.")
        if name and name not in models:
            raise UserError(f"--weights {name}={path}: no such model in this plan; there are {', '.join(models)}")
        named[name or models[0]] = path
    return named


def _plan_options(arguments: argparse.Namespace, *, may_fetch: bool) -> PlanOptions:
    for name in ("limit", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: it must be 1 or more")
    environment = os.environ.get("STYLEBENCH_DATA")
    data_dir = arguments.data or (Path(environment) if environment else None)
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"--data {data_dir}: no such folder. Give the folder that holds zips like cifar10-32x32.zip.")
    return PlanOptions(
        suite=arguments.suite,
        data_dir=data_dir,
        models=tuple(arguments.model),
        only=arguments.only,
        limit=arguments.limit,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        references=tuple(arguments.reference),
        prompts=arguments.prompts,
        network_weights=weights_options(arguments, may_fetch=may_fetch),
    )


def _planned(arguments: argparse.Namespace, *, may_fetch: bool) -> tuple[Plan, PlanOptions]:
    device = choose_device(device_name(arguments.device))
    options = _plan_options(arguments, may_fetch=may_fetch)
    made = make_plan(options, device)
    made = delta_plan(made, options) if arguments.command == "delta" else made
    return made, dataclasses.replace(options, model_weights=_model_weights(arguments.weights, made))


def doctor(arguments: argparse.Namespace) -> int:
    """Print the findings."""
    findings = list(examine(weights_options(arguments, may_fetch=False), ask_network=not arguments.offline))
    print(format_findings(findings))
    return int(any(finding.state == "bad" for finding in findings))


def canary(_arguments: argparse.Namespace) -> int:
    """Print the answers; status 1 if one is wrong."""
    answers = sing()
    print(format_answers(answers))
    return int(not all(answer.ok for answer in answers))


def plan(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    made, options = _planned(arguments, may_fetch=False)
    print("\n".join(describe(made, options)))
    return 0


def _execute(
    made: Plan, options: PlanOptions, arguments: argparse.Namespace, parts: tuple[Path, ...] = ()
) -> RunResult:
    shard = None if arguments.shard is None else Shard.parse(arguments.shard)
    world = world_of_torchrun()
    if world is not None and shard is not None:
        raise UserError("--shard under torchrun: it hands out the parts itself. Leave --shard out.")
    how = RunOptions(arguments.output, arguments.fresh, shard, world, parts, arguments.shown_command)
    return execute(made, options, how)


def _conclude(result: RunResult) -> int:
    world = world_of_torchrun()
    if world is not None and world.rank:
        return int(result.num_failed > 0)
    if not result.complete:
        print(f"shards   {result.folder}\nWhen all shards are there, run the same command without --shard.")
        return int(result.num_failed > 0)
    status = _report(result.folder)
    if result.num_failed:
        print(f"{result.num_failed} measurements failed; the tables say which and why")
    return 1 if result.num_failed else status


def run(arguments: argparse.Namespace) -> int:
    """Run a suite and report it."""
    made, options = _planned(arguments, may_fetch=True)
    return _conclude(_execute(made, options, arguments))


def delta(arguments: argparse.Namespace) -> int:
    """Score one set of images under all protocols, and say what each choice is worth."""
    return run(arguments)


def diff(arguments: argparse.Namespace) -> int:
    """Print which models of one run, or of two, can be told apart."""
    labels = [f" ({folder.name})" if len(arguments.runs) > 1 else "" for folder in arguments.runs]
    found = [
        one
        for folder, label in zip(arguments.runs, labels, strict=True)
        for one in contenders(folder, _records(folder), label)
    ]
    tables = difference_tables(found)
    if not tables:
        raise UserError(
            "nothing to compare: it takes two models, or one model in two runs, scored under one protocol on the same "
            "reference with the same seed and count."
        )
    print("\n".join(map(to_text, tables)))
    return 0


def merge(arguments: argparse.Namespace) -> int:
    """Bring the parts of a run together, and finish it as their command would without --shard."""
    made, options = _planned(arguments, may_fetch=True)
    return _conclude(_execute(made, options, arguments, tuple(arguments.parts)))


def main_job(arguments: argparse.Namespace) -> int:
    """Doctor, plan, run, report."""
    made, options = _planned(arguments, may_fetch=True)
    world = world_of_torchrun()
    if world is None or world.rank == 0:
        findings = examine(options.network_weights, ask_network=not arguments.offline)
        print("doctor\n" + format_findings(list(findings)))
        print("\nplan\n" + "\n".join(describe(made, options)) + "\n", flush=True)
    return _conclude(_execute(made, options, arguments))


def report(arguments: argparse.Namespace) -> int:
    """Write the report of a run again, and print its tables."""
    return _report(arguments.run, arguments.publish)


def _records(folder: Path) -> list[Record]:
    if not (folder / "records.jsonl").is_file():
        raise UserError(f"{folder}: no records.jsonl there; it is not a finished run. Give a folder of {RUNS}.")
    return read_records(folder / "records.jsonl")


def _report(folder: Path | None, publish_as: str | None = None) -> int:
    if folder is None:
        latest = RUNS.parent / "latest"
        if not latest.is_file():
            raise UserError(f"there is no run yet in {RUNS}. `python -m bench` makes one.")
        folder = Path(latest.read_text(encoding="utf-8").strip())
    records = _records(folder)
    page = write_report(folder)
    for table in run_tables(folder, records):
        print(to_text(table) + "\n")
    print(f"report   {page}")
    for path in publish(folder, publish_as) if publish_as else ():
        print(f"published {path}")
    return 0
