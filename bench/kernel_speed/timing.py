"""How fast kernels and generators are against what they have to beat: correct first, then timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.clocks import Call, Clock, WallClock
from bench.kernel_speed.ceilings import Ceilings, multiplying
from bench.kernel_speed.checks import poisoned
from bench.kernel_speed.contenders import Binder, Contender, Form, Outputs, Run, Work, baselines
from bench.kernel_speed.deadline import time_limit
from bench.memory import peak_memory_bytes
from bench.records import Measurement, Status
from bench.timing import Timing
from bench.verify import VerificationError
from kernels.dispatch import KernelUnavailableError

PROTOCOL = "latency@abba-pairs"
MIN_PAIRS = 4  # two blocks of baseline, ours, ours, baseline
MAX_IDLE_LOAD = 0.7  # above it other work takes part of the cores, and threads wait for each other
PREPARE_LIMIT_S = 120.0  # for a baseline to be compiled, captured and checked
WALL = WallClock()


class CheckedWork(Work, Protocol):
    """Work whose outputs can be checked."""

    def check(self, outputs: Sequence[Tensor], form: Form) -> float:
        """How far they are from float64. Raises `VerificationError` where that is too far."""
        ...


class Row(Protocol):
    """What is planned, timed or not."""

    @property
    def kernel(self) -> str:
        """A kernel, or "generator"."""
        ...

    @property
    def subject(self) -> str:
        """The name of the row."""
        ...

    @property
    def against(self) -> str:
        """What it is held against; "": the baselines of the run."""
        ...

    def fields(self) -> dict[str, Any]:
        """What tells this row from others of the same subject, and what it is."""
        ...


class Job(Row, Protocol):
    """What is timed."""

    @property
    def has_grouped(self) -> bool:
        """Whether the grouped form is another one than the eager one."""
        ...

    @property
    def flops(self) -> int:
        """The least arithmetic; 0 where it is not known."""
        ...

    @property
    def moved_bytes(self) -> int:
        """The least traffic."""
        ...

    @property
    def dtype(self) -> str:
        """The dtype whose ceiling counts."""
        ...

    def work(self, device: torch.device) -> CheckedWork:
        """The inputs, drawn."""
        ...

    def resources(self, device: torch.device) -> dict[str, float]:
        """What our kernels were compiled to there, as far as that is known."""
        ...


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and against what is measured; `ours` is the form that is shown."""

    device: torch.device
    clock: Clock
    ceilings: Ceilings
    ours: Form
    groups: tuple[str, ...]
    graphs: bool = False  # whether calls are replayed from CUDA graphs too
    prepare_limit_s: float = PREPARE_LIMIT_S

    def contenders(self, job: Job) -> list[Contender]:
        """The baselines of a row."""
        found = baselines(self.groups, has_grouped=job.has_grouped, graphs=self.graphs)
        return [contender for contender in found if contender.form != self.ours or contender.compiled]


@dataclass(slots=True)
class _Found:
    """What is known of a row so far."""

    times_ms: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})  # ours, by `graphed`
    details: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def best_ms(self) -> list[float]:
        """Our times as they are, or replayed, whichever is faster."""
        return min((times for times in self.times_ms.values() if times), key=statistics.median)


def measure(job: Job, bench: Bench, pair_s: float) -> Measurement:
    """Check and time one row; each pair of contenders gets `pair_s` seconds. A failure is a row with a status."""
    found = _Found(details=_floor(job, bench.ceilings))
    status: Status = "ok"
    error = None
    try:
        with multiplying(job.dtype):
            _measure(job, bench, pair_s, found)
    except KernelUnavailableError as reason:
        status, error = "missing", str(reason)
    except VerificationError as reason:
        status, error = "error", f"wrong, so not timed: {reason}"
    except Exception as reason:  # any kernel may fail in any way; the others are measured all the same
        status, error = "error", _in_words(reason)
    finally:
        _tidy(bench.device)
    times = found.best_ms if status == "ok" else []
    for graphed, ours in found.times_ms.items():
        if ours:
            found.details["ours_graph_us" if graphed else "ours_us"] = 1e3 * statistics.median(ours)
    return latency(
        case_of(job, bench),
        kind="speed" if job.kernel == "generator" else "kernel",
        subject=job.subject,
        value=statistics.median(times) if times else None,
        interval=Timing(tuple(times)).median_interval_ms() if times else None,
        n=len(times) or None,
        status=status,
        error=error,
        caveats=tuple(found.problems),
        details=_with_fraction(found.details, times),
    )


def case_of(job: Row, bench: Bench) -> dict[str, Any]:
    """What tells a row from others of the same subject."""
    return job.fields() | {
        "device": bench.device.type,
        "kernel_name": job.kernel,
        "against": job.against or ", ".join(bench.groups),
    }


