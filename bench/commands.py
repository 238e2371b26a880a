"""The commands that run things: doctor -> plan -> run -> report, alone or one after the other."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from pathlib import Path

from bench.comparison import comparison_tables
from bench.datasets import open_dataset
from bench.doctor import examine, format_findings
from bench.environment import choose_device
from bench.errors import UserError
from bench.fetch import file_sha256
from bench.generate import GenerateSpec, generate, parse_numbers
from bench.generator_timing import CPU, GeneratorTiming, print_timings
from bench.history import History, generator_measurement, kernel_measurements
from bench.kernel_timing import format_rows, run_kernel_timing
from bench.model_weights import FORMATS, LoadedModel, fetch_model, load_file, load_model, model_file, model_named
from bench.offline import forbid_network, network_available
from bench.plan import Plan, PlanOptions, describe, make_plan
from bench.publish import publish
from bench.records import read_records
from bench.report import write_report
from bench.run import RUNS, RunOptions, RunResult, Shard, execute
from bench.shapes import ShapesDataset
from bench.tables import to_text
from bench.train import SHAPES_COUNT, TrainingRun, small_spec, train_on
from bench.weights import WEIGHTS, WeightsOptions, fetch_weights
from models.registry import MODELS

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
        network_weights=weights_options(arguments, may_fetch=may_fetch),
    )


def _planned(arguments: argparse.Namespace, *, may_fetch: bool) -> tuple[Plan, PlanOptions]:
    device = choose_device(arguments.device)
    options = _plan_options(arguments, may_fetch=may_fetch)
    made = make_plan(options, device)
    return made, dataclasses.replace(options, model_weights=_model_weights(arguments.weights, made))


def doctor(arguments: argparse.Namespace) -> int:
    """Print the findings."""
    findings = list(examine(weights_options(arguments, may_fetch=False), ask_network=not arguments.offline))
    print(format_findings(findings))
    return int(any(finding.state == "bad" for finding in findings))


def plan(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    made, options = _planned(arguments, may_fetch=False)
    print("\n".join(describe(made, options)))
    return 0


def _execute(made: Plan, options: PlanOptions, arguments: argparse.Namespace) -> RunResult:
    shard = None if arguments.shard is None else Shard.parse(arguments.shard)
    return execute(made, options, RunOptions(arguments.output, arguments.fresh, shard, arguments.shown_command))


def _conclude(result: RunResult) -> int:
    if not result.complete:
        print(f"shards   {result.folder}\nWhen all shards are there, run the same command without --shard.")
        return int(result.num_failed > 0)
    status = report(result.folder)
    if result.num_failed:
        print(f"{result.num_failed} measurements failed; the tables say which and why")
    return 1 if result.num_failed else status


def run(arguments: argparse.Namespace) -> int:
    """Run a suite and report it."""
    made, options = _planned(arguments, may_fetch=True)
    return _conclude(_execute(made, options, arguments))


def main_job(arguments: argparse.Namespace) -> int:
    """Doctor, plan, run, report."""
    made, options = _planned(arguments, may_fetch=True)
    findings = examine(options.network_weights, ask_network=not arguments.offline)
    print("doctor\n" + format_findings(list(findings)))
    print("\nplan\n" + "\n".join(describe(made, options)) + "\n", flush=True)
    return _conclude(_execute(made, options, arguments))


def train(arguments: argparse.Namespace) -> int:
    """Train a small StyleGAN2 on a data set."""
    device = choose_device(arguments.device)
    size = arguments.resolution
    is_shapes = arguments.dataset == "shapes"
    dataset = ShapesDataset(size, SHAPES_COUNT) if is_shapes else open_dataset(arguments.dataset, size)
    how = TrainingRun(minutes=arguments.minutes, device=str(device))
    digest = train_on(dataset, small_spec(dataset, images=MAX_TRAINING_IMAGES), arguments.output, how)
    print(f"weights  {arguments.output}, sha256 {digest}")
    return 0


def report(folder: Path | None, publish_as: str | None = None) -> int:
    """Write the report of a run, and print its tables."""
    if folder is None:
        latest = RUNS.parent / "latest"
        if not latest.is_file():
            raise UserError(f"there is no run yet in {RUNS}. `python -m bench` makes one.")
        folder = Path(latest.read_text(encoding="utf-8").strip())
    if not (folder / "records.jsonl").is_file():
        raise UserError(f"{folder}: no records.jsonl there; it is not a finished run. Give a folder of {RUNS}.")
    page = write_report(folder)
    for table in comparison_tables(read_records(folder / "records.jsonl")):
        print(to_text(table) + "\n")
    print(f"report   {page}")
    for path in publish(folder, publish_as) if publish_as else ():
        print(f"published {path}")
    return 0


def fetch(names: list[str]) -> int:
    """Download weights of feature networks and of models; nothing is fetched if one name is unknown."""
    for name in names:
        if name not in WEIGHTS and name not in MODELS:
            near = difflib.get_close_matches(name, [*WEIGHTS, *MODELS], n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"no weights are called {name!r}.{hint} `ls weights` and `ls models` list what there is.")
    for name in names:
        if name in WEIGHTS:
            print(fetch_weights(name))
        else:
            path = fetch_model(name)
            print(f"{name}: {path}, sha256 {file_sha256(path)}, {model_named(name).licence}")
    return 0


def draw(arguments: argparse.Namespace) -> int:
    """Write pictures of a model or of a file of one."""
    if arguments.offline:
        forbid_network()
    for name in ("steps", "batch_size"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: it must be 1 or more")
    spec = GenerateSpec(
        seeds=parse_numbers(arguments.seeds),
        classes=parse_numbers(arguments.classes) if arguments.classes else (),
        prompts=tuple(arguments.prompt),
        truncation_psi=arguments.psi,
        truncation_cutoff=arguments.cutoff,
        centroids=arguments.centroids,
        noise_mode=arguments.noise_mode,
        interpolate=arguments.interpolate,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
    )
    model = _model_to_draw(arguments)
    print(f"weights  {model.weights}, sha256 {model.weights_sha256}")
    for path in generate(model, spec, arguments.out, force=arguments.force):
        print(f"picture  {path}")
    return 0


def _model_to_draw(arguments: argparse.Namespace) -> LoadedModel:
    device = choose_device(arguments.device)
    name = arguments.model
    if Path(name).suffix in FORMATS:
        return load_file(Path(name), device)
    classes = model_named(name).num_classes
    if arguments.random_weights is not None:
        return load_model(name, None, classes, arguments.random_weights, device)
    offline = arguments.offline or not network_available()
    path = model_file(name) or fetch_model(name, offline=offline)
    return load_model(name, path, classes, 0, device)


def time_kernels(budget_s: float, batch_size: int, *, record: bool) -> int:
    """Time the kernels, print a table, and add it to the history."""
    timing = run_kernel_timing(budget_s, batch_size)
    print(format_rows(timing))
    if record:
        print(f"history  {History(CPU).append('kernels', kernel_measurements(timing))}")
    return 0


def time_models(names: list[str], budget_s: float, batch_size: int, *, record: bool) -> int:
    """Time generators; each row is printed and added to the history as it comes."""
    history = History(CPU)

    def add(row: GeneratorTiming) -> None:
        if record:
            history.append("generators", [generator_measurement(row)])

    print_timings(names, budget_s, batch_size, add)
    return 0
