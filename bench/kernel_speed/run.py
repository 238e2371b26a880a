"""The run of `bench kernels`: each finished row is in the history at once, a cut run goes on, the budget holds."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from bench.clocks import Clock, EventClock
from bench.environment import machine_slug, source_sha256
from bench.errors import UserError
from bench.history import History
from bench.kernel_speed.ceilings import DTYPES, Ceilings, measure_ceilings
from bench.kernel_speed.checks import LayerCase
from bench.kernel_speed.contenders import Form
from bench.kernel_speed.deadline import time_limit
from bench.kernel_speed.plan import CheckCase, KernelOptions, Planned, plan
from bench.kernel_speed.report import format_row, heading
from bench.kernel_speed.timing import WALL, Bench, case_of, latency, measure
from bench.progress import Progress
from bench.records import Measurement, Record, read_records
from bench.verify import VerificationError
from kernels.dispatch import KernelUnavailableError

MIN_PAIR_S, MAX_PAIR_S = 0.1, 3.0
FIRST_ROW_S = 120.0  # however small the budget, a call gets somewhere
CHECK_S, COMPILE_S = 1.5, 30.0  # first guesses of what a row takes beside its timing

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class KernelRun:
    """What a call measured and what earlier calls of the same run had, and how many rows are left."""

    rows: tuple[Measurement, ...]
    ceilings: Ceilings
    left: int
    uses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # layers that a row stands for, by its subject


def key_of(measured: Measurement) -> Key:
    """What makes two rows the same row."""
    return measured.subject, json.dumps(measured.case, sort_keys=True)


def planned_key(case: Planned, bench: Bench) -> Key:
    """The key that a planned row will have."""
    return key_of(latency(case_of(case, bench), kind="kernel", subject=case.subject, value=0.0))


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds to share out; a limit also ends the run when they are over."""

    seconds: float
    is_limit: bool = True


def run_kernels(options: KernelOptions, budget: Budget, history: History, *, record: bool, fresh: bool) -> KernelRun:
    """Measure what is planned and was not measured yet, until it is done or the budget ends."""
    end = time.monotonic() + budget.seconds
    torch.backends.cudnn.benchmark = options.on_gpu
    if options.on_gpu:
        torch.cuda.set_device(options.device.index or 0)  # clocks and captures are of the current one
    bench = make_bench(options)
    planned = {planned_key(case, bench): case for case in plan(options, bench.ceilings)}
    if not planned:
        raise UserError(f"--only {options.only}: no row is called so. One is 'modulated_conv2d/*/b64.conv1'.")
    before = [] if fresh or not record else unfinished(history, planned)
    if before:
        history = History(history.device, history.folder, before[0].provenance.run_id)
    rows = {key_of(one.measurement): one.measurement for one in before}
    todo = [case for key, case in planned.items() if key not in rows]
    print("\n".join(heading(bench, len(planned), len(planned) - len(todo))), flush=True)
    progress = Progress([_guess_s(case, bench) for case in todo])
    for measured in _Runner(bench, end, end if budget.is_limit else math.inf, progress).measured(todo):
        rows[key_of(measured)] = measured
        if record:
            history.append(f"kernels-{_network(measured)}", [measured])
        print(format_row(measured), flush=True)
        _require_device(bench.device, measured)
    uses = {case.subject: case.call.uses for case in planned.values() if isinstance(case, LayerCase)}
    return KernelRun(
        tuple(rows[key] for key in planned if key in rows),
        bench.ceilings,
        len(planned.keys() - rows),
        uses,
    )


def make_bench(options: KernelOptions) -> Bench:
    """Measure the ceilings, and choose clock, form and baselines."""
    clock: Clock = EventClock(options.device) if options.on_gpu else WALL
    dtypes = DTYPES if options.on_gpu else options.chosen_dtypes
    ceilings = measure_ceilings(options.device, clock, dtypes)
    ours: Form = "triton" if options.on_gpu else "eager"
    return Bench(options.device, clock, ceilings, ours, options.chosen_groups, graphs=options.on_gpu)


