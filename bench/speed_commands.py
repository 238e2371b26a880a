"""The commands that measure speed, and what kernels compile to."""

from __future__ import annotations

import argparse

from bench.compiled_table import run_compile_gate
from bench.environment import choose_device, machine_slug, provenance
from bench.gate import GateSpec, run_gate
from bench.generator_timing import GeneratorTiming, generator_measurement, print_timings
from bench.history import History
from bench.kernel_speed.files import write_files
from bench.kernel_speed.plan import KernelOptions
from bench.kernel_speed.report import summary
from bench.kernel_speed.run import Budget, run_kernels
from bench.trend import run_trend

CPU_BUDGET_S, GPU_BUDGET_S = 60.0, 540.0  # of `kernels`


def kernels(arguments: argparse.Namespace) -> int:
    """Check and time kernels, print and keep the rows; status 1 if one is wrong or fails."""
    options = KernelOptions(
        device=choose_device(arguments.device),
        batches=tuple(arguments.batch_size or ()),
        dtypes=tuple(arguments.dtype or ()),
        groups=tuple(arguments.against or ()),
        only=arguments.only,
    )
    usual = Budget(GPU_BUDGET_S) if options.on_gpu else Budget(CPU_BUDGET_S, is_limit=False)
    budget = usual if arguments.budget is None else Budget(arguments.budget)
    history = History(options.device)
    done = run_kernels(options, budget, history, record=not arguments.no_record, fresh=arguments.fresh)
    print("\n" + "\n".join(summary(done.rows, on_gpu=options.on_gpu)))
    if not arguments.no_record:
        print(f"history  {history.folder / machine_slug(options.device)}")
    if arguments.output or (options.on_gpu and not arguments.no_record):
        for path in write_files(done, provenance(history.run_id, options.device), arguments.output):
            print(f"file     {path}")
    if done.left:
        print(f"{done.left} rows are left: the same command goes on with them")
    return int(any(row.status == "error" for row in done.rows))


def speed(arguments: argparse.Namespace) -> int:
    """Time generators; each row is printed and added to the history as it comes."""
    device = choose_device(arguments.device)
    history = History(device)

    def add(row: GeneratorTiming) -> None:
        if not arguments.no_record:
            history.append("generators", [generator_measurement(row)])

    print_timings(arguments.models, arguments.budget, arguments.batch_size, device, add)
    return 0


def compile_kernels(arguments: argparse.Namespace) -> int:
    """Compile the kernels ahead of time."""
    return run_compile_gate(update=arguments.update, only=arguments.only)


def gate(arguments: argparse.Namespace) -> int:
    """Compare with another version. Exit status: 0 ok, 3 regressed, 4 inconclusive, 5 incomplete."""
    device, compiled = "cpu" if arguments.no_gpu else "cuda", arguments.no_gpu and arguments.kernels == "*"
    return run_gate(GateSpec(arguments.base, arguments.kernels, arguments.budget, device, compiled))


def trend(arguments: argparse.Namespace) -> int:
    """Draw the history."""
    return run_trend(arguments.machine, arguments.kernel, arguments.output)