def _floor(job: Job, ceilings: Ceilings) -> dict[str, float]:
    rates = {"copy_bytes_per_s": ceilings.bytes_per_s, "matmul_flops_per_s": ceilings.flops_per_s[job.dtype]}
    if not job.flops:
        return rates
    floor_ms = ceilings.floor_ms(job.flops, job.moved_bytes, job.dtype)
    return rates | {"floor_us": 1e3 * floor_ms, "flops": float(job.flops), "moved_bytes": float(job.moved_bytes)}


def _with_fraction(details: dict[str, float], times_ms: Sequence[float]) -> dict[str, float]:
    if times_ms and "floor_us" in details:
        details["roofline_fraction"] = details["floor_us"] / 1e3 / statistics.median(times_ms)
    summary = Timing(tuple(times_ms)).summary_ms() if times_ms else {}
    return details | {f"stat_{name}": value for name, value in summary.items()}


def _measure(job: Job, bench: Bench, pair_s: float, found: _Found) -> None:
    work = job.work(bench.device)
    binder = Binder(work)
    ours = {False: binder.bind(Contender(bench.ours))}
    with poisoned():
        outputs = ours[False]()
    found.details["relative_error"] = work.check(outputs, bench.ours)
    if bench.ours == "triton":
        found.details |= job.resources(bench.device)
    del outputs
    if bench.graphs:
        found.details["peak_memory_bytes"] = _extra_memory(ours[False], bench.device)
        with _told("triton_graph", found):
            ours[True] = binder.bind(Contender(bench.ours, graphed=True))
            work.check(ours[True](), bench.ours)
    for contender in bench.contenders(job):
        with _told(contender.name, found):
            _pair(contender, binder, work, ours.get(contender.graphed, ours[False]), (bench, pair_s, found))
        if contender.graphed:
            _tidy(bench.device)
    if not any(found.times_ms.values()):
        found.times_ms[False] = [ours_ms for _, ours_ms in time_pairs(ours[False], ours[False], pair_s, bench.clock)]


def _pair(contender: Contender, binder: Binder, work: CheckedWork, ours: Run, how: tuple[Bench, float, _Found]) -> None:
    """Check a baseline, then time it and ours in turn."""
    bench, pair_s, found = how
    with time_limit(bench.prepare_limit_s):  # a compiler may have no end
        run = binder.bind(contender)
        work.check(run(), contender.form)
    pairs = time_pairs(run, ours, pair_s, bench.clock)
    found.details[f"{contender.name}_ms"] = statistics.median(theirs for theirs, _ in pairs)
    found.details[f"{contender.name}_ratio"] = statistics.median(theirs / mine for theirs, mine in pairs)
    found.times_ms[contender.graphed] += [mine for _, mine in pairs]
    if bench.graphs and not contender.graphed:
        found.details[f"{contender.name}_peak_memory_bytes"] = _extra_memory(run, bench.device)


@contextmanager
def _told(name: str, found: _Found) -> Iterator[None]:
    """A baseline that fails is named and why; it does not take the row with it."""
    try:
        yield
    except Exception as error:
        found.problems.append(f"{name}: {_in_words(error)}")


def _in_words(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def _extra_memory(run: Callable[[], Outputs], device: torch.device) -> float:
    """The most bytes that a call holds beside what there was before it."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    return float((peak_memory_bytes(run, device) or 0) - before)


def _tidy(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def time_pairs(
    baseline: Callable[[], object],
    optimised: Callable[[], object],
    budget_s: float,
    clock: Clock = WALL,
    min_pairs: int = MIN_PAIRS,
) -> list[tuple[float, float]]:
    """Time both in blocks of baseline, ours, ours, baseline, so that drift and load meet both alike.

    Returns the durations in milliseconds as (baseline, ours); the number of pairs is even.
    """
    pairs: list[tuple[float, float]] = []
    block = [Call(baseline), Call(optimised), Call(optimised), Call(baseline)]
    end = time.perf_counter() + budget_s
    while len(pairs) < min_pairs or time.perf_counter() < end:
        a1, b1, b2, a2 = clock.durations_ms(block)
        pairs += [(a1, b1), (a2, b2)]
    return pairs


def latency(case: dict[str, Any], **fields: Any) -> Measurement:
    """A row of milliseconds, of random weights."""
    return Measurement(
        weights="random seed 0",
        weights_sha256=None,
        case=case,
        protocol=PROTOCOL,
        metric="Latency",
        unit="ms",
        higher_is_better=False,
        seed=0,
        **fields,
    )