def unfinished(history: History, wanted: Collection[Key]) -> list[Record]:
    """The rows of this program's latest run on this machine, if some that are wanted are not among them."""
    folder = history.folder / machine_slug(history.device)
    records = [row for path in sorted(folder.glob("kernels-*.jsonl")) for row in read_records(path, appended=True)]
    ours = [row for row in records if row.provenance.source_sha256 == source_sha256()]
    if not ours:
        return []
    run_id = max(ours, key=lambda row: (row.timestamp_utc, row.provenance.run_id)).provenance.run_id
    latest = [row for row in ours if row.provenance.run_id == run_id]
    return [] if set(wanted) <= {key_of(row.measurement) for row in latest} else latest


@dataclass(slots=True)
class _Runner:
    """Measures row after row until the end."""

    bench: Bench
    end: float  # of `time.monotonic`
    limit: float  # when to stop
    progress: Progress
    overheads_s: list[float] = field(default_factory=list)  # what rows took beside their timing

    def measured(self, todo: Sequence[Planned]) -> Iterable[Measurement]:
        """Yield rows; one that the end of the budget cuts is dropped."""
        for i, case in enumerate(todo):
            left_s = self.limit - time.monotonic()
            if i and left_s <= 0:
                return
            self.progress.start_task(f"{case.subject} {case.dtype}", 1)
            try:
                with time_limit(left_s if i else max(left_s, FIRST_ROW_S)):
                    row = self._row(case, todo[i:])
            except TimeoutError:
                self.progress.close()
                return
            self.progress.finish_task()
            self.progress.close()
            yield row

    def _row(self, case: Planned, todo: Sequence[Planned]) -> Measurement:
        if isinstance(case, CheckCase):
            return check_row(case, self.bench)
        start, pair_s = time.monotonic(), self._pair_s(todo)
        row = measure(case, self.bench, pair_s)
        timed_s = pair_s * max(len(self.bench.contenders(case)), 1)
        self.overheads_s.append(max(time.monotonic() - start - timed_s, 0.0))
        return row

    def _pair_s(self, todo: Sequence[Planned]) -> float:
        """An even share of the time that is left, as far as rows are known to take some beside it."""
        recent = self.overheads_s[-8:]
        overhead_s = sum(recent) / len(recent) if recent else CHECK_S
        pairs = sum(len(self.bench.contenders(case)) or 1 for case in todo if not isinstance(case, CheckCase))
        left_s = self.end - time.monotonic() - overhead_s * len(todo)
        return min(max(left_s / pairs, MIN_PAIR_S), MAX_PAIR_S)


def check_row(case: CheckCase, bench: Bench) -> Measurement:
    """The error of one kernel as a row; a failure is a row with a status."""
    value, status, error = None, "ok", None
    try:
        value = case.error(bench.device, "triton" if bench.ours == "triton" else "reference")
    except KernelUnavailableError as reason:
        status, error = "missing", str(reason)
    except VerificationError as reason:
        status, error = "error", f"wrong: {reason}"
    except Exception as reason:  # the others are checked all the same
        status, error = "error", f"{type(reason).__name__}: {reason}"
    return Measurement(
        kind="kernel",
        subject=case.subject,
        weights="random seed 0",
        weights_sha256=None,
        case=case_of(case, bench),
        protocol="relative-error@float64",
        metric="Relative error",
        unit="",
        higher_is_better=False,
        value=value,
        seed=0,
        status=status,  # type: ignore[arg-type]
        error=error,
    )


def _guess_s(case: Planned, bench: Bench) -> float:
    if isinstance(case, CheckCase):
        return CHECK_S
    contenders = bench.contenders(case)
    return CHECK_S + sum(MIN_PAIR_S + COMPILE_S * (one.compiled and not one.graphed) for one in contenders)


def _network(measured: Measurement) -> str:
    parts = measured.subject.split("/")
    return {1: parts[0], 2: "checks"}.get(len(parts), parts[-2])


def _require_device(device: torch.device, measured: Measurement) -> None:
    """Raise `UserError` where a failed row has left the GPU unusable: every row after it would fail too."""
    if device.type != "cuda" or measured.status != "error":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise UserError(
            f"{measured.subject}: the GPU gave up on it ({error}). The row is kept as failed; the same command goes on "
            "with the next one in a new process."
        ) from error
