"""The speed gate: is any kernel slower, wrong or gone since this branch left another one?"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.clocks import clock_for
from bench.code_copies import CodeCopy, merge_base, write_commit, write_working_tree
from bench.environment import ROOT, machine_slug
from bench.errors import UserError
from bench.gate_measure import CaseResult, Outcome, Request, from_json, kernel_names, measure
from bench.gate_statistics import Verdict, verdicts
from bench.workloads import workloads

OK, REGRESSED, INCONCLUSIVE, INCOMPLETE = 0, 3, 4, 5  # exit statuses
FAILING = frozenset({"regressed", "wrong", "vanished"})
UNFINISHED = frozenset({"incomparable", "not measured"})
START_S = 120.0  # how long a fresh process may take to start, on a machine that is busy

Settled = Verdict | Outcome


@dataclass(frozen=True, slots=True)
class GateSpec:
    """What is compared with which commit; `budget_s` is for measuring once, and again as much for a second look."""

    base: str
    kernels: str = "*"
    budget_s: float = 120.0
    device: str = "cuda"
    compiled: bool = False  # also hold the compiled kernels against their table
    root: Path = ROOT


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    result: CaseResult
    verdict: Settled


def run_gate(spec: GateSpec) -> int:
    """Measure, print a table and one line, and return the exit status."""
    if spec.budget_s <= 0:
        raise UserError(f"--budget {spec.budget_s:g}: allowed are seconds above 0")
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is visible to torch. `--no-gpu` gates on the CPU formulations and on compiled code.")
    commit = merge_base(spec.base, spec.root)
    device = torch.device("cuda:0" if spec.device == "cuda" else "cpu")
    print(f"gate: working tree against {commit[:12]}, the merge base with {spec.base}")
    print(f"{machine_slug(device)}, {clock_for(device).name}; ratio: time of head / time of base, 99 % interval")
    with tempfile.TemporaryDirectory(prefix="gate-") as name:
        folder = Path(name)
        write_working_tree(folder / "head", spec.root)
        write_working_tree(folder / "control", spec.root)
        write_commit(commit, folder / "base", spec.root)
        rows = judge(spec, folder, seed=int.from_bytes(os.urandom(4)))
    print("\n".join([HEAD, *map(format_row, rows)]))
    if spec.compiled:
        rows.append(compiled_row())
        print(format_row(rows[-1]))
    status = exit_status(rows)
    print(summary(rows, status))
    return status


def compiled_row() -> Row:
    """Compile every kernel ahead of time and hold it against the committed table, as `bench compile` does."""
    from bench.compiled_table import run_compile_gate

    try:
        verdict: Settled = "regressed" if run_compile_gate(update=False) else "ok"
    except UserError as error:
        return Row(CaseResult("compiled code", "", "not measured", str(error)), "not measured")
    return Row(CaseResult("compiled code", "", "measured", "against the table of `bench compile`"), verdict)


def judge(spec: GateSpec, folder: Path, seed: int) -> list[Row]:
    """Measure the versions in `folder`; what is not clearly good is measured again in a fresh process."""
    chosen = tuple(w for w in workloads(spec.device) if fnmatch.fnmatch(w.kernel, spec.kernels))
    missing = _missing(folder, spec.kernels, {workload.kernel for workload in chosen})
    if not chosen and not missing:
        raise UserError(f"--kernels {spec.kernels}: no kernel has such a name. `ls kernels` lists them.")
    request = Request(folder, chosen, spec.device, spec.budget_s, seed)
    rows = _judged(measure(request))
    doubtful = [i for i, row in enumerate(rows) if row.verdict in ("regressed", "inconclusive")]
    if doubtful:
        again = dataclasses.replace(request, workloads=tuple(chosen[i] for i in doubtful), seed=seed + 1)
        for i, second in zip(doubtful, _judged(_in_fresh_process(again)), strict=True):
            rows[i] = _settle(rows[i], second)
    return [*rows, *missing]


def _missing(folder: Path, pattern: str, timed: set[str]) -> list[Row]:
    """Kernels that head has no longer, or has without a workload."""
    head, base = (kernel_names(CodeCopy(folder / version)) for version in ("head", "base"))
    rows = []
    for kernel in sorted(fnmatch.filter(head | base, pattern)):
        if kernel not in head:
            rows.append(Row(CaseResult(kernel, "", "vanished", "the base has it and head does not"), "vanished"))
        elif kernel not in timed:
            note = "no workload: add it to bench/workloads.py and bench/kernel_calls.py"
            rows.append(Row(CaseResult(kernel, "", "not measured", note), "not measured"))
    return rows


def _judged(results: Sequence[CaseResult]) -> list[Row]:
    compared = [result.comparison for result in results if result.comparison is not None]
    found = iter(verdicts(compared))
    return [Row(result, next(found) if result.outcome == "measured" else result.outcome) for result in results]


def _settle(first: Row, second: Row) -> Row:
    """The second look counts, but a slow-down must show in both."""
    if first.verdict == "regressed" and second.verdict != "regressed":
        note = "; ".join(filter(None, ["a first measurement saw a regression", second.result.note]))
        return Row(dataclasses.replace(second.result, note=note), second.verdict)
    return Row(second.result, "inconclusive") if first.verdict != second.verdict == "regressed" else second


def _in_fresh_process(request: Request) -> list[CaseResult]:
    fields = dataclasses.asdict(request) | {"folder": str(request.folder)}
    command = [sys.executable, "-m", "bench.gate_measure"]
    limit_s = START_S + 2 * request.budget_s
    try:
        done = subprocess.run(
            command, cwd=ROOT, input=json.dumps(fields), capture_output=True, text=True, timeout=limit_s, check=True
        )
    except subprocess.SubprocessError as error:
        words = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        note = f"the second measurement failed: {words[-1] if words else 'no message'}"
        return [CaseResult(workload.kernel, workload.title, "not measured", note) for workload in request.workloads]
    return from_json(done.stdout)


HEAD = (
    f"{'kernel':<18} {'size':<38} {'base ms':>9} {'head ms':>9} {'ratio':>6} {'interval':>15} "
    f"{'threshold':>9} {'rounds':>6}  verdict"
)


def format_row(row: Row) -> str:
    """One line of the table."""
    result, compared = row.result, row.result.comparison
    what = f"{result.kernel:<18} {result.title:<38}"
    verdict = f"{row.verdict}: {result.note}" if result.note else row.verdict
    if compared is None:
        return f"{what} {verdict}"
    low, high = (1 + change for change in compared.interval)
    ratio = f"{1 + compared.change:>6.3f} {f'[{low:.3f}, {high:.3f}]':>15} {1 + compared.threshold:>9.3f}"
    return f"{what} {result.base_ms:>9.4f} {result.head_ms:>9.4f} {ratio} {compared.rounds:>6}  {verdict}"


def exit_status(rows: Sequence[Row]) -> int:
    """A failure outweighs what is missing, and that what could not be told."""
    found = {row.verdict for row in rows}
    if found & FAILING:
        return REGRESSED
    if found & UNFINISHED:
        return INCOMPLETE
    return INCONCLUSIVE if "inconclusive" in found else OK


def summary(rows: Sequence[Row], status: int) -> str:
    """One line: how many of each verdict, and the exit status."""
    counts = Counter(row.verdict for row in rows)
    meaning = {OK: "ok", REGRESSED: "regressed", INCONCLUSIVE: "inconclusive", INCOMPLETE: "incomplete"}[status]
    listed = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    return f"gate: {meaning} ({listed}); exit status {status}"
